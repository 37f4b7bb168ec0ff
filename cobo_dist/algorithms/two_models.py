"""What algorithms share that train a global model beside the clients' own."""

from __future__ import annotations

from typing import Any

import numpy as np

from cobo_dist.algorithms.algorithm import Algorithm
from cobo_dist.algorithms.base import AlgorithmState, Clients, Exchange, RunContext
from cobo_dist.lazy import Tensor
from cobo_dist.maths.flat import Scratch


class TwoModels(Algorithm):
    """Clients' models in X, and a global model w, which every rank keeps alike to the last bit.

    w starts at x^0; from models of another run (`run.init_from`) at their mean. Collaboration is fixed and
    equal: W is all ones.
    """

    sums, all_linked = "none", True

    def __init__(
        self, config: Any, clients: Clients, exchange: Exchange, context: RunContext
    ) -> None:
        """Start w."""
        super().__init__(config, clients, exchange, context)
        self.w_1d = common_start(clients, exchange, context.clients)
        self.scratch = Scratch(clients.x_cd.dtype, clients.x_cd.device)

    def copies(self) -> Tensor:
        """Return a copy w_i of w for each client of this rank [c, d], in rows that are used again."""
        return self.scratch.rows("copies", *self.clients.x_cd.shape).copy_(self.w_1d)

    def average(self, w_cd: Tensor, t: int, beta: float = 1.0) -> None:
        """Move w: w <- (1 - beta) w + beta mean_i w_i over the clients that take part in round t."""
        self.add_mean(self.w_1d, w_cd, t, beta)

    def add_mean(self, total_1d: Tensor, rows_cd: Tensor, t: int, beta: float = 1.0) -> None:
        """Replace a share beta of `total_1d` by the mean of the rows of clients that take part in round t.

        Where none of them counts, as without examples, nothing changes.
        """
        weights_n = self.context.client_weights(t, self.config.weighting)
        if among := weights_n.sum():
            mean_1d = self.exchange.all_reduce((weights_n / among)[None], rows_cd)
            total_1d.mul_(1.0 - beta).add_(mean_1d, alpha=beta)

    def state(self) -> AlgorithmState:
        """Return the global model."""
        return AlgorithmState(shared={"w": self.w_1d})


def common_start(clients: Clients, exchange: Exchange, n: int) -> Tensor:
    """Return x^0 [1, d], or the mean of all n clients' models where they come from another run."""
    if not clients.loaded:
        return clients.start_rows(1)
    mean_1d = exchange.all_reduce(np.full((1, n), 1.0 / n), clients.x_cd)
    return mean_1d.clone()  # the exchange uses its rows again
