"""Partitions: which client has which training example. What `task.partition.name` names.

A partition gives every example one client, so clients share none and none is left out. Test examples of the
source follow: a client gets a share of each class's test examples in proportion to its training examples.

Shapes: N training examples, n clients, C classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.errors import ConfigError
from cobo_dist.maths import seeds
from cobo_dist.maths.true_graph import TrueGraph
from cobo_dist.registry import class_of, register
from cobo_dist.settings import Section, Text
from cobo_dist.tasks.columns import Coded
from cobo_dist.tasks.npz import read_arrays

Owners = NDArray[np.int64]
"""For each example, the client that has it."""


@dataclass(frozen=True)
class TrainingLabels:
    """What a partition goes by."""

    labels: NDArray[np.int64]  # [N], 0 .. classes - 1
    classes: int
    source: str  # for messages: key and value
    client: NDArray[Any] | Coded | None = None  # [N], the source's column of clients
    all: int = 0  # examples with those of the test set, which come last


class PartitionSection(Section):
    """The config of a partition."""

    remedy: ClassVar[str] = "lower task.partition.clients"  # where a client has too few examples

    name: str = ""

    @abstractmethod
    def assign(self, given: TrainingLabels, seed: int) -> Owners:
        """Return the client, 0 .. n - 1, of each example, int64 [N]: a pure function of both arguments.

        Raises:
            ConfigError: keys that do not fit the data.
        """

    def tests_of(
        self, given: TrainingLabels, fraction: float, seed: int
    ) -> NDArray[np.bool_] | None:
        """Return which examples are for test, [N], a fraction of each client's; None: any are.

        Asked where the source has no test set.
        """
        return None

    def clients_of(self, owners: Owners) -> int:
        """Return the number of clients."""
        return int(getattr(self, "clients", owners.max() + 1))

    def clusters_of(self, clients: int) -> Sequence[int] | None:
        """Return the cluster of each client, [n], of which one has one distribution; None: there are none."""
        return None

    def clusters_among(self, clients: int, classes: int) -> Sequence[int] | None:
        """As `clusters_of`, where the clusters depend on the number of classes too."""
        return self.clusters_of(clients)

    def graph_of(self, clients: int, classes: int) -> TrueGraph | None:
        """Return how alike clients are; by default, those of one cluster are. None: it cannot be said."""
        clusters = self.clusters_among(clients, classes)
        return None if clusters is None else TrueGraph.of(clusters)

    def names_of(self, given: TrainingLabels) -> tuple[str, ...]:
        """Return the names of the clients; empty if they have none."""
        return ()


register.new_kind(
    "partition",
    "a class derived from cobo_dist.PartitionSection",
    check=class_of(PartitionSection),
    section_of=lambda target: target,
)


class CountedPartition(PartitionSection):
    """A partition whose number of clients is a key."""

    clients: int = Field(8, ge=1, le=1_000_000, description="number of clients")


def shuffled(seed: int, purpose: str, indices: NDArray[Any], *counters: int) -> NDArray[Any]:
    """Return indices in an order that the seed, a purpose and numbers decide."""
    order = seeds.permutation(seeds.key(seed, f"partition {purpose}", *counters), len(indices))
    return np.asarray(indices[order.numpy()])


def deal(owners: Owners, shuffled: NDArray[Any], shares: NDArray[Any]) -> None:
    """Give consecutive parts of `shuffled` to clients 0, 1, ... in proportion to `shares` [n].

    Rounding the sums and not the shares leaves out no example.

    >>> owners = np.zeros(5, dtype=np.int64)
    >>> deal(owners, np.array([4, 3, 2, 1, 0]), np.array([1.0, 0.0, 1.5]))
    >>> owners.tolist()
    [2, 2, 2, 0, 0]
    """
    ends = np.rint(np.cumsum(shares) / shares.sum() * len(shuffled)).astype(np.int64)
    owners[shuffled] = np.repeat(np.arange(len(shares)), np.diff(ends, prepend=0))


@register.partition("iid")
class IidPartition(CountedPartition):
    """Examples at random: all clients have one distribution, and equally many examples."""

    def assign(self, given: TrainingLabels, seed: int) -> Owners:
        """Deal shuffled examples in turn; sizes differ by at most one."""
        count = len(given.labels)
        owners = np.empty(count, dtype=np.int64)
        owners[shuffled(seed, "iid", np.arange(count))] = np.arange(count) % self.clients
        return owners

    def clusters_of(self, clients: int) -> Sequence[int]:
        """All are alike."""
        return [0] * clients


@register.partition("quantity")
class QuantityPartition(CountedPartition):
    """Quantity skew: one distribution, unequal numbers of examples (Li et al., ICDE 2022).

    The shares of all examples are drawn from a Dirichlet distribution with parameter alpha.
    """

    remedy: ClassVar[str] = (
        "raise task.partition.alpha or min_size, or lower task.partition.clients"
    )

    alpha: float = Field(1.0, gt=0, description="evenness: the greater, the more equal the sizes")
    min_size: int = Field(10, ge=1, description="examples that every client has at least")

    def assign(self, given: TrainingLabels, seed: int) -> Owners:
        """Deal min_size to each client and the rest by the shares."""
        count, least = len(given.labels), self.min_size * self.clients
        if least > count:
            raise ConfigError(
                f"task.partition.min_size={self.min_size} for task.partition.clients={self.clients} "
                f"takes {least} "
                f"examples, and {given.source} has {count} to train on; lower one of them"
            )
        order = shuffled(seed, "quantity", np.arange(count))
        owners = np.empty(count, dtype=np.int64)
        owners[order[:least]] = np.arange(least) % self.clients
        shares = dirichlet(self.alpha, self.clients, seeds.key(seed, "partition quantity shares"))
        deal(owners, order[least:], shares)
        return owners

    def clusters_of(self, clients: int) -> Sequence[int]:
        """All are alike."""
        return [0] * clients


def dirichlet(alpha: float, count: int, key: int) -> NDArray[np.float64]:
    """Return one draw [count] of the symmetric Dirichlet distribution, of a key of `maths.seeds`.

    Gamma(alpha) is Gamma(alpha + 1) times U^(1/alpha). Its logarithm does not underflow for small alpha.
    """
    from scipy.special import gammaincinv

    u = seeds.uniforms(key, 2 * count).numpy()
    logs = np.log(gammaincinv(alpha + 1.0, u[:count])) + np.log(u[count:]) / alpha
    shares = np.exp(logs - logs.max())
    return np.asarray(shares / shares.sum(), dtype=np.float64)


@register.partition("by_column")
class ByColumnPartition(PartitionSection):
    """Natural clients: the column of clients in the source says whose an example is."""

    remedy: ClassVar[str] = ""  # the data say who has how much

    def assign(self, given: TrainingLabels, seed: int) -> Owners:
        """Return the number of each example's client, in the order of the names."""
        if given.client is None:
            raise ConfigError(
                f"task.partition.name=by_column, but {given.source} has no column of clients; add an "
                f"array or "
                "a column client, or set task.partition.name=iid"
            )
        number = {name: i for i, name in enumerate(self.names_of(given))}
        column = Coded.of(given.client)
        owners: Owners = np.array([number.get(name, -1) for name in column.names])[column.codes]
        return owners

    def names_of(self, given: TrainingLabels) -> tuple[str, ...]:
        """Return the names, sorted; those of digits by their number."""
        if given.client is None:
            return ()
        column = Coded.of(given.client)
        there = np.bincount(column.codes, minlength=len(column.names)) > 0
        names = [name for name, has in zip(column.names, there, strict=True) if has]
        return tuple(
            sorted(names, key=lambda one: (0, int(one), one) if one.isdecimal() else (1, 0, one))
        )


@register.partition("from_file")
class FromFilePartition(PartitionSection):
    """Clients from an npz with the array client, such as partition.npz of a run folder."""

    remedy: ClassVar[str] = "change task.partition.file"

    file: Text = Field("", description="an npz with client: the number of each example's client")

    def assign(self, given: TrainingLabels, seed: int) -> Owners:
        """Return the array; where it has the examples of the test set too, without them."""
        key, count = f"task.partition.file={self.file}", len(given.labels)
        path = Path(self.file).expanduser()
        arrays, found = read_arrays(path, key, "give the path of an npz", ("client",))
        if "client" not in found:
            raise ConfigError(
                f"{key} lacks the array 'client', and holds {', '.join(found) or 'nothing'}; save "
                f"client, one "
                "number for each example"
            )
        client = arrays["client"]
        if client.dtype.kind not in "iu" or client.shape not in ((count,), (given.all,)):
            raise ConfigError(
                f"{key}: client is {client.dtype} {list(client.shape)}, but must be whole numbers "
                f"[{count}], one "
                f"for each training example of {given.source}"
            )
        owners = client[:count].astype(np.int64)
        missing = np.setdiff1d(np.arange(min(count, int(owners.max()) + 1)), owners)
        if owners.min() < 0 or owners.max() >= count or len(missing):
            wrong = f"number {missing[0]} has no example" if len(missing) else "one is out of range"
            raise ConfigError(
                f"{key}: clients go from {owners.min()} to {owners.max()}, and {wrong}; number them 0 to "
                f"n - 1, "
                "each with an example"
            )
        return owners
