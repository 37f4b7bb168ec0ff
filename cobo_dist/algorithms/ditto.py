"""Ditto: a global model, and personal models that are pulled towards it (Li et al., ICML 2021)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from cobo_dist.algorithms.algorithm import Algorithm
from cobo_dist.algorithms.base import AlgorithmState, Clients, Exchange, RoundResult, RunContext
from cobo_dist.algorithms.fedavg import WeightingConfig
from cobo_dist.algorithms.local import local_step, pull_to
from cobo_dist.algorithms.two_models import common_start
from cobo_dist.lazy import Tensor
from cobo_dist.maths.flat import to_device
from cobo_dist.registry import register


class DittoConfig(WeightingConfig):
    """Personal models near a global one."""

    name: Literal["ditto"] = "ditto"
    lambda_: float = Field(
        1.0,
        ge=0,
        le=1e15,
        alias="lambda",
        description="pull towards the global model (paper: 1 for vision, 0.1 for language)",
    )


@register.algorithm("ditto")
class Ditto(Algorithm):
    """v <- v - eta mean_i g_i(v) and x_i <- x_i - eta (g_i(x_i) + lambda (x_i - v)), both at v^t.

    A client takes both gradients on one batch. With several local steps, personal models are pulled in
    every one of them, and v moves by the mean over clients of their plain gradient steps from v. The global
    v is one more row on every rank, with a momentum of its own. `lambda=0` is Local; the larger lambda, the
    closer x_i stays to FedAvg's v. Only clients that take part step, and v is their mean.
    v starts at x^0; from models of another run (`run.init_from`) at their mean.
    Collaboration is fixed and equal: W is all ones.
    """

    Config = DittoConfig
    title, color, marker, place = "Ditto", "#e6a700", "D", 4
    all_linked = True

    sums = "none"

    def __init__(
        self, config: DittoConfig, clients: Clients, exchange: Exchange, context: RunContext
    ) -> None:
        super().__init__(config, clients, exchange, context)
        self.v_1d = common_start(clients, exchange, context.clients)
        self.global_optimizer = clients.new_optimizer(self.v_1d)

    def round(self, t: int) -> RoundResult:
        """Take the global step at the global model and the personal steps at the personal ones."""
        x_cd, v_1d, eta = self.clients.x_cd, self.v_1d, self.clients.eta(t)
        pull = eta * self.config.lambda_

        def step(rows: slice) -> None:
            """x_i (1 - eta lambda) + eta lambda v - eta g_i, in place."""
            direction_kd = self.clients.direction(rows)  # at x_i as it was
            x_kd = x_cd[rows].mul_(1.0 - pull).add_(v_1d, alpha=pull)
            x_kd.add_(direction_kd, alpha=-eta)

        if self.clients.several_steps:
            pull_to_v = pull_to(v_1d.expand_as(x_cd), self.config.lambda_)
            losses_c = local_step(self.clients, t, adjust=pull_to_v)
        else:
            losses_c = self.clients.gradients(t, on_rows_ready=step)
        weights_n = self.context.client_weights(t, self.config.weighting)
        if total := weights_n.sum():
            # Alike on all ranks to the last bit, so every rank keeps the same v.
            mean_1d = self.exchange.all_reduce((weights_n / total)[None], self.gradients_at_v(t))
            v_1d.add_(self.global_optimizer.direction(mean_1d), alpha=-eta)
        return RoundResult(losses_c)

    def gradients_at_v(self, t: int) -> Tensor:
        """Return g_i(v) [c, d] of the clients that take part; the other rows are any."""
        clients, rows = (
            self.clients,
            np.flatnonzero(self.context.taking_part(t)[list(self.clients.ids)]),
        )
        points_ed = self.v_1d.expand(len(rows), -1)
        gradients_ed = clients.gradients_at(points_ed, rows, t, "local", local_work=True)
        if len(rows) == len(clients.ids):
            return gradients_ed
        clients.g_cd[to_device(rows, clients.g_cd.device)] = gradients_ed  # read by now
        return clients.g_cd

    def state(self) -> AlgorithmState:
        """Return the global model and its optimizer's memory."""
        moments = self.global_optimizer.state()
        return AlgorithmState(
            shared={"v": self.v_1d, **{f"v.{name}": m for name, m in moments.items()}}
        )
