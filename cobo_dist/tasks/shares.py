"""Which client has which example, and each client's splits.

Shapes: N examples, those of the source's test set last; n clients, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cobo_dist.errors import ConfigError
from cobo_dist.tasks.columns import Coded
from cobo_dist.tasks.partitions import Owners, PartitionSection, TrainingLabels, deal, shuffled
from cobo_dist.tasks.sources import Labeled


@dataclass(frozen=True)
class Shares:
    """Which client has which example."""

    owners: Owners  # [N]
    clients: int
    names: tuple[str, ...]
    tests: NDArray[np.bool_] | None = None  # [N], where the partition says which are for test

    def called(self, client: int) -> str:
        """Return number and name of a client for messages."""
        return f"{client} ({self.names[client]})" if self.names else str(client)


def shares_of(
    partition: PartitionSection,
    found: Labeled,
    labels: NDArray[np.int64],
    classes: int,
    seed: int,
    test_fraction: float,
) -> Shares:
    """Return which client has which example, those of the test set too.

    Raises:
        ConfigError: the partition does not fit, or returned what is no client for each example.
    """
    count = found.train
    client = None if found.client is None else Coded.of(found.client)[:count]
    given = TrainingLabels(labels[:count], classes, found.source, client, len(labels))
    train = np.asarray(partition.assign(given, seed))
    if train.shape != (count,) or train.dtype.kind not in "iu" or train.min() < 0:
        raise ConfigError(
            f"task.partition.name={partition.name} returned {train.dtype} {list(train.shape)}; assign must "
            f"return a client from 0 for each of {count} training examples"
        )
    clients, names = partition.clients_of(train), partition.names_of(given)
    if train.max() >= clients:
        raise ConfigError(
            f"task.partition.name={partition.name} gave examples to client {train.max()} of {clients}; "
            "number them from 0"
        )
    if names and found.client is not None and len(found.client) > count:
        test = by_name(found, names)
    else:
        test = follow(train, labels[:count], labels[count:], clients, classes, seed)
    owners = np.concatenate([train, test]) if len(test) else train
    tests = None if found.test else partition.tests_of(given, test_fraction, seed)
    return Shares(owners.astype(np.int64, copy=False), clients, names, tests)


def grouped(owners: Owners, clients: int) -> list[NDArray[np.int64]]:
    """Return each client's examples, ascending.

    >>> [own.tolist() for own in grouped(np.array([1, 0, 1]), 3)]
    [[1], [0, 2], []]
    """
    small = owners.astype(
        np.min_scalar_type(max(clients - 1, 0))
    )  # up to 16 bits sort without comparing
    order = np.argsort(small, kind="stable").astype(np.int64, copy=False)
    return np.split(order, np.cumsum(np.bincount(owners, minlength=clients))[:-1])


def follow(
    train: Owners,
    train_labels: NDArray[np.int64],
    test_labels: NDArray[np.int64],
    clients: int,
    classes: int,
    seed: int,
) -> Owners:
    """Return the client of each test example: of each class, in proportion to the training examples."""
    owners = np.empty(len(test_labels), dtype=np.int64)
    for label in range(classes):
        own = np.flatnonzero(test_labels == label)
        counts = np.bincount(train[train_labels == label], minlength=clients).astype(np.float64)
        shares = counts if counts.any() else np.ones(clients)  # a class that only the test set has
        deal(owners, shuffled(seed, "test", own, label), shares)
    return owners


def by_name(found: Labeled, names: tuple[str, ...]) -> Owners:
    """Return the client of each test example as the source's column names it."""
    assert found.client is not None, "the source has a column of clients"
    number = {name: i for i, name in enumerate(names)}
    column = Coded.of(found.client)[found.train :]
    owners: Owners = np.array([number.get(name, -1) for name in column.names])[column.codes]
    if (owners < 0).any():
        unknown = column.codes[np.argmin(owners)]
        raise ConfigError(
            f"{found.source}: client_test names {column.names[unknown]}, which has no training example; drop "
            f"its {np.sum(column.codes == unknown)} test examples"
        )
    return owners


def together(one: Sequence[int] | None, other: Sequence[int] | None) -> list[int] | None:
    """Return clusters of clients that are alike in both ways; None where they are in none.

    A partition without clusters leaves those of a change, if it has several.

    >>> together([0, 0, 1, 1], [0, 1, 0, 1]), together(None, [0, 0]), together(None, [0, 1])
    ([0, 1, 2, 3], None, [0, 1])
    """
    if other is None:
        return None
    if one is None:
        return list(other) if len(set(other)) > 1 else None
    pairs = list(zip(one, other, strict=True))
    return [sorted(set(pairs)).index(pair) for pair in pairs]
