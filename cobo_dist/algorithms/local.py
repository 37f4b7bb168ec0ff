"""Local training: every client alone. The baseline that collaboration must beat."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from cobo_dist.algorithms.base import (
    Adjust,
    Algorithm,
    AlgorithmSection,
    Clients,
    Exchange,
    RoundResult,
    RunContext,
)
from cobo_dist.maths.weights import Weights


class LocalConfig(AlgorithmSection):
    """Every client on its own."""

    name: Literal["local"] = "local"


class Local(Algorithm):
    """x_i <- x_i - eta g_i(x_i). W is the identity."""

    user_notice = ""
    sums = "none"

    def __init__(
        self, config: LocalConfig, clients: Clients, exchange: Exchange, context: RunContext
    ) -> None:
        self.clients = clients
        self.weights = Weights(clients.ids, range(context.clients))

    def round(self, t: int) -> RoundResult:
        """Take one local step."""
        return RoundResult(local_step(self.clients, t))


def local_step(clients: Clients, t: int, adjust: Adjust | None = None) -> Tensor:
    """x_i <- x_i - eta g_i(x_i) for every client by itself; return the losses [c]."""

    def step(rows: slice) -> None:
        clients.x_cd[rows].add_(clients.direction(rows), alpha=-clients.eta(t))

    return clients.gradients(t, on_rows_ready=step, adjust=adjust)
