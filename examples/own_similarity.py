"""Shared bodies, own heads: clients average the columns of the body with those whose bodies are like theirs.

python -m cobo_dist.train plugins=examples/own_similarity.py algorithm.name=similar_bodies
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from cobo_dist import Algorithm, AlgorithmSection, RoundResult, Weights, register


@register.algorithm("similar_bodies")
class SimilarBodies(Algorithm):
    """A local step, then the body of x_i <- sum_j w_ij (body of x_j), w_i = softmax_j(sharpness cos_ij).

    `sharpness=0` is FedPer: the average of all bodies, while every client keeps its head.
    """

    class Config(AlgorithmSection):
        """Averages of the bodies of similar models."""

        head: str = Field("5", description="name of the parameters that stay with their client")
        sharpness: float = Field(5.0, ge=0, description="of the softmax over cosines")

        def equal_share(self, clients: int) -> float:
            """Return 1/n: rows of W sum to 1."""
            return 1.0 / clients

    title, color, marker, place = "Similar bodies", "#44aa99", "D", 22
    learns_weights = True

    def __init__(self, *parts: Any) -> None:
        """Find the columns of the body."""
        super().__init__(*parts)
        self.body = self.clients.columns(self.config.head, others=True)

    def possible_weights(self) -> dict[str, Weights | None]:
        """Return what `plan` counts beside equal weights: no two of them equal."""
        return {"any W": None}

    def round(self, t: int) -> RoundResult:
        """Work locally; then compare the bodies of all clients, and mix them."""
        x_cd, ids = self.clients.x_cd, list(self.clients.ids)
        losses_c = self.clients.gradients(t)
        x_cd.add_(self.clients.direction(), alpha=-self.clients.eta(t))

        body_ck = self.body.take(x_cd)
        products_cn = self.exchange.gram(body_ck)
        norms_n = np.sqrt(self.exchange.all_gather(products_cn[np.arange(len(ids)), ids]))
        cosines_cn = products_cn / np.maximum(norms_n[ids, None] * norms_n, np.finfo(float).tiny)
        weights_cn = np.exp(self.config.sharpness * (cosines_cn - 1.0))
        weights_cn /= weights_cn.sum(axis=1, keepdims=True)

        self.weights = Weights.of_rows(self.clients.ids, weights_cn.astype(self.weight_type))
        for at, mixed_ck in self.exchange.mix(self.weights, body_ck):
            body_ck[:, at] = mixed_ck
        self.body.put(body_ck, x_cd)
        return RoundResult(losses_c, weights_replaced=True)
