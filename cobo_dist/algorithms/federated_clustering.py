"""Federated clustering by thresholds (Werner, He, Karimireddy, Jordan, Jaggi, TMLR 2023)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.algorithms.all_gradients import AllGradients, AllGradientsConfig, weighted_sums
from cobo_dist.algorithms.base import Clients, Exchange, RunContext
from cobo_dist.lazy import Tensor, torch
from cobo_dist.maths.flat import to_device, upload
from cobo_dist.registry import register


class FederatedClusteringConfig(AllGradientsConfig):
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


@register.algorithm("federated_clustering")
class FederatedClustering(AllGradients):
    """x_i <- x_i - eta v_i, where v_i is the mean of the gradients at x_i that lie within tau_i.

    For each client i, every client j computes g_j(x_i); v starts at g_i, and M times
    v <- mean_j (g_j if ||g_j - v|| <= tau, else v). tau is the distance of the s-th nearest gradient,
    s the known size of i's cluster in round t, of those that take part. Sizes of 1 give Local.
    Row i of W marks the clients that were within i's threshold last.
    """

    Config = FederatedClusteringConfig
    title, color, marker, place = "FC", "#009e73", "X", 6
    learns_weights = True

    def __init__(
        self,
        config: FederatedClusteringConfig,
        clients: Clients,
        exchange: Exchange,
        context: RunContext,
    ) -> None:
        if context.clusters is None:
            raise ValueError("federated clustering needs a task with known clusters")
        super().__init__(config, clients, exchange, context)

    def combine(
        self, rows_h: NDArray[np.int64], g_hmd: Tensor, part_n: NDArray[np.bool_], t: int
    ) -> Tensor:
        """Cluster the gradients around each client. Distances of all are read from the device at once."""
        part_m, ids_h = np.flatnonzero(part_n), np.array(self.clients.ids)[rows_h]
        clusters: Any = self.context.clusters_at(t)
        cluster_n = np.unique(clusters, return_inverse=True)[1].reshape(-1)
        nearest_h = np.bincount(cluster_n[part_m])[cluster_n[ids_h]]  # s of each client
        v_hd = self.own_gradients(rows_h, g_hmd, part_n)
        for _ in range(self.config.inner_rounds):
            distances_hm = (g_hmd - v_hd[:, None]).norm(dim=2).cpu().double().numpy()
            tau_h = np.sort(distances_hm)[np.arange(len(rows_h)), nearest_h - 1]
            within_hm = distances_hm <= tau_h[:, None]
            far_h1 = torch.from_numpy(1.0 - within_hm.mean(axis=1, keepdims=True))
            equal_hm = upload(torch.from_numpy(within_hm / len(part_m)), g_hmd)
            without_hm = to_device(~within_hm, g_hmd.device)
            v_hd.mul_(upload(far_h1, v_hd)).add_(weighted_sums(g_hmd, equal_hm, without_hm))
        weights_hn = np.zeros((len(rows_h), len(part_n)), dtype=np.float32)
        weights_hn[:, part_m] = within_hm
        self.weights.put_rows(rows_h, weights_hn)
        return v_hd
