"""Validation based weights (Wagner et al., arXiv 2404.09753, their second strategy)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.algorithms.scored_averaging import ScoredAveraging, ScoredAveragingConfig
from cobo_dist.lazy import torch
from cobo_dist.registry import register

MAX_LOSS = 700.0
"""Beyond this loss the perplexity is that of this loss: its exponential would not be finite."""


class ValidationBasedConfig(ScoredAveragingConfig):
    """Averages models, weighted by their scores on a client's validation data."""

    name: Literal["validation_based"] = "validation_based"
    score: Literal["loss", "perplexity"] = Field(
        "loss",
        description="what a model is scored by on a client's validation data: the mean loss, or perplexity, "
        "its exponential, which tells models apart that differ little in loss",
    )
    batch_size: int = Field(
        32,
        ge=1,
        le=1_000_000,
        description="validation examples on which a client scores all models",
    )

    @property
    def needs_validation(self) -> bool:
        """Yes: scores are losses on it."""
        return True


@register.algorithm("validation_based")
class ValidationBased(ScoredAveraging):
    """score_ij is the loss of model j, or its exponential, the perplexity, on i's validation data.

    That is on a batch of it, in each round with an average; test data are never used. Models visit all ranks
    a few at a time, so a rank holds few others while it scores, each with that model's own BatchNorm
    statistics.
    """

    Config = ValidationBasedConfig
    title, color, marker, place = "Validation based", "#7a1f5c", "h", 7
    config: ValidationBasedConfig

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        n, every = self.context.clients, self.config.every
        when = "a round" if every == 1 else f"every {every} rounds"
        self.user_notice = (
            f"validation based weights take n^2 = {n * n} forward passes {when}, and every model "
            "is sent to all ranks"
        )

    def scores(self, t: int, rows_e: NDArray[np.int64]) -> NDArray[np.floating]:
        """Return the scores [e, m] of all models on the clients' validation batches."""
        clients, parts, visitors = self.clients, [], []
        some_e = None if len(rows_e) == len(clients.ids) else rows_e
        part_n = self.context.taking_part(t)
        for ids_k, (x_kd, b_kb) in self.exchange.visits(clients.x_cd, clients.b_cd, among_n=part_n):
            visitors.append(ids_k)
            parts.append(
                clients.validation_losses_at(x_kd, b_kb, t, self.config.batch_size, some_e)
            )
        losses_em: NDArray[np.floating] = torch.cat(parts, dim=1).cpu().numpy()
        losses_em = losses_em[:, np.argsort(np.concatenate(visitors))]
        if self.config.score == "loss":
            return losses_em
        perplexities_em: NDArray[np.floating] = np.exp(
            np.minimum(losses_em.astype(np.float64), MAX_LOSS)
        )
        return perplexities_em
