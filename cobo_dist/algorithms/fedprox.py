"""FedProx: FedAvg whose local steps are pulled back to the common model (Li et al., MLSys 2020)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cobo_dist.algorithms.algorithm import RunSettings
from cobo_dist.algorithms.fedavg import FedAvg, WeightedAveragingConfig
from cobo_dist.algorithms.local import local_step, pull_to
from cobo_dist.lazy import Tensor
from cobo_dist.registry import register


class FedProxConfig(WeightedAveragingConfig):
    """FedAvg with a proximal term in the local steps."""

    name: Literal["fedprox"] = "fedprox"
    mu: float = Field(
        0.1,
        ge=0,
        le=1e15,
        description="pull towards the common model (paper: 0.001, 0.01, 0.1 or 1); 0: FedAvg",
    )

    @property
    def step_keys(self) -> tuple[str, ...]:
        """`mu` multiplies the distance to the common model."""
        return ("algorithm.mu",)

    def unsuited(self, settings: RunSettings) -> str:
        """Refuse rounds of one local step, in which nothing is pulled."""
        if not self.mu or settings.most_steps > 1:
            return ""
        return (
            f"algorithm.name=fedprox with algorithm.mu={self.mu:g} is FedAvg where every client takes one "
            f"local step a round, since it starts at the model that mu pulls to; raise {settings.work_key}="
            f"{settings.work}, or set algorithm.name=fedavg"
        )


@register.algorithm("fedprox")
class FedProx(FedAvg):
    """x <- mean_i y_i, with local steps y_i <- y_i - eta (g_i(y_i) + mu (y_i - x)) from y_i = x.

    So client i minimizes f_i(y) + mu/2 ||y - x||^2, inexactly. The pull is part of the gradient, which the
    optimizer sees, and local.clip_norm does not clip it. `mu=0` is FedAvg. W is all ones.
    """

    Config = FedProxConfig
    title, color, marker, place = "FedProx", "#332288", "p", 11

    def train(self, t: int) -> Tensor:
        """Take the local steps; the rows of X are x^t until all of them are taken."""
        pull = pull_to(self.clients.x_cd, self.config.mu)
        return local_step(self.clients, t, adjust=pull)
