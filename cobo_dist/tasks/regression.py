"""Task `regression`: examples with numbers to predict, one or several, from any source.

Models learn targets of mean 0 and standard deviation 1 over all training examples, so the loss has no unit:
with `mse` the best constant has the loss 1. Metrics and predictions are in the data's units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, SerializeAsAny

from cobo_dist.errors import ConfigError
from cobo_dist.lazy import Tensor, nn, torch
from cobo_dist.registry import Variant, register
from cobo_dist.tasks.base import DataConfig, Task
from cobo_dist.tasks.changes import ChangeSection
from cobo_dist.tasks.columns import Coded
from cobo_dist.tasks.functions import LossName, MetricNames
from cobo_dist.tasks.partitioned import (
    Labels,
    PartitionedConfig,
    Targets,
    numpy_type,
)
from cobo_dist.tasks.scaling import standardized
from cobo_dist.tasks.sections import ModelSection
from cobo_dist.tasks.sources import Labeled, SourceSection
from cobo_dist.tasks.supervised import Supervised

_SOURCE = Variant("source", "sklearn_regression")
_LEAST_SPREAD = 1e-150


@register.task("regression")
class RegressionConfig(PartitionedConfig):
    """Numbers to predict: a source, a partition over clients, a change for each client."""

    name: Literal["regression"] = "regression"
    source: Annotated[SerializeAsAny[SourceSection], _SOURCE] = _SOURCE.field(
        "where the examples are from"
    )
    loss: LossName = Field(
        "huber",
        description="what is minimized: huber, mse, l1, or another registered loss. mse takes a smaller "
        "optimizer.lr, such as 0.01",
    )
    metrics: MetricNames = Field(
        ("mae", "rmse"),
        description="registered metrics, which evaluations report beside the loss, in the data's units",
    )
    bins: int = Field(
        10,
        ge=2,
        le=10_000,
        description="classes of nearly equal size, by the first target, by which partitions by label go",
    )

    def contradiction(self) -> str:
        """Return one line about keys that do not go together."""
        if type(self.change).label_maps is not ChangeSection.label_maps:
            return (
                f"task.change.name={self.change.name} renames classes, and task.name=regression has none; "
                "choose another change"
            )
        return super().contradiction()

    def build(self, model: ModelSection, data: DataConfig, seed: int, dtype: torch.dtype) -> Task:
        """Return the task over the loaded examples."""
        return Regression(self, model, data, seed, dtype)

    def rebuild(
        self,
        model: ModelSection,
        facts: Mapping[str, Any],
        client: int,
        state: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> nn.Module:
        """Return the client's network as a `Regressor`, which predicts in the data's units."""
        from cobo_dist.tasks.classifier import Regressor

        return Regressor.rebuild(model, facts, client, state, dtype)

    def labels(self, found: Labeled) -> Labels:
        """Return the number of each example's bin: quantiles of the first target in training."""
        y = numbers_of(found)[:, 0]
        train = y[: found.train]
        inner = np.linspace(0, 1, self.bins + 1)[1:-1]
        edges = np.unique(np.quantile(train, inner, method="inverted_cdf"))
        edges = edges[edges > train.min()]  # each is a target, so no bin is empty
        ends = [train.min(), *edges, train.max()]
        names = [f"{low:g} to {high:g}" for low, high in pairwise(ends)]
        return Labels(np.searchsorted(edges, y, side="right").astype(np.int64), names)

    def targets(
        self,
        found: Labeled,
        labels: Labels,
        clients: int,
        train: Sequence[NDArray[np.int64]],
        seed: int,
        dtype: torch.dtype,
    ) -> Targets:
        """Return the numbers, standardized over all training examples."""
        values, scale, offset = standardized(numbers_of(found), train, numpy_type(dtype))
        return Targets(torch.from_numpy(values), None, scale, offset)


class Regression(Supervised):
    """Loss, and errors in the data's units, of every client's model on its own examples."""

    def __init__(
        self,
        config: RegressionConfig,
        model: ModelSection,
        data: DataConfig,
        seed: int,
        dtype: torch.dtype,
    ) -> None:
        """Load the examples; see `Supervised`."""
        self._factors: Tensor | None = None
        super().__init__(config, model, data, seed, dtype)

    def in_units(self, numbers: Tensor) -> Tensor:
        """Return outputs or targets in the data's units, float64."""
        if self._factors is None or self._factors.device != numbers.device:
            factors = (self.examples.target_scale, self.examples.target_offset)
            self._factors = torch.tensor(factors, dtype=torch.float64, device=numbers.device)
        units: Tensor = (numbers.double() - self._factors[1]) / self._factors[0]
        return units

    def model_facts(self) -> dict[str, Any]:
        """Return shape and scale of inputs, and scale of targets."""
        examples = self.examples
        return {
            **super().model_facts(),
            "outputs": examples.outputs,
            "target_scale": list(examples.target_scale),
            "target_offset": list(examples.target_offset),
        }


def numbers_of(found: Labeled) -> NDArray[np.float64]:
    """Return the targets as numbers [N, outputs].

    Raises:
        ConfigError: they are no numbers, one is NaN or infinite, or all are equal.
    """
    given = found.y
    if isinstance(given, Coded) or given.dtype.kind not in "biuf":
        what = (
            f"text such as {_no_number(given.names)}" if isinstance(given, Coded) else given.dtype
        )
        raise ConfigError(
            f"{found.source}: targets are {what}, but task.name=regression takes numbers; convert them, or "
            "set task.name=classification"
        )
    y = given[:, None] if given.ndim == 1 else given
    numbers = y.astype(np.float64)
    finite = np.isfinite(numbers).all(axis=1)
    if not finite.all():
        raise ConfigError(
            f"{found.source}: the target of {np.sum(~finite)} of {len(y)} examples is NaN or infinite, first "
            f"of example {int(finite.argmin()) + 1}; fill or drop them"
        )
    # Squares of smaller differences are 0.
    for column in np.flatnonzero(np.ptp(numbers[: found.train], axis=0) < _LEAST_SPREAD):
        raise ConfigError(
            f"{found.source}: all targets{f' number {column}' if y.shape[1] > 1 else ''} to train on are "
            f"{numbers[0, column]:g}; there is nothing to predict; name "
            "another column as the target"
        )
    return numbers


def _no_number(names: Sequence[str]) -> str:
    """Return the first text that is no number, as a message shows it."""
    for name in names:
        try:
            float(name)
        except ValueError:
            return repr(name[:40])
    return repr(names[0][:40])
