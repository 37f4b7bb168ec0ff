"""Task `classification`: any labeled examples, any partition over clients, any change for each client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cobo_dist.errors import ConfigError
from cobo_dist.lazy import torch
from cobo_dist.registry import register
from cobo_dist.tasks.columns import Coded, numbered
from cobo_dist.tasks.labeled import ClassificationConfig
from cobo_dist.tasks.partitioned import Labels, PartitionedConfig, Targets
from cobo_dist.tasks.sources import Labeled

_MANY_CLASSES = 20
_MAX_SHOWN = 4  # labels that a notice names
_MAX_CHARACTERS = 40  # of each


@register.task("classification")
class DataTaskConfig(ClassificationConfig, PartitionedConfig):
    """Examples of your own: a source, a partition over clients, a change for each client."""

    name: Literal["classification"] = "classification"

    def labels(self, found: Labeled) -> Labels:
        """Return the labels of all examples."""
        labels = renumbered(found)
        return replace(labels, notices=labels.notices + tuple(_doubts(found, labels)))

    def targets(
        self,
        found: Labeled,
        labels: Labels,
        clients: int,
        train: Sequence[NDArray[np.int64]],
        seed: int,
        dtype: torch.dtype,
    ) -> Targets:
        """Return the labels, and each client's own."""
        maps = self.change.label_maps(clients, len(labels.names), seed)
        return Targets(torch.from_numpy(labels.numbers), torch.from_numpy(maps.copy()))


def _doubts(found: Labeled, labels: Labels) -> Iterator[str]:
    """Yield what is likely a mistake: classes without training examples, numbers taken for classes."""
    counts = np.bincount(labels.numbers[: found.train], minlength=len(labels.names))
    unseen = np.flatnonzero(counts == 0)
    if len(unseen):
        alone = int(np.isin(labels.numbers, unseen).sum())
        names = ", ".join(
            map(repr, [labels.names[k][:_MAX_CHARACTERS] for k in unseen[:_MAX_SHOWN]])
        )
        yield (
            f"{found.source}: {alone} of {found.test} test examples have labels without a training example: "
            f"{names}{' ...' if len(unseen) > _MAX_SHOWN else ''}"
        )
    if len(labels.names) > max(_MANY_CLASSES, found.train / 3):
        yield (
            f"{found.source}: {found.train} training examples have {len(labels.names)} classes; if labels "
            "are numbers to predict, set task.name=regression"
        )


def renumbered(found: Labeled) -> Labels:
    """Return labels 0 to C - 1, the source's own in this order, and a notice if they were others.

    Raises:
        ConfigError: labels that are no classes.
    """
    y = found.y
    if isinstance(y, Coded):
        return _named(found, np.asarray(y.codes, dtype=np.int64), list(y.names), text=True)
    if y.ndim != 1:
        raise _several(found.source, y)
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
    own, numbers = numbered(y)
    if y.dtype.kind in "iu" and len(own) > 1 and own[0] == 0 and own[-1] == len(own) - 1:
        return Labels(numbers, [str(one) for one in own])
    return _named(found, numbers, [str(one) for one in own], text=y.dtype.kind == "U")


def _several(source: str, y: NDArray[Any]) -> ConfigError:
    """Return the refusal of labels [N, k]."""
    count, targets = y.shape
    one_label = "task.name=classification takes one label"
    if targets == 1:
        return ConfigError(
            f"{source}: labels are [{count}, 1], and {one_label}; save them as [{count}]"
        )
    if y.dtype.kind in "biuf" and np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all():
        return ConfigError(
            f"{source}: labels are one-hot [{count}, {targets}], and {one_label}; save their "
            f"argmax(axis=1) as [{count}]"
        )
    return ConfigError(
        f"{source}: there are {targets} targets, and {one_label}; give one label an example, or set "
        "task.name=regression"
    )


def _named(found: Labeled, numbers: NDArray[np.int64], names: Sequence[str], text: bool) -> Labels:
    """Return labels with a notice of what they were; text in quotes, so that blanks are seen."""
    some = [repr(one[:_MAX_CHARACTERS]) if text else one for one in names[:_MAX_SHOWN]]
    if len(names) < 2:
        raise ConfigError(
            f"{found.source}: all labels are {some[0]}; classification needs two classes or more"
        )
    shown = ", ".join(some) + (" ..." if len(names) > _MAX_SHOWN else "")
    notice = f"{found.source}: labels {shown} are numbered 0 to {len(names) - 1}, in this order"
    return Labels(numbers, names, (notice,))
