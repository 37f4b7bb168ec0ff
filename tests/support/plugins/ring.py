"""Gossip over a directed ring, with a key that another algorithm has too."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from cobo_dist import Algorithm, AlgorithmSection, RoundResult, Weights, register


@register.algorithm("ring")
class Ring(Algorithm):
    """x_i <- (1 - gamma) (x_i - eta g_i) + gamma (x_k - eta g_k) with k = i + 1."""

    class Config(AlgorithmSection):
        """Gossip over a directed ring."""

        gamma: float = Field(0.5, ge=0, le=1, description="weight of the next client")

    title, color, marker, place = "Directed ring", "#117733", "*", 20

    def first_weights(self) -> Weights:
        """Return the ring."""
        ids, n = np.array(self.clients.ids), self.context.clients
        w_cn = np.zeros((len(ids), n), dtype=self.weight_type)
        w_cn[np.arange(len(ids)), ids] = 1.0 - self.config.gamma
        w_cn[np.arange(len(ids)), (ids + 1) % n] += self.config.gamma
        return Weights.of_rows(ids, w_cn)

    def round(self, t: int) -> RoundResult:
        """Step, then mix with the next client."""
        x_cd = self.clients.x_cd
        losses_c = self.clients.gradients(t)
        x_cd.add_(self.clients.direction(), alpha=-self.clients.eta(t))
        for at, mixed in self.exchange.mix(self.weights, x_cd):
            x_cd[:, at].copy_(mixed)
        return RoundResult(losses_c)
