"""Partitions by label: clients differ in the classes that they have.

Shapes: N training examples, n clients, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from cobo_dist.errors import ConfigError
from cobo_dist.maths import seeds
from cobo_dist.maths.true_graph import TrueGraph
from cobo_dist.registry import register
from cobo_dist.settings import as_tuple
from cobo_dist.tasks.partitions import (
    CountedPartition,
    Owners,
    PartitionSection,
    TrainingLabels,
    deal,
    dirichlet,
    shuffled,
)

_MAX_TRIES = 200
"""Draws of a Dirichlet partition before it is refused."""


@register.partition("dirichlet")
class DirichletPartition(CountedPartition):
    """Label skew: each class is split by shares from a Dirichlet distribution (Hsu et al., 2019).

    The whole partition is drawn again until every client has min_size examples, and with `balanced` a client
    that has N/n already gets nothing of a further class (Li et al., ICDE 2022).
    """

    remedy: ClassVar[str] = "raise task.partition.min_size or lower task.partition.clients"

    alpha: float = Field(
        0.5, gt=0, description="evenness: towards 0 one client has a whole class; large: iid"
    )
    min_size: int = Field(10, ge=1, description="examples that every client has at least")
    balanced: bool = Field(
        True,
        description="a client with its equal part of all examples gets none of further classes",
    )

    def assign(self, given: TrainingLabels, seed: int) -> Owners:
        """Draw until all clients have enough."""
        count, n, most = len(given.labels), self.clients, 0
        owners = np.empty(count, dtype=np.int64)
        for attempt in range(_MAX_TRIES if self.min_size * n <= count else 0):
            sizes = np.zeros(n, dtype=np.int64)
            for label in range(given.classes):
                own = np.flatnonzero(given.labels == label)
                key = seeds.key(seed, "partition dirichlet shares", attempt, label)
                shares = dirichlet(self.alpha, n, key)
                if self.balanced and (sizes < count / n).any():
                    may = (sizes < count / n).astype(np.float64)
                    # Tiny shares of the clients that are left may all be 0.
                    shares = shares * may if (shares * may).sum() > 0 else may
                deal(owners, shuffled(seed, "dirichlet", own, attempt, label), shares)
                sizes += np.bincount(owners[own], minlength=n)
            if sizes.min() >= self.min_size:
                return owners
            most = max(most, int(sizes.min()))
        raise ConfigError(
            f"task.partition.alpha={self.alpha:g} leaves some of task.partition.clients={n} fewer than "
            f"task.partition.min_size={self.min_size} of {count} examples, {most} at best in "
            f"{_MAX_TRIES} draws; "
            "raise alpha, or lower min_size or clients"
        )


@register.partition("pathological")
class PathologicalPartition(CountedPartition):
    """Every client has equally many classes, drawn at random (Collins et al., FedRep, ICML 2021).

    Classes are drawn evenly, and a class is split evenly over the clients that have it.
    """

    classes_per_client: int = Field(2, ge=1, description="classes of each client")

    def assign(self, given: TrainingLabels, seed: int) -> Owners:
        """Each client in turn takes the classes with the fewest takers, ties broken at random."""
        each, classes = self.classes_per_client, given.classes
        _check_window(self.clients, each, classes, given.source)
        takers: list[list[int]] = [[] for _ in range(classes)]
        for client in range(self.clients):
            ties = shuffled(seed, "pathological classes", np.arange(classes), client)
            for label in np.lexsort((ties, np.array([len(one) for one in takers])))[:each]:
                takers[label].append(client)
        return _split_among(takers, given, self.clients, seed)


@register.partition("ring")
class RingPartition(CountedPartition):
    """Overlapping sets of classes on a ring: neighbors share the most, opposite clients none.

    Client i has the classes from i C/n on. No clusters are right here; W should show a band. The right weight
    of two clients is the share of their classes that both have.
    """

    classes_per_client: int = Field(3, ge=1, description="consecutive classes of each client")

    def assign(self, given: TrainingLabels, seed: int) -> Owners:
        """Split each class evenly over the clients whose window has it."""
        each, classes, n = self.classes_per_client, given.classes, self.clients
        _check_window(n, each, classes, given.source)
        starts = self._starts(n, classes)
        if n < classes and (gap := int(np.diff([*starts, classes]).max())) > each:
            raise ConfigError(
                f"task.partition.classes_per_client={each} leaves gaps in a ring of "
                f"task.partition.clients={n} "
                f"over {classes} classes; set task.partition.classes_per_client={gap}"
            )
        takers: list[list[int]] = [[] for _ in range(classes)]
        for client in range(n):
            for step in range(each):
                takers[(starts[client] + step) % classes].append(client)
        return _split_among(takers, given, n, seed)

    @staticmethod
    def _starts(clients: int, classes: int) -> NDArray[np.int64]:
        """Return the first class of each client."""
        return np.arange(clients) * classes // clients

    def graph_of(self, clients: int, classes: int) -> TrueGraph:
        """Return the overlaps of the clients' classes."""
        each = self.classes_per_client

        def overlap(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.float64]:
            apart = np.abs(one - other)
            # Long windows may meet on both sides of the ring.
            shared = np.maximum(0, each - apart) + np.maximum(0, each - (classes - apart))
            return np.asarray(shared / each)

        return TrueGraph.of(self._starts(clients, classes), overlap)


@register.partition("shards")
class ShardsPartition(CountedPartition):
    """Shards of examples sorted by label (McMahan et al., AISTATS 2017)."""

    shards_per_client: int = Field(2, ge=1, description="shards that each client is dealt")

    def assign(self, given: TrainingLabels, seed: int) -> Owners:
        """Sort, cut into equal shards, and deal them at random."""
        order = shuffled(seed, "shards", np.arange(len(given.labels)))
        order = order[np.argsort(given.labels[order], kind="stable")]
        shards = self.clients * self.shards_per_client
        dealt = shuffled(seed, "shards dealt", np.arange(shards)) % self.clients
        owners = np.empty(len(order), dtype=np.int64)
        for client, shard in zip(dealt, np.array_split(order, shards), strict=True):
            owners[shard] = client
        return owners


Sizes = Annotated[
    tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(as_tuple), Field(min_length=1)
]


@register.partition("disjoint_classes")
class DisjointClassesPartition(PartitionSection):
    """Clusters with classes of their own, none of which another has (CoBo's cross-device setting)."""

    remedy: ClassVar[str] = "lower task.partition.cluster_sizes"

    cluster_sizes: Sizes = Field((2, 2, 2, 2), description="clients in each cluster")

    def assign(self, given: TrainingLabels, seed: int) -> Owners:
        """Cluster k of K has classes k C/K to (k + 1) C/K - 1, each split evenly over its clients."""
        sizes, classes = np.asarray(self.cluster_sizes), given.classes
        if len(sizes) > classes:
            raise ConfigError(
                f"task.partition.cluster_sizes names {len(sizes)} clusters for {classes} classes "
                f"({given.source}); give at most {classes}"
            )
        first = np.cumsum([0, *sizes])
        takers = [
            list(range(first[k], first[k + 1])) for k in np.arange(classes) * len(sizes) // classes
        ]
        return _split_among(takers, given, int(sizes.sum()), seed)

    def clients_of(self, owners: Owners) -> int:
        """Return the clients of all clusters."""
        return sum(self.cluster_sizes)

    def clusters_of(self, clients: int) -> Sequence[int]:
        """Return the clusters in order."""
        return [k for k, size in enumerate(self.cluster_sizes) for _ in range(size)]


def _check_window(clients: int, each: int, classes: int, source: str) -> None:
    if each > classes:
        raise ConfigError(
            f"task.partition.classes_per_client={each} is more than the {classes} classes of {source}; "
            f"lower it"
        )
    if clients * each < classes:
        raise ConfigError(
            f"task.partition.clients={clients} with task.partition.classes_per_client={each} have "
            f"{clients * each} "
            f"of {classes} classes ({source}), and no example may be left out; raise one of them"
        )


def _split_among(
    takers: Sequence[Sequence[int]], given: TrainingLabels, clients: int, seed: int
) -> NDArray[np.int64]:
    """Split each class evenly over the clients that take it."""
    owners = np.empty(len(given.labels), dtype=np.int64)
    for label, those in enumerate(takers):
        shares = np.zeros(clients)
        shares[list(those)] = 1.0
        own = np.flatnonzero(given.labels == label)
        deal(owners, shuffled(seed, "class", own, label), shares)
    return owners
