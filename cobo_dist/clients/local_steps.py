"""Local steps that a method takes by itself: its gradients at models of its choice, on one batch a step.

Shapes: c clients on this rank, d parameters, e clients that take part, k of them in a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cobo_dist.clients.local_work import Batches, Rows
from cobo_dist.clients.optimizers import Optimizer, runs
from cobo_dist.maths.flat import to_device

if TYPE_CHECKING:
    from cobo_dist.clients.client_batch import ClientBatch

Compute = Callable[[Tensor, Rows, Batches, str, bool], tuple[Tensor, Tensor]]
"""Returns gradients [k, d] and losses [k] of some clients at their rows of a matrix [c, d]."""


class LocalSteps:
    """Some local steps of the clients in `rows_e`, to be taken once, in order."""

    def __init__(
        self,
        clients: ClientBatch,
        rows_e: Rows,
        batches: Iterable[Batches],
        eta: float,
        compute: Compute,
    ) -> None:
        """Take steps of size `eta` on these batches."""
        self.clients, self._rows_e, self._batches = clients, rows_e, batches
        self.eta, self.compute = eta, compute
        count = len(clients.ids)
        self.sums_c, self.passes_c = (clients.x_cd.new_zeros(count) for _ in range(2))

    @property
    def rows(self) -> slice | Tensor:
        """The rows of X of the clients that take steps, to index any matrix [c, ...]."""
        return self.index(self._rows_e)

    def index(self, rows_k: Rows) -> slice | Tensor:
        """Return rows as an index on the device: a slice where they are all, so that nothing is copied."""
        if len(rows_k) == len(self.clients.ids):
            return slice(None)
        return to_device(rows_k, self.clients.device)

    def __iter__(self) -> Iterator[LocalStep]:
        """Yield the steps."""
        for batches in self._batches:
            at = batches.at
            yield LocalStep(self, self._rows_e if at is None else self._rows_e[at], batches)

    def losses(self) -> Tensor:
        """Return the mean losses [c] of the gradients that train models; NaN for clients without any."""
        return self.sums_c / self.passes_c


class LocalStep:
    """One step of some clients, in the rows `rows` [k] of X, each on one batch of its own."""

    def __init__(self, steps: LocalSteps, rows_k: Rows, batches: Batches) -> None:
        self._steps, self._rows_k, self._batches = steps, rows_k, batches
        self.losses_k = torch.empty(0)  # of the last gradients

    @cached_property
    def rows(self) -> slice | Tensor:
        """The rows of the step's clients, to index any matrix [c, ...]."""
        return self._steps.index(self._rows_k)

    def gradients(
        self, models_cd: Tensor, stream: str = "local", *, trains: bool = False
    ) -> Tensor:
        """Return the gradients [k, d] at the clients' rows of `models_cd`; the next call overwrites them.

        `stream`: whose batch is read. `trains`: these models are the clients' own, so that their losses and
        BatchNorm's statistics count.
        """
        steps = self._steps
        gradients_kd, self.losses_k = steps.compute(
            models_cd, self._rows_k, self._batches, stream, trains
        )
        if trains:
            steps.sums_c[self.rows] += self.losses_k
            steps.passes_c[self.rows] += 1.0
        return gradients_kd

    def descend(
        self, models_cd: Tensor, gradients_kd: Tensor, optimizer: Optimizer | None = None
    ) -> None:
        """Take the step x_i <- x_i - eta direction(g_i) in the clients' rows of `models_cd`.

        The direction is that of the clients' own optimizer, or of another one for models in the same rows.
        May overwrite the gradients.
        """
        steps, rows_k = self._steps, self._rows_k
        optimizer = optimizer or steps.clients.optimizer
        points_kd = models_cd[self.rows]
        for run in runs(rows_k.tolist(), step=1):  # an optimizer's state is in rows of X
            rows = slice(int(rows_k[run.start]), int(rows_k[run.stop - 1]) + 1)
            direction_kd = optimizer.direction(gradients_kd[run], rows, points_kd[run])
            points_kd[run].add_(direction_kd, alpha=-steps.eta)
        self._write(points_kd, models_cd)

    def move(self, models_cd: Tensor, by_kd: Tensor, factor: float) -> None:
        """Add `factor` times other rows [k, d] to the clients' rows of `models_cd`."""
        self._write(models_cd[self.rows].add_(by_kd, alpha=factor), models_cd)

    def _write(self, models_kd: Tensor, models_cd: Tensor) -> None:
        """Write the clients' rows back, unless they are views."""
        if not isinstance(self.rows, slice):
            models_cd[self.rows] = models_kd
