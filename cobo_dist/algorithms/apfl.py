"""APFL: adaptive personalized federated learning (Deng, Kamani and Mahdavi, arXiv 2003.13461, 2020)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cobo_dist.algorithms.algorithm import RunSettings
from cobo_dist.algorithms.base import AlgorithmState, Clients, Exchange, RoundResult, RunContext
from cobo_dist.algorithms.fedavg import WeightingConfig
from cobo_dist.algorithms.two_models import TwoModels
from cobo_dist.lazy import Tensor
from cobo_dist.maths.alignment import dots
from cobo_dist.registry import register


class ApflConfig(WeightingConfig):
    """Mixtures of a personal model and a global one."""

    name: Literal["apfl"] = "apfl"
    alpha: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the personal model in the mixture, at the start if it is adaptive (paper: "
        "0.25, 0.5, 0.75; fixed at 1 it is Local, at 0 FedAvg)",
    )
    adaptive: bool = Field(
        True,
        description="whether each client's alpha descends the loss of its mixture, in steps of eta",
    )

    def unsuited(self, settings: RunSettings) -> str:
        """Refuse AdamW: v_i would move as far for any alpha_i."""
        return settings.without_size("apfl", "alpha_i")


@register.algorithm("apfl")
class Apfl(TwoModels):
    """x_i = alpha_i v_i + (1 - alpha_i) w_i, with a personal v_i and a client's copy w_i of a global w.

    In each local step, on one batch: w_i <- w_i - eta g_i(w_i), v_i <- v_i - eta alpha_i g_i(x_i), and if
    alpha is adaptive, alpha_i <- clip(alpha_i - eta <v_i - w_i, g_i(x_i)>, 0, 1). After a round w = mean w_i
    over the clients that take part, which then have x_i = alpha_i v_i + (1 - alpha_i) w. The others keep all.
    That is two gradients a local step. v_i moves by the client's optimizer, w_i by one of its own.
    BatchNorm's statistics are those of x_i. Fixed alpha = 1 is Local, 0 is FedAvg. W is all ones.
    """

    Config = ApflConfig
    title, color, marker, place = "APFL", "#6a3d9a", "<", 20

    def __init__(
        self, config: ApflConfig, clients: Clients, exchange: Exchange, context: RunContext
    ) -> None:
        super().__init__(config, clients, exchange, context)
        self.v_cd = clients.x_cd.clone()
        self.alpha_c = clients.x_cd.new_full((len(clients.ids),), config.alpha)
        self.w_optimizer = clients.new_optimizer(clients.x_cd)
        if not config.adaptive and config.alpha in (0.0, 1.0):
            other = "Local" if config.alpha else "FedAvg"
            self.user_notice = f"APFL with alpha fixed at {config.alpha:g} is {other}"

    def round(self, t: int) -> RoundResult:
        """Take the local steps of both models and of alpha, then average the copies of the global one."""
        x_cd, v_cd, w_cd = self.clients.x_cd, self.v_cd, self.copies()
        steps = self.clients.local_steps(t)
        for step in steps:
            rows = step.rows
            x_cd[rows] = self.mixture(rows, w_cd[rows])
            g_kd = step.gradients(x_cd, trains=True)
            slopes_k = dots(v_cd[rows] - w_cd[rows], g_kd)  # of the loss, along alpha
            step.descend(v_cd, g_kd.mul_(self.alpha_c[rows, None]))
            step.descend(w_cd, step.gradients(w_cd), self.w_optimizer)
            if self.config.adaptive:
                moved_k = self.alpha_c[rows] - self.clients.eta(t) * slopes_k
                self.alpha_c[rows] = moved_k.clamp_(0.0, 1.0)
        self.average(w_cd, t)
        x_cd[steps.rows] = self.mixture(steps.rows, self.w_1d)
        return RoundResult(steps.losses())

    def mixture(self, rows: slice | Tensor, w_kd: Tensor) -> Tensor:
        """Return alpha_i v_i + (1 - alpha_i) w [k, d] of the clients in some rows."""
        alpha_k1 = self.alpha_c[rows, None]
        return alpha_k1 * self.v_cd[rows] + (1.0 - alpha_k1) * w_kd

    def state(self) -> AlgorithmState:
        """Return the personal models, alpha, the global model, and the moments of its copies."""
        moments = {f"w.{name}": rows for name, rows in self.w_optimizer.state().items()}
        return AlgorithmState(
            rows={"v": self.v_cd, "alpha": self.alpha_c, **moments}, shared={"w": self.w_1d}
        )
