"""What Wagner's strategies share (Wagner, Fan, Jaggi, arXiv 2404.09753): averages weighted by scores.

Shapes: n clients, c on this rank, m that take part, e of them on this rank.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.algorithms.algorithm import Algorithm
from cobo_dist.algorithms.base import RoundResult, RunContext
from cobo_dist.algorithms.fedavg import AveragingConfig
from cobo_dist.algorithms.local import local_step
from cobo_dist.algorithms.peers import average
from cobo_dist.maths.weights import Weights

Floats = NDArray[np.float64]


class ScoredAveragingConfig(AveragingConfig):
    """What a method can be told whose averages are weighted by scores."""

    temperature: float = Field(
        1.0, gt=0, description="of the softmax over scores: near 0 the best model takes all"
    )
    every: int = Field(
        1, ge=1, description="rounds from one average to the next; clients train alone in between"
    )

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


class ScoredAveraging(Algorithm):
    """A local step, then x_i <- sum_j w_ij x_j with w_i = softmax_j(-score_ij / temperature).

    The average is every `every` rounds. A client's own model has a score too. A very large temperature is
    FedAvg; one near 0 gives every client the model with the least score. Only clients that take part in the
    round score models, and only each other's. W holds the weights last used, at first the identity.
    """

    learns_weights = True
    config: Any

    @abstractmethod
    def scores(self, t: int, rows_e: NDArray[np.int64]) -> NDArray[np.floating]:
        """Return the scores [e, m] that the clients in `rows_e` give, in round t, to the models of the m
        clients that take part, in client order.
        """

    def round(self, t: int) -> RoundResult:
        """Take a local step; every `every` rounds, score all models and average them."""
        losses_c = local_step(self.clients, t)
        if (t + 1) % self.config.every:
            return RoundResult(losses_c)
        part_n, ids = self.context.taking_part(t), self.clients.ids
        rows = np.flatnonzero(part_n[list(ids)])
        weights_cn = np.eye(len(part_n), dtype=self.weights.dtype)[list(ids)]
        weights_cn[np.ix_(rows, np.flatnonzero(part_n))] = self.weigh(self.scores(t, rows))
        used = Weights.of_rows(ids, weights_cn)
        average(self.clients, self.exchange, used, self.config.buffers)
        if len(rows) < len(weights_cn):  # the others keep theirs for later rounds
            self.weights.put_rows(rows, weights_cn[rows])
        else:
            self.weights = used
        return RoundResult(losses_c, weights_replaced=True)

    def weigh(self, scores_em: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the softmax [e, m] of the negative scores."""
        above_em = scores_em - scores_em.min(axis=1, keepdims=True)
        parts_em = np.exp(-above_em / self.config.temperature)
        weights_em: NDArray[np.floating] = parts_em / parts_em.sum(axis=1, keepdims=True)
        return weights_em
