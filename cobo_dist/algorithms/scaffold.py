"""SCAFFOLD: FedAvg whose local steps are corrected by control variates (Karimireddy et al., ICML 2020)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.algorithms.algorithm import RunSettings
from cobo_dist.algorithms.base import (
    AlgorithmState,
    Clients,
    Exchange,
    Newcomers,
    RoundResult,
    RunContext,
)
from cobo_dist.algorithms.fedavg import FedAvg, WeightedAveragingConfig
from cobo_dist.algorithms.two_models import common_start
from cobo_dist.lazy import Tensor, torch
from cobo_dist.maths.flat import some_rows, to_device, upload
from cobo_dist.registry import register


class ScaffoldConfig(WeightedAveragingConfig):
    """FedAvg with control variates."""

    name: Literal["scaffold"] = "scaffold"
    global_lr: float = Field(
        1.0, gt=0, le=1e15, description="step size eta_g of the common model (paper: 1)"
    )

    @property
    def step_keys(self) -> tuple[str, ...]:
        """`global_lr` multiplies the clients' mean step."""
        return ("algorithm.global_lr",)

    def unsuited(self, settings: RunSettings) -> str:
        """Refuse momentum: (x - y_i) / (K_i eta) must be the mean of the gradients of this round."""
        if settings.optimizer != "adamw" and not settings.momentum:
            return ""
        given = f"optimizer.momentum={settings.momentum:g}"
        if settings.optimizer == "adamw":
            given = "optimizer.name=adamw"
        return (
            f"algorithm.name=scaffold corrects plain gradient steps, and {given} mixes gradients of earlier "
            "rounds in; set optimizer.name=sgd and optimizer.momentum=0"
        )


@register.algorithm("scaffold")
class Scaffold(FedAvg):
    """y_i <- y_i - eta (g_i(y_i) - c_i + c) from y_i = x, K_i times; then, S being who takes part,

    c_i' = c_i - c + (x - y_i) / (K_i eta),
    x <- x + eta_g mean_S (y_i - x),
    c <- c + |S|/n mean_S (c_i' - c_i).

    K_i is the client's own number of local steps. With one step, c_i' is its gradient at x. Control variates
    start at 0. `weighting` examples: means are weighted, and c stays the weighted mean of the c_i of all
    clients. x starts at x^0, or at the mean of the models of another run (`run.init_from`). W is all ones.
    """

    Config = ScaffoldConfig
    title, color, marker, place = "SCAFFOLD", "#882255", "X", 17

    def __init__(
        self, config: ScaffoldConfig, clients: Clients, exchange: Exchange, context: RunContext
    ) -> None:
        super().__init__(config, clients, exchange, context)
        n = context.clients
        self.x_1d = common_start(clients, exchange, n)
        self.c_cd = torch.zeros_like(clients.x_cd)
        self.c_1d = torch.zeros_like(self.x_1d)
        self.counts_n = np.ones(n) if config.weighting == "equal" else np.asarray(context.examples)

    def join(self, t: int, newcomers: Newcomers) -> None:
        """Give clients that join the common model."""
        rows = np.flatnonzero(np.isin(self.clients.ids, newcomers.ids_k))
        self.clients.x_cd[to_device(rows, self.x_1d.device)] = self.x_1d

    def round(self, t: int) -> RoundResult:
        """Take corrected local steps; then move x, c and the c_i of the clients that take part."""
        clients, c_cd, c_1d = self.clients, self.c_cd, self.c_1d
        if t == 0:
            clients.x_cd.copy_(self.x_1d)  # clients may start elsewhere

        def correct(points_kd: Tensor, gradients_kd: Tensor, rows_k: NDArray[np.int64]) -> None:
            """g_i(y) - c_i + c."""
            gradients_kd.sub_(some_rows(c_cd, rows_k)).add_(c_1d)

        losses_c = clients.gradients(t, adjust=correct)
        moved_cd = clients.direction()  # (x - y_i) / eta, so that eta may be 0
        weights_n = self.context.client_weights(t, self.config.weighting)
        if among := weights_n.sum():
            mean_1d = self.exchange.all_reduce((weights_n / among)[None], moved_cd)
            self.x_1d.add_(mean_1d, alpha=-self.config.global_lr * clients.eta(t))
            part_c = torch.from_numpy(self.context.taking_part(t)[list(clients.ids)])
            share_c = torch.from_numpy(1.0 / clients.local_steps_c)
            change_cd = moved_cd.mul_(upload(share_c[:, None], moved_cd)).sub_(c_1d)
            total = float(self.counts_n[self.context.members(t)].sum())
            c_cd.addcmul_(change_cd, upload(part_c[:, None], c_cd))
            c_1d.add_(self.exchange.all_reduce((weights_n / total)[None], change_cd))
        clients.x_cd.copy_(self.x_1d)
        if self.config.buffers == "averaged" and clients.b_cd.shape[1]:
            self.average(clients.b_cd, t)
        return RoundResult(losses_c)

    def state(self) -> AlgorithmState:
        """Return the common model and all control variates."""
        return AlgorithmState(rows={"c_i": self.c_cd}, shared={"x": self.x_1d, "c": self.c_1d})
