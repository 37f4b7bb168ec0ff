"""Validation based weights (Wagner et al., arXiv 2404.09753, their second strategy)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.algorithms.algorithm import Algorithm
from cobo_dist.algorithms.base import Clients, Exchange, RoundResult, RunContext
from cobo_dist.algorithms.fedavg import AveragingConfig
from cobo_dist.algorithms.local import local_step
from cobo_dist.lazy import torch
from cobo_dist.maths.weights import Weights
from cobo_dist.registry import register

MAX_LOSS = 700.0
"""Beyond this loss the perplexity is that of this loss: its exponential would not be finite."""


class ValidationBasedConfig(AveragingConfig):
    """Averages models, weighted by their scores on a client's validation data."""

    name: Literal["validation_based"] = "validation_based"
    score: Literal["loss", "perplexity"] = Field(
        "loss",
        description="what a model is scored by on a client's validation data: the mean loss, or perplexity, "
        "its exponential, which tells models apart that differ little in loss",
    )
    temperature: float = Field(
        1.0, gt=0, description="of the softmax over scores: near 0 the best model takes all"
    )
    batch_size: int = Field(
        32,
        ge=1,
        le=1_000_000,
        description="validation examples on which a client scores all models",
    )
    every: int = Field(
        1, ge=1, description="rounds from one average to the next; clients train alone in between"
    )

    @property
    def needs_validation(self) -> bool:
        """Yes: scores are losses on it."""
        return True

    def equal_share(self, clients: int) -> float:
        """Return 1/n: a client's own weight counts."""
        return 1.0 / clients

    def comparisons(self, t: int, context: RunContext) -> float:
        """Every client scores every model when it is time."""
        return 0.0 if (t + 1) % self.every else float(context.clients**2)

    def representative_rounds(self, rounds: int) -> list[tuple[int, int]]:
        """One round of local steps and one with an average."""
        averaged = rounds // self.every
        parts = [(0, rounds - averaged), (self.every - 1, averaged)]
        return [(t, count) for t, count in parts if count]


@register.algorithm("validation_based")
class ValidationBased(Algorithm):
    """A local step, then x_i <- sum_j w_ij x_j with w_i = softmax_j(-score_ij / temperature).

    score_ij is the loss of model j, or its exponential, the perplexity, on a batch of client i's validation
    data, its own model included; test data are never used. Models visit all ranks a few at a time, so a rank
    holds few others while it scores, each with that model's own BatchNorm statistics. A very large
    temperature is FedAvg; one near 0 gives every client the model with the least score. Only clients that
    take part in the round score models, and only each other's. W holds the weights last used, at first the
    identity.
    """

    Config = ValidationBasedConfig
    title, color, marker, place = "Validation based", "#7a1f5c", "h", 7
    learns_weights = True

    def __init__(
        self,
        config: ValidationBasedConfig,
        clients: Clients,
        exchange: Exchange,
        context: RunContext,
    ) -> None:
        super().__init__(config, clients, exchange, context)
        n = self.n = context.clients
        when = "a round" if config.every == 1 else f"every {config.every} rounds"
        self.user_notice = (
            f"validation based weights take n^2 = {n * n} forward passes {when}, and every model "
            "is sent to all ranks"
        )

    def round(self, t: int) -> RoundResult:
        """Take a local step; every `every` rounds, score all models and average them."""
        losses_c = local_step(self.clients, t)
        if (t + 1) % self.config.every:
            return RoundResult(losses_c)
        part_n = self.context.taking_part(t)
        rows = np.flatnonzero(part_n[list(self.clients.ids)])
        weights_cn = np.eye(self.n, dtype=self.weights.dtype)[list(self.clients.ids)]
        weights_cn[np.ix_(rows, np.flatnonzero(part_n))] = self.weigh(self.scores(t, rows))
        used = Weights.of_rows(self.clients.ids, weights_cn)
        self.average(used, self.clients.x_cd)
        if self.config.buffers == "averaged" and self.clients.b_cd.shape[1]:
            self.average(used, self.clients.b_cd)
        if len(rows) < len(weights_cn):  # the others keep theirs for later rounds
            self.weights.put_rows(rows, weights_cn[rows])
        else:
            self.weights = used
        return RoundResult(losses_c, weights_replaced=True)

    def scores(self, t: int, rows_e: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the scores of models on the validation batches of the clients in `rows_e`, in round t.

        [e, m], of the m clients that take part.
        """
        clients, parts, visitors = self.clients, [], []
        some_e = None if len(rows_e) == len(clients.ids) else rows_e
        part_n = self.context.taking_part(t)
        for ids_k, (x_kd, b_kb) in self.exchange.visits(clients.x_cd, clients.b_cd, among_n=part_n):
            visitors.append(ids_k)
            parts.append(
                clients.validation_losses_at(x_kd, b_kb, t, self.config.batch_size, some_e)
            )
        losses_em = torch.cat(parts, dim=1).cpu().numpy()[:, np.argsort(np.concatenate(visitors))]
        if self.config.score == "loss":
            return losses_em
        return np.exp(np.minimum(losses_em.astype(np.float64), MAX_LOSS))

    def weigh(self, scores_cn: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the softmax [c, n] of the negative scores."""
        above_cn = scores_cn - scores_cn.min(axis=1, keepdims=True)
        parts_cn = np.exp(-above_cn / self.config.temperature)
        weights_cn: NDArray[np.float64] = parts_cn / parts_cn.sum(axis=1, keepdims=True)
        return weights_cn

    def average(self, weights: Weights, rows_cd: torch.Tensor) -> None:
        """Replace every client's row by the weighted sum of all rows."""
        for at, mixed_cd in self.exchange.mix(weights, rows_cd):
            rows_cd[:, at].copy_(mixed_cd)
