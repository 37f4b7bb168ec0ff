"""Local steps that an algorithm takes itself, where it needs more than gradients at its clients' models.

Shapes: c clients on this rank, d parameters, k clients in a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from cobo_dist.lazy import Tensor


class Optimizer(Protocol):
    """Turns gradients into directions; keeps moments between rounds."""

    def direction(
        self, gradients_cd: Tensor, rows: slice = ..., points_cd: Tensor | None = None
    ) -> Tensor:
        """Return the directions for gradients, of all models or of those in `rows`; may overwrite them.

        `points_cd`: where the gradients were taken, for weight decay; None: at the models themselves.
        """

    def state(self) -> dict[str, Tensor]:
        """Return the moments by name, to save them or to fill them in place."""


class LocalStep(Protocol):
    """One step of some clients, each on a batch of its own."""

    losses_k: Tensor  # of the gradients just computed

    @property
    def rows(self) -> slice | Tensor:
        """The clients' rows of X, to index any matrix [c, ...]: all, or their numbers on the device."""

    def gradients(
        self, models_cd: Tensor, stream: str = "local", *, trains: bool = False
    ) -> Tensor:
        """Return the gradients [k, d] at the clients' rows of a matrix; the next call overwrites them.

        The rows of the matrix are aligned, as those of X and of `Scratch.rows`. `stream`: whose batch is
        read. `trains`: these models are the clients' own, so that their losses and BatchNorm's statistics
        count.
        """

    def descend(
        self, models_cd: Tensor, gradients_kd: Tensor, optimizer: Optimizer | None = None
    ) -> None:
        """Take the step x_i <- x_i - eta direction(g_i) in the clients' rows of a matrix.

        By the clients' own optimizer, or by another one for models in the same rows. May overwrite the
        gradients.
        """

    def move(self, models_cd: Tensor, by_kd: Tensor, factor: float) -> None:
        """Add `factor` times other rows [k, d] to the clients' rows of a matrix."""


class LocalSteps(Protocol):
    """Some local steps, which are taken once, in order."""

    @property
    def rows(self) -> slice | Tensor:
        """The rows of X of all clients that take steps."""

    def __iter__(self) -> Iterator[LocalStep]:
        """Yield the steps."""

    def losses(self) -> Tensor:
        """Return the mean losses [c] of the gradients that train models; NaN for clients without any."""
