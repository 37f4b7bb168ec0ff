"""Prediction based weights (Wagner et al., arXiv 2404.09753, their third strategy)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.algorithms.peers import signature_distances
from cobo_dist.algorithms.scored_averaging import Floats, ScoredAveraging, ScoredAveragingConfig
from cobo_dist.maths.weights import Weights
from cobo_dist.registry import register

SCALE = 10.0
"""What the distances of a client sum to, as in the authors' code."""


class PredictionBasedConfig(ScoredAveragingConfig):
    """Averages models, weighted by how alike they predict on shared examples."""

    name: Literal["prediction_based"] = "prediction_based"
    examples: int = Field(
        32,
        ge=1,
        le=1_000_000,
        description="shared examples, without labels, that all models predict: of the clients' validation "
        "data in turn",
    )
    top: int = Field(
        100,
        ge=1,
        le=1_000_000,
        description="largest logits of a prediction that a client shows; the others count as 0",
    )

    @property
    def needs_validation(self) -> bool:
        """Yes: shared examples are of them."""
        return True

    @property
    def needs_predictions(self) -> bool:
        """Yes: clients show them."""
        return True


@register.algorithm("prediction_based")
class PredictionBased(ScoredAveraging):
    """score_ij = 10 |p_i - p_j| / sum_k |p_i - p_k|, with p_i the logits of client i on shared examples.

    |.| is the sum of absolute values, and the sum is over all clients that take part. Predictions visit all
    ranks, and models only travel to be averaged.
    """

    Config = PredictionBasedConfig
    title, color, marker, place = "Prediction based", "#9e4f8b", "<", 59
    config: PredictionBasedConfig

    def scores(self, t: int, rows_e: NDArray[np.int64]) -> Floats:
        """Return the shares [e, m] of a client's distances that are those from each model, times 10."""
        shown = self.clients.prediction_signatures(self.config.examples, self.config.top)
        part_n = self.context.taking_part(t)
        distances_cn = signature_distances(shown, self.exchange, part_n)
        distances_em = distances_cn[np.ix_(rows_e, np.flatnonzero(part_n))]
        totals_e1 = distances_em.sum(axis=1, keepdims=True)
        return SCALE * distances_em / np.where(totals_e1 > 0, totals_e1, 1.0)

    def possible_weights(self) -> dict[str, Weights | None]:
        """Return what `plan` counts beside equal weights: no two of them equal."""
        return {"any W": None}
