"""Partitions of PFLlib (Zhang et al., JMLR 2025), example for example: its draws in its order.

PFLlib puts training and test set together, partitions them, and splits each client's examples anew. It draws
from NumPy's generator of 2006, seeded with 1. So these partitions do not depend on `data.seed`; their key
`seed` takes its place.

Shapes: N examples, n clients, C classes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.errors import ConfigError
from cobo_dist.registry import register
from cobo_dist.tasks.partitions import Owners, PartitionSection, TrainingLabels

_BATCH, _TEST_SHARE = 10, 0.25
"""PFLlib's, of which it computes how many examples a client must have."""

_MAX_TRIES = 200
"""Draws of a Dirichlet partition before it is refused."""


class PfllibPartition(PartitionSection):
    """What both partitions have in common."""

    clients: int = Field(20, ge=1, le=1_000_000, description="number of clients")
    seed: int = Field(
        1, ge=0, lt=2**32, description="of NumPy's generator, in place of data.seed (PFLlib: 1)"
    )

    @abstractmethod
    def draw(self, given: TrainingLabels, rng: np.random.RandomState) -> list[NDArray[np.int64]]:
        """Return the examples of each client, in PFLlib's order."""

    def assign(self, given: TrainingLabels, seed: int) -> Owners:
        """Return the client of each example."""
        owners = np.empty(len(given.labels), dtype=np.int64)
        for client, own in enumerate(self._draw(given)[0]):
            owners[own] = client
        return owners

    def tests_of(self, given: TrainingLabels, fraction: float, seed: int) -> NDArray[np.bool_]:
        """Return which examples scikit-learn's `train_test_split` puts into a client's test set."""
        parts, rng = self._draw(given)
        tests = np.zeros(len(given.labels), dtype=bool)
        for own in parts:
            kept = math.floor((1.0 - fraction) * len(own))
            tests[own[rng.permutation(len(own))[: len(own) - kept]]] = True
        return tests

    def _draw(self, given: TrainingLabels) -> tuple[list[NDArray[np.int64]], np.random.RandomState]:
        """Return the examples of each client, and the generator after their draw."""
        if given.all > len(given.labels):
            raise ConfigError(
                f"task.partition.name={self.name} splits all examples anew, and {given.source} has a test "
                "set; set task.merge_test=true"
            )
        rng = np.random.RandomState(self.seed)
        return self.draw(given, rng), rng

    def least(self, given: TrainingLabels) -> int:
        """Return how many examples each client has at least."""
        return int(min(_BATCH / _TEST_SHARE, len(given.labels) / self.clients / 2))


@register.partition("pfllib_pathological")
class PfllibPathologicalPartition(PfllibPartition):
    """PFLlib's `pat`: clients have equally many classes, and groups of clients the same ones.

    m = ceil(classes_per_client n / C) clients share a class, in unequal parts: clients 0 .. m-1 the first
    classes, m .. 2m-1 the next ones. These groups are the true clusters.
    """

    classes_per_client: int = Field(10, ge=1, description="classes of each client (CIFAR-100: 10)")

    def draw(self, given: TrainingLabels, rng: np.random.RandomState) -> list[NDArray[np.int64]]:
        """Give each class to the first m clients that still want classes."""
        classes, each = given.classes, self.classes_per_client
        wanted = np.full(self.clients, each)
        parts: list[list[NDArray[np.int64]]] = [[] for _ in range(self.clients)]
        for label in range(classes):
            own = np.flatnonzero(given.labels == label)
            takers = np.flatnonzero(wanted)[: self.takers(classes)]
            if not len(takers):
                raise ConfigError(
                    f"task.partition.clients={self.clients} with task.partition.classes_per_client={each} "
                    f"take {label} of {classes} classes ({given.source}), {self.takers(classes)} clients a "
                    "class; raise classes_per_client, or choose clients so that clients * "
                    "classes_per_client is a multiple of the classes"
                )
            mean = len(own) / len(takers)
            low, high = int(max(mean / 10, self.least(given) / classes)), int(mean)
            if len(takers) > 1 and low >= high:
                raise ConfigError(
                    f"task.partition.name={self.name}: class {label} of {given.source} has {len(own)} "
                    f"examples for {len(takers)} clients, too few; lower task.partition.clients"
                )
            ends = np.zeros(0, dtype=np.int64)
            if len(takers) > 1:
                ends = np.cumsum(rng.randint(low, high, len(takers) - 1)).astype(np.int64)
            for client, part in zip(takers, np.split(own, ends), strict=True):
                parts[client].append(part)
            wanted[takers] -= 1
        return [np.concatenate(own) for own in parts]

    def takers(self, classes: int) -> int:
        """Return the number m of clients that share a class."""
        return math.ceil(self.clients / classes * self.classes_per_client)

    def clusters_among(self, clients: int, classes: int) -> Sequence[int]:
        """Return the groups: all clients of one want as many classes, and get the same."""
        return [client // self.takers(classes) for client in range(clients)]


@register.partition("pfllib_dirichlet")
class PfllibDirichletPartition(PfllibPartition):
    """PFLlib's `dir`: each class is split by shares from a Dirichlet distribution.

    A client that has N/n examples already gets nothing of a further class. The whole partition is drawn again
    until every client has min(40, N/n/2) examples.
    """

    alpha: float = Field(
        0.1, gt=0, description="evenness: towards 0 one client has a whole class; large: iid"
    )

    def draw(self, given: TrainingLabels, rng: np.random.RandomState) -> list[NDArray[np.int64]]:
        """Draw until all clients have enough."""
        n, count = self.clients, len(given.labels)
        for _ in range(_MAX_TRIES):
            parts: list[list[NDArray[np.int64]]] = [[] for _ in range(n)]
            sizes = np.zeros(n, dtype=np.int64)
            for label in range(given.classes):
                own = np.flatnonzero(given.labels == label)
                rng.shuffle(own)
                shares = rng.dirichlet(np.repeat(self.alpha, n)) * (sizes < count / n)
                if not shares.sum():  # where PFLlib divides by 0
                    shares = np.ones(n)
                ends = (np.cumsum(shares / shares.sum()) * len(own)).astype(np.int64)[:-1]
                for client, part in enumerate(np.split(own, ends)):
                    parts[client].append(part)
                    sizes[client] += len(part)
            if sizes.min() >= self.least(given):
                return [np.concatenate(own) for own in parts]
        raise ConfigError(
            f"task.partition.alpha={self.alpha:g} leaves some of task.partition.clients={n} fewer than "
            f"{self.least(given)} of {count} examples in {_MAX_TRIES} draws; raise alpha, or lower clients"
        )
