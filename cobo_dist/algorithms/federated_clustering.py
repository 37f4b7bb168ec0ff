"""Federated clustering by thresholds (Werner, He, Karimireddy, Jordan, Jaggi, TMLR 2023)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from cobo_dist.algorithms.base import (
    Algorithm,
    AlgorithmSection,
    Clients,
    Exchange,
    RoundResult,
    RunContext,
)
from cobo_dist.maths.weights import Weights


class FederatedClusteringConfig(AlgorithmSection):
    """Averages of the gradients that lie near a client's own."""

    name: Literal["federated_clustering"] = "federated_clustering"
    inner_rounds: int = Field(
        3,
        ge=1,
        le=10_000,
        description="threshold clustering steps M around each client (paper: not given)",
    )

    @property
    def needs_clusters(self) -> bool:
        """Yes: their sizes are given."""
        return True

    def comparisons(self, t: int, context: RunContext) -> float:
        """Around each client, all clients send a gradient and M distances."""
        return context.clients**2 * (1.0 + self.inner_rounds)


class FederatedClustering(Algorithm):
    """x_i <- x_i - eta v_i, where v_i is the mean of the gradients at x_i that lie within tau_i.

    For each client i, every client j computes g_j(x_i); v starts at g_i, and M times
    v <- mean_j (g_j if ||g_j - v|| <= tau, else v). tau is the distance of the s-th nearest gradient,
    s the known size of i's cluster. That is n^2 gradients a round, and x_i and v are sent to all ranks.
    Sizes of 1 give Local. Row i of W marks the clients that were within i's threshold last.
    """

    sums = "none"  # of one client at a time

    def __init__(
        self,
        config: FederatedClusteringConfig,
        clients: Clients,
        exchange: Exchange,
        context: RunContext,
    ) -> None:
        if context.clusters is None:
            raise ValueError("federated clustering needs a task with known clusters")
        self.config, self.clients, self.exchange = config, clients, exchange
        n = self.n = context.clients
        _, cluster_n, sizes = np.unique(context.clusters, return_inverse=True, return_counts=True)
        self.sizes_n = sizes[cluster_n].tolist()
        self.weights = Weights(clients.ids, range(n))
        self.every_c = np.arange(len(clients.ids))
        self.user_notice = (
            f"federated clustering computes n^2 = {n * n} gradients a round and moves every model and "
            f"{config.inner_rounds} centers for each client between all ranks"
        )

    def round(self, t: int) -> RoundResult:
        """Cluster around every client in turn, then step."""
        losses_c = self.clients.gradients(
            t
        )  # updates BatchNorm's statistics; `gradients_at` does not
        for i in range(self.n):
            self.cluster_around(i, t)
        self.clients.x_cd.add_(self.clients.direction(), alpha=-self.clients.eta(t))
        return RoundResult(losses_c, weights_replaced=True)

    def cluster_around(self, i: int, t: int) -> None:
        """Put v_i into the gradient row of client i, where its owner's direction finds it."""
        only_i = np.zeros((1, self.n))
        only_i[0, i] = 1.0
        x_1d = self.exchange.all_reduce(only_i, self.clients.x_cd)
        visited_cd = x_1d.clone().expand_as(self.clients.x_cd)
        g_cd = self.clients.gradients_at(visited_cd, self.every_c, t, "local")
        v_1d = self.exchange.all_reduce(only_i, g_cd).clone()
        for _ in range(self.config.inner_rounds):
            distances_n = self.exchange.all_gather((g_cd - v_1d).norm(dim=1).double().cpu().numpy())
            tau = np.sort(distances_n)[self.sizes_n[i] - 1]
            within_n = distances_n <= tau
            near_1d = self.exchange.all_reduce(within_n[None] / self.n, g_cd)
            v_1d.mul_(1.0 - within_n.mean()).add_(near_1d)
        if i in self.clients.ids:
            row = self.clients.ids.index(i)
            self.clients.g_cd[row].copy_(v_1d[0])
            self.weights.put_rows(np.array([row]), within_n[None].astype(np.float32))
