"""Task `classification`: any labeled examples, any partition over clients, any change for each client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cobo_dist.errors import ConfigError
from cobo_dist.lazy import torch
from cobo_dist.registry import register
from cobo_dist.tasks.columns import Coded, numbered
from cobo_dist.tasks.labeled import ClassificationConfig
from cobo_dist.tasks.partitioned import Labels, PartitionedConfig, Targets
from cobo_dist.tasks.sources import Labeled

_MAX_SHOWN = 4  # labels that a notice names


@register.task("classification")
class DataTaskConfig(ClassificationConfig, PartitionedConfig):
    """Examples of your own: a source, a partition over clients, a change for each client."""

    name: Literal["classification"] = "classification"

    def labels(self, found: Labeled) -> Labels:
        """Return the labels of all examples."""
        return renumbered(found)

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


def renumbered(found: Labeled) -> Labels:
    """Return labels 0 to C - 1, the source's own in this order, and a notice if they were others.

    Raises:
        ConfigError: labels that are no classes.
    """
    y = found.y
    if isinstance(y, Coded):
        return _named(found, np.asarray(y.codes, dtype=np.int64), list(y.names))
    if y.ndim != 1:
        raise ConfigError(
            f"{found.source}: there are {y.shape[1]} targets, and task.name=classification takes one label; "
            "name one column, or set task.name=regression"
        )
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
    return _named(found, numbers, [str(one) for one in own])


def _named(found: Labeled, numbers: NDArray[np.int64], names: Sequence[str]) -> Labels:
    """Return labels with a notice of what they were."""
    if len(names) < 2:
        raise ConfigError(
            f"{found.source}: all labels are {names[0]}; classification needs two classes or more"
        )
    shown = ", ".join(names[:_MAX_SHOWN]) + (" ..." if len(names) > _MAX_SHOWN else "")
    notice = f"{found.source}: labels {shown} are numbered 0 to {len(names) - 1}, in this order"
    return Labels(numbers, names, (notice,))
