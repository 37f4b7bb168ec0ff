"""Task `classification`: any labeled examples, any partition over clients, any change for each client.

`task.source` says where the examples are from, `task.partition` which client has which, and `task.change` how
a client sees them. Each is registered by name, and a plug-in can add more.

Shapes: N examples, those of the source's test set last; n clients, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, SerializeAsAny

# Each registers its own.
import cobo_dist.tasks.image_folder
import cobo_dist.tasks.label_partitions
import cobo_dist.tasks.tables
import cobo_dist.tasks.text_source  # noqa: F401
from cobo_dist.errors import ConfigError
from cobo_dist.lazy import torch
from cobo_dist.registry import Variant, register
from cobo_dist.tasks.base import DataConfig
from cobo_dist.tasks.changes import ChangeSection
from cobo_dist.tasks.examples import ClientExamples, Examples
from cobo_dist.tasks.partitions import Owners, PartitionSection, TrainingLabels, deal, shuffled
from cobo_dist.tasks.sources import Labeled, SourceSection
from cobo_dist.tasks.supervised import ClassificationConfig

_SOURCE = Variant("source", "sklearn")
_PARTITION = Variant("partition", "iid")
_CHANGE = Variant("change", "none")
_ROWS_AT_ONCE = 65_536
_MAX_SHOWN = 4  # labels that a notice names


@register.task("classification")
class DataTaskConfig(ClassificationConfig):
    """Examples of your own: a source, a partition over clients, a change for each client."""

    name: Literal["classification"] = "classification"
    source: Annotated[SerializeAsAny[SourceSection], _SOURCE] = _SOURCE.field(
        "where the examples are from"
    )
    partition: Annotated[SerializeAsAny[PartitionSection], _PARTITION] = _PARTITION.field(
        "which client has which examples"
    )
    change: Annotated[SerializeAsAny[ChangeSection], _CHANGE] = _CHANGE.field(
        "how a client sees its examples"
    )
    validation_fraction: float = Field(
        0.1, ge=0, lt=1, description="share of a client's examples kept for validation"
    )
    test_fraction: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="share of a client's examples kept for test, where the source has no test set",
    )
    standardize: bool = Field(
        True,
        description="bring each input that is no image or text to mean 0 and standard deviation 1 over all "
        "training examples",
    )

    def contradiction(self) -> str:
        """Return one line about keys that do not go together."""
        parts = (self.source, self.partition, self.change)
        return next(filter(None, (one.contradiction() for one in parts)), "")

    def load(self, data: DataConfig, seed: int, dtype: torch.dtype) -> ClientExamples:
        """Read, partition, split and change the examples."""
        found = self.source.read()
        labels, own_labels, notices = renumbered(found)
        classes = len(own_labels)
        shares = self._partition(found, labels, classes, seed)
        splits = self._split(shares, found, seed)
        x, scale, offset = self._scaled(
            found, splits["train"], np.dtype(str(dtype).partition(".")[2])
        )
        maps = torch.from_numpy(self.change.label_maps(shares.clients, classes, seed).copy())
        examples = Examples(
            torch.from_numpy(self.change.inputs(x, shares.owners, seed)),
            torch.from_numpy(labels),
            maps,
            dtype,
            data.channels_last,
            scale,
            offset,
            found.text,
        )
        if found.client is not None and self.partition.name != "by_column":
            notices += (
                f"{found.source}: the column of clients is not used with task.partition.name="
                f"{self.partition.name}",
            )
        tensors = {
            split: [torch.from_numpy(own) for own in those] for split, those in splits.items()
        }
        clusters = together(
            self.partition.clusters_of(shares.clients), self.change.clusters_of(shares.clients)
        )
        return ClientExamples(
            examples,
            tensors,
            clusters,
            names=shares.names,
            notices=(*found.notices, *notices),
            label_names=own_labels,
        )

    def _partition(
        self, found: Labeled, labels: NDArray[np.int64], classes: int, seed: int
    ) -> Shares:
        """Return which client has which example, those of the test set too."""
        count = found.train
        client = None if found.client is None else found.client[:count]
        given = TrainingLabels(labels[:count], classes, found.source, client, len(labels))
        train = np.asarray(self.partition.assign(given, seed))
        if train.shape != (count,) or train.dtype.kind not in "iu" or train.min() < 0:
            raise ConfigError(
                f"task.partition.name={self.partition.name} returned {train.dtype} {list(train.shape)}; "
                f"assign must "
                f"return a client from 0 for each of {count} training examples"
            )
        clients, names = self.partition.clients_of(train), self.partition.names_of(given)
        if train.max() >= clients:
            raise ConfigError(
                f"task.partition.name={self.partition.name} gave examples to client {train.max()} of "
                f"{clients}; "
                "number them from 0"
            )
        if names and found.client is not None and len(found.client) > count:
            test = _by_name(found, names)
        else:
            test = follow(train, labels[:count], labels[count:], clients, classes, seed)
        return Shares(np.concatenate([train, test]).astype(np.int64), clients, names)

    def _split(
        self, shares: Shares, found: Labeled, seed: int
    ) -> dict[str, list[NDArray[np.int64]]]:
        """Return each client's example indices for training, validation and test."""
        splits: dict[str, list[NDArray[np.int64]]] = {"train": [], "validation": [], "test": []}
        for client, own in enumerate(grouped(shares.owners[: found.train], shares.clients)):
            order = shuffled(seed, "split", own, client)
            parts = {} if found.test else {"test": self.test_fraction}
            if self.validation_fraction:
                parts["validation"] = self.validation_fraction
            if len(order) <= len(parts):
                wanted = ["train", *reversed(parts)]
                raise ConfigError(
                    f"task.partition.name={self.partition.name} leaves client {shares.called(client)} "
                    f"{len(order)} "
                    f"of {found.train} examples, and it needs {len(wanted)}: one each for "
                    f"{', '.join(wanted)}; "
                    f"{self.partition.remedy}"
                    + (", or set task.validation_fraction=0" if "validation" in parts else "")
                )
            left = len(order)
            for part, fraction in parts.items():
                size = min(max(1, round(fraction * len(order))), left - len(parts))
                left -= size
                splits[part].append(order[left : left + size])
            splits["train"].append(order[:left])
        if found.test:
            splits["test"] = [
                own + found.train for own in grouped(shares.owners[found.train :], shares.clients)
            ]
            if empty := [i for i, own in enumerate(splits["test"]) if not len(own)]:
                raise ConfigError(
                    f"client {shares.called(empty[0])} gets none of the {found.test} test examples of "
                    f"{found.source}, by its share of each class; {self.partition.remedy}, or give a "
                    f"source without "
                    "a test set"
                )
        splits["validation"] = splits["validation"] or [order[:0]] * shares.clients
        return splits

    def _scaled(
        self, found: Labeled, train: Sequence[NDArray[np.int64]], dtype: np.dtype[Any]
    ) -> tuple[NDArray[Any], float | list[float], float | list[float]]:
        """Return the inputs, standardized if that is wanted, and scale and offset of each feature."""
        x = found.x
        if x.dtype == np.uint8 or found.text is not None:
            return x, 1.0, 0.0
        if not self.standardize:
            return x.astype(dtype, copy=False), 1.0, 0.0
        flat = x.reshape(len(x), -1)
        own = np.zeros((len(x), 1), dtype=bool)
        own[np.concatenate(train)] = True
        mean = flat.mean(axis=0, dtype=np.float64, where=own)
        std = flat.std(axis=0, dtype=np.float64, where=own)
        # A constant feature becomes 0; the sum of its mean rounds, so its deviation may not be exactly 0.
        scale = 1.0 / np.where(std > 1e-12 * np.abs(mean), std, 1.0)
        offset = -mean * scale
        scaled = np.empty(flat.shape, dtype=dtype)
        for rows in range(0, len(flat), _ROWS_AT_ONCE):  # or else two more copies of the data
            part = slice(rows, rows + _ROWS_AT_ONCE)
            scaled[part] = flat[part] * scale + offset
        return scaled.reshape(x.shape), scale.tolist(), offset.tolist()


@dataclass(frozen=True)
class Shares:
    """Which client has which example."""

    owners: Owners  # [N]
    clients: int
    names: tuple[str, ...]

    def called(self, client: int) -> str:
        """Return number and name of a client for messages."""
        return f"{client} ({self.names[client]})" if self.names else str(client)


def renumbered(found: Labeled) -> tuple[NDArray[np.int64], list[str], tuple[str, ...]]:
    """Return labels 0 to C - 1, the source's own in this order [C], and a notice if they were others.

    Raises:
        ConfigError: labels that are no classes.
    """
    y = found.y
    if y.dtype.kind == "f":
        if not np.isfinite(y).all() or (y != np.floor(y)).any():
            wrong = y[~np.isfinite(y) | (y != np.floor(y))][0]
            raise ConfigError(
                f"{found.source}: {wrong} is no label of a class, which is a whole number or text; name "
                f"the column "
                "of classes, or round the labels"
            )
    elif y.dtype.kind not in "biuU":
        raise ConfigError(
            f"{found.source}: labels are {y.dtype}, but must be whole numbers or text; convert them"
        )
    own, labels = np.unique(y, return_inverse=True)
    classes = len(own)
    if classes < 2:
        raise ConfigError(
            f"{found.source}: all labels are {own[0]}; classification needs two classes or more"
        )
    if y.dtype.kind in "iu" and own[0] == 0 and own[-1] == classes - 1:
        return labels.reshape(-1).astype(np.int64), [str(one) for one in own], ()
    shown = ", ".join(str(one) for one in own[:_MAX_SHOWN]) + (
        " ..." if classes > _MAX_SHOWN else ""
    )
    notice = f"{found.source}: labels {shown} are numbered 0 to {classes - 1}, in this order"
    return labels.reshape(-1).astype(np.int64), [str(one) for one in own], (notice,)


def grouped(owners: Owners, clients: int) -> list[NDArray[np.int64]]:
    """Return each client's examples, ascending.

    >>> [own.tolist() for own in grouped(np.array([1, 0, 1]), 3)]
    [[1], [0, 2], []]
    """
    order = np.argsort(owners, kind="stable").astype(np.int64)
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


def _by_name(found: Labeled, names: tuple[str, ...]) -> Owners:
    """Return the client of each test example as the source's column names it."""
    assert found.client is not None, "the source has a column of clients"
    number = {name: i for i, name in enumerate(names)}
    column = list(map(str, found.client[found.train :].tolist()))
    if unknown := [name for name in column if name not in number]:
        raise ConfigError(
            f"{found.source}: client_test names {unknown[0]}, which has no training example; drop its "
            f"{column.count(unknown[0])} test examples"
        )
    return np.array([number[name] for name in column], dtype=np.int64)


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
