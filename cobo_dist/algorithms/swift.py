"""SWIFT: clients average with the newest models that they hold (Bornstein et al., ICLR 2023)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from cobo_dist.algorithms.algorithm import Algorithm
from cobo_dist.algorithms.base import AlgorithmState, Clients, Exchange, RoundResult, RunContext
from cobo_dist.algorithms.communication_graph import CommunicationGraphConfig, edges
from cobo_dist.algorithms.neighbors import NeighborModels
from cobo_dist.lazy import torch
from cobo_dist.maths.flat import upload
from cobo_dist.maths.weights import Weights
from cobo_dist.registry import register


class SwiftConfig(CommunicationGraphConfig):
    """Averages with neighbors, without waiting for them."""

    name: Literal["swift"] = "swift"
    every: int = Field(
        1, ge=1, le=1_000_000, description="a client averages in each so many-th of its steps"
    )

    @property
    def compresses_models(self) -> bool:
        """Yes."""
        return True

    @property
    def runs_asynchronously(self) -> bool:
        """Yes."""
        return True

    def representative_rounds(self, rounds: int) -> list[tuple[int, int]]:
        """Rounds differ by whose step is one that averages."""
        period, (whole, rest) = min(self.every, rounds), divmod(rounds, self.every)
        return [(t, whole + (t < rest)) for t in range(period)]


@register.algorithm("swift")
class Swift(Algorithm):
    """x_i <- sum_j w_ij x_j - eta g_i(x_i), with the models x_j of the neighbors as they last arrived.

    In steps that do not average (`every`), x_i <- x_i - eta g_i(x_i). Weights are those of the client
    communication set for clients of equal influence: on a graph where all have equally many neighbors, each
    gives itself and them equal weights. Buffers stay with their clients. W is all ones: who may talk.
    """

    Config = SwiftConfig
    title, color, marker, place = "SWIFT", "#e377c2", "X", 61
    sums, all_linked = "none", True
    config: SwiftConfig

    def __init__(
        self, config: SwiftConfig, clients: Clients, exchange: Exchange, context: RunContext
    ) -> None:
        super().__init__(config, clients, exchange, context)
        self.neighbors = NeighborModels(clients, exchange, context)
        self._counted, self._steps_n = 0, np.zeros(context.clients, dtype=np.int64)

    def round(self, t: int) -> RoundResult:
        """Compute gradients, average where it is due, and step."""
        self.neighbors.begin_round(t)
        losses_c = self.clients.gradients(t)
        direction_cd, x_cd = self.clients.direction(), self.clients.x_cd
        part_n = self.context.taking_part(t)
        averages_n = part_n & (self.steps_before(t) % self.config.every == 0)
        if averages_n.any():
            weights = self.shares(t).among(self.context.heard(t) > 0, receivers_n=averages_n)
            sums_c = weights.sums(self.neighbors.factors(t))
            kept_c1 = upload(torch.from_numpy(1.0 - sums_c)[:, None], x_cd)
            for at, mixed in self.neighbors.mix(weights, t):
                x_cd[:, at].mul_(kept_c1).add_(mixed)
        x_cd.add_(direction_cd, alpha=-self.clients.eta(t))
        return RoundResult(losses_c)

    def steps_before(self, t: int) -> npt.NDArray[np.int64]:
        """Return how many steps each client took before round t, [n]."""
        if self.context.all_take_part:
            return np.full(self.context.clients, t)
        if t < self._counted:
            self._counted, self._steps_n = 0, np.zeros_like(self._steps_n)
        for one in range(self._counted, t):
            self._steps_n += self.context.taking_part(one)
        self._counted = t
        return self._steps_n

    def shares(self, t: int) -> Weights:
        """Return equal weights of each client for itself and its neighbors."""
        ids, n = np.array(self.clients.ids), self.context.clients
        heard_n = self.context.heard(t) > 0
        heard = int(heard_n.sum())
        if self.config.graph == "complete" or heard <= 3:
            level = 1.0 / max(1, heard)
            return Weights(ids, (0,) * n, level, self.weight_type, symmetric=True)
        weights = Weights(ids, range(n), 1.0 / 3.0, self.weight_type, symmetric=True)
        both_e2 = self.both_ways(edges("ring", heard_n))
        row_n = np.full(n, -1)
        row_n[ids] = np.arange(len(ids))
        mine_e2 = both_e2[row_n[both_e2[:, 0]] >= 0]
        weights.put(row_n[mine_e2[:, 0]], mine_e2[:, 1], np.full(len(mine_e2), 1.0 / 3.0))
        return weights

    @staticmethod
    def both_ways(pairs_k2: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return each pair in both orders."""
        return np.concatenate([pairs_k2, pairs_k2[:, ::-1]])

    def state(self) -> AlgorithmState:
        """Return the models that others read."""
        return AlgorithmState(rows=self.neighbors.rows)
