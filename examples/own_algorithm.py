"""An algorithm as a plug-in: every client keeps a model of its own, near the mean of all models.

python -m cobo_dist.train plugins=examples/own_algorithm.py algorithm.name=near_mean local.steps=5
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from cobo_dist import Algorithm, AlgorithmSection, RoundResult, Weights, register


@register.algorithm("near_mean")
class NearMean(Algorithm):
    """Client i minimizes f_i(x_i) + mu/2 ||x_i - m||^2, m being the mean of the models. W is all ones."""

    class Config(AlgorithmSection):
        """Own models near their mean."""

        mu: float = Field(0.1, ge=0, description="pull towards the mean of the models (Local: 0)")

    title, color, marker, place = "Near the mean", "#aa7744", "d", 21

    def first_weights(self) -> Weights:
        """Return all ones: every client counts for every other."""
        return Weights(self.clients.ids, (0,) * self.context.clients, symmetric=True)

    def round(self, t: int) -> RoundResult:
        """Average the models of the clients that take part; then work locally, pulled to the mean."""
        x_cd = self.clients.x_cd
        part_n = self.context.taking_part(t)
        mean_1d = self.exchange.all_reduce((part_n / part_n.sum())[None], x_cd)

        def pull(points: Tensor, gradients: Tensor, rows: NDArray[np.int64]) -> None:
            gradients.add_(points - mean_1d, alpha=self.config.mu)

        losses_c = self.clients.gradients(t, adjust=pull)
        x_cd.add_(self.clients.direction(), alpha=-self.clients.eta(t))
        return RoundResult(losses_c)
