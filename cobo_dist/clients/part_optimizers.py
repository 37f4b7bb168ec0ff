"""Optimizers for parts of the models, of which some rest while the others train.

Shapes: c clients, d parameters, k of them in one part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from cobo_dist.clients.optimizer_config import OptimizerConfig
from cobo_dist.clients.optimizers import build_optimizer


class Part(Protocol):
    """Some columns of rows (`columns.Columns`)."""

    def take(self, rows_cd: Tensor) -> Tensor:
        """Return these columns [c, k]."""

    def put(self, part_ck: Tensor, rows_cd: Tensor) -> None:
        """Write columns back into the rows."""

    def fill(self, rows_cd: Tensor, value: float) -> None:
        """Set these columns of the rows to one number."""


class PartOptimizers:
    """An optimizer for each part of X, with moments and a count of steps of its own.

    A part that rests is as if its parameters had no gradient in PyTorch: neither they nor its optimizer's
    state change.
    """

    def __init__(self, config: OptimizerConfig, x_cd: Tensor, parts: Sequence[Part]) -> None:
        """Build them for columns that are all of X together."""
        self.x_cd, self.parts = x_cd, tuple(parts)
        self.resting: tuple[Part, ...] = ()
        self._of_parts = [build_optimizer(config, part.take(x_cd)) for part in parts]

    def train_only(self, columns: Part | None) -> None:
        """Let all parts rest but this one; None: none rests."""
        self.resting = tuple(part for part in self.parts if columns not in (None, part))

    def direction(
        self, gradients_cd: Tensor, rows: slice = slice(None), points_cd: Tensor | None = None
    ) -> Tensor:
        """Return each part's direction, 0 for one that rests, in place of the gradients."""
        points_cd = self.x_cd[rows] if points_cd is None else points_cd
        for part, optimizer in zip(self.parts, self._of_parts, strict=True):
            if part in self.resting:
                part.fill(gradients_cd, 0.0)
                continue
            directions_ck = optimizer.direction(part.take(gradients_cd), rows, part.take(points_cd))
            part.put(directions_ck, gradients_cd)
        return gradients_cd

    def state(self) -> dict[str, Tensor]:
        """Return what each part's optimizer keeps, by the number of the part and its name there."""
        return {
            f"{number}.{name}": kept
            for number, optimizer in enumerate(self._of_parts)
            for name, kept in optimizer.state().items()
        }
