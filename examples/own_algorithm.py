"""FedProx (Li et al., MLSys 2020) as a plug-in: FedAvg whose local steps are pulled back to the common model.

python -m cobo_dist.train plugins=examples/own_algorithm.py algorithm.name=fedprox local.steps=5
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from cobo_dist import Algorithm, AlgorithmSection, RoundResult, Weights, register


@register.algorithm("fedprox")
class FedProx(Algorithm):
    """x <- mean_i x_i, where client i minimizes f_i(x_i) + mu/2 ||x_i - x||^2 from x. W is all ones."""

    class Config(AlgorithmSection):
        """FedAvg with a proximal term."""

        mu: float = Field(0.1, ge=0, description="pull towards the common model (FedAvg: 0)")

    title, color, marker, place = "FedProx", "#332288", "p", 21

    def first_weights(self) -> Weights:
        """Return all ones: every client counts for every other."""
        return Weights(self.clients.ids, (0,) * self.context.clients, symmetric=True)

    def round(self, t: int) -> RoundResult:
        """Work locally, then average the clients that take part."""
        x_cd = self.clients.x_cd
        start_cd = x_cd.clone()

        def pull(points: Tensor, gradients: Tensor, rows: NDArray[np.int64]) -> None:
            gradients.add_(points - start_cd[rows], alpha=self.config.mu)

        losses_c = self.clients.gradients(t, adjust=pull)
        x_cd.add_(self.clients.direction(), alpha=-self.clients.eta(t))
        part_n = self.context.taking_part(t)
        x_cd.copy_(self.exchange.all_reduce((part_n / part_n.sum())[None], x_cd))
        return RoundResult(losses_c)
