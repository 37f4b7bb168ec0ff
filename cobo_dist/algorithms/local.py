"""Local training: every client alone. The baseline that collaboration must beat."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cobo_dist.algorithms.algorithm import Algorithm, AlgorithmSection
from cobo_dist.algorithms.base import Adjust, Clients, Columns, RoundResult
from cobo_dist.lazy import Tensor
from cobo_dist.maths.flat import some_rows
from cobo_dist.maths.weights import Weights
from cobo_dist.registry import register


class LocalConfig(AlgorithmSection):
    """Every client on its own."""

    name: Literal["local"] = "local"

    @property
    def runs_asynchronously(self) -> bool:
        """Yes."""
        return True


@register.algorithm("local")
class Local(Algorithm):
    """x_i <- x_i - eta g_i(x_i). W is the identity."""

    Config = LocalConfig
    title, color, marker, place = "Local", "#7f7f7f", "s", 1
    role = "alone"

    sums = "none"

    def first_weights(self) -> Weights:
        """Return the identity, which stays."""
        return Weights(self.clients.ids, range(self.context.clients), symmetric=True)

    def round(self, t: int) -> RoundResult:
        """Take one local step."""
        return RoundResult(local_step(self.clients, t))


def local_step(
    clients: Clients,
    t: int,
    adjust: Adjust | None = None,
    only: Columns | None = None,
    work: slice = slice(None),
) -> Tensor:
    """x_i <- x_i - eta g_i(x_i) for every client by itself; return the losses [c].

    `adjust`, `only` and `work` are those of `Clients.gradients`.
    """

    def step(rows: slice) -> None:
        clients.x_cd[rows].add_(clients.direction(rows), alpha=-clients.eta(t))

    return clients.gradients(t, on_rows_ready=step, adjust=adjust, only=only, work=work)


def pull_to(anchors_cd: Tensor, strength: float) -> Adjust:
    """Return what adds the gradient of strength/2 ||y - a_i||^2 to client i's local gradients at y.

    `anchors_cd` has a_i in the client's row.
    """

    def pull(points_kd: Tensor, gradients_kd: Tensor, rows_k: NDArray[np.int64]) -> None:
        anchors_kd = some_rows(anchors_cd, rows_k)
        gradients_kd.add_(points_kd, alpha=strength).sub_(anchors_kd, alpha=strength)

    return pull
