"""Similarity based weights (Wagner et al., arXiv 2404.09753, their first strategy)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.algorithms.learned_rows import products_and_squares
from cobo_dist.algorithms.named_columns import named_columns
from cobo_dist.algorithms.scored_averaging import Floats, ScoredAveraging, ScoredAveragingConfig
from cobo_dist.maths.alignment import cosine
from cobo_dist.maths.weights import Weights
from cobo_dist.registry import register
from cobo_dist.settings import Texts


class SimilarityBasedConfig(ScoredAveragingConfig):
    """Averages models, weighted by their cosines with a client's own."""

    name: Literal["similarity_based"] = "similarity_based"
    columns: Texts = Field(
        (),
        description="names or globs of the parameters whose cosines count, as ['*lora_B*']; empty: all. "
        "Averages are of whole models",
    )


@register.algorithm("similarity_based")
class SimilarityBased(ScoredAveraging):
    """score_ij = -cos(x_i, x_j): w_i = softmax_j(cos(x_i, x_j) / temperature).

    Cosines lie in [-1, 1], so at a temperature of 1 the largest weight of a row is at most e^2 times the
    least, and models that share most of their start are averaged nearly alike.
    """

    Config = SimilarityBasedConfig
    title, color, marker, place = "Similarity based", "#b07aa1", "h", 56
    config: SimilarityBasedConfig

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.compared = named_columns(self.clients, "columns", self.config.columns or ("*",))

    def scores(self, t: int, rows_e: NDArray[np.int64]) -> Floats:
        """Return the negative cosines [e, m] with the models of all clients that take part."""
        ids_c = np.array(self.clients.ids, dtype=np.int64)
        rows_ck = self.compared.take(self.clients.x_cd)
        products_cn, squares_n = products_and_squares(self.exchange, ids_c, rows_ck)
        cosines_cn = cosine(products_cn, squares_n[ids_c, None], squares_n)
        return -cosines_cn[np.ix_(rows_e, np.flatnonzero(self.context.taking_part(t)))]

    def possible_weights(self) -> dict[str, Weights | None]:
        """Return what `plan` counts beside equal weights: no two of them equal."""
        return {"any W": None}
