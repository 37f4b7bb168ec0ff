"""Federated clustering by thresholds (Werner, He, Karimireddy, Jordan, Jaggi, TMLR 2023)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.algorithms.algorithm import Algorithm, AlgorithmSection
from cobo_dist.algorithms.base import Clients, Exchange, RoundResult, RunContext, models_at_once
from cobo_dist.lazy import Tensor, torch
from cobo_dist.maths.flat import Scratch, take_rows, to_device, upload
from cobo_dist.registry import register


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

    @property
    def takes_one_step(self) -> bool:
        """Yes: gradients at one model are compared."""
        return True

    def comparisons(self, t: int, context: RunContext) -> float:
        """Around each client, all clients send a gradient and M distances."""
        return context.clients**2 * (1.0 + self.inner_rounds)


@register.algorithm("federated_clustering")
class FederatedClustering(Algorithm):
    """x_i <- x_i - eta v_i, where v_i is the mean of the gradients at x_i that lie within tau_i.

    For each client i, every client j computes g_j(x_i); v starts at g_i, and M times
    v <- mean_j (g_j if ||g_j - v|| <= tau, else v). tau is the distance of the s-th nearest gradient,
    s the known size of i's cluster. That is n^2 gradients a round, and x_i and v are sent to all ranks.
    Clients that do not take part in a round neither compute gradients nor step, and s counts those of the
    cluster that do. Sizes of 1 give Local. Row i of W marks the clients that were within i's threshold last.
    """

    Config = FederatedClusteringConfig
    title, color, marker, place = "FC", "#009e73", "X", 6
    learns_weights = True

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
        super().__init__(config, clients, exchange, context)
        n = self.n = context.clients
        # Allocated once: CUDA graphs are recorded for addresses.
        self.scratch = Scratch(clients.x_cd.dtype, clients.x_cd.device)
        self.cluster_n = np.unique(context.clusters, return_inverse=True)[1].reshape(-1)
        self.user_notice = (
            f"federated clustering computes n^2 = {n * n} gradients a round and moves every model and "
            f"{config.inner_rounds} centers for each client between all ranks"
        )

    def round(self, t: int) -> RoundResult:
        """Cluster around all clients, a group after the other, then step."""
        losses_c = self.clients.gradients(
            t
        )  # updates BatchNorm's statistics, unlike `gradients_at`
        part_n = self.context.taking_part(t)
        part_m = np.flatnonzero(part_n)
        numbers = len(part_m) * self.clients.size
        for group in models_at_once(len(part_m), numbers, self.clients.x_cd.device):
            self.cluster_around(part_m[group].tolist(), t, part_n)
        self.clients.x_cd.add_(self.clients.direction(), alpha=-self.clients.eta(t))
        return RoundResult(losses_c, weights_replaced=True)

    def cluster_around(self, group: list[int], t: int, part_n: NDArray[np.bool_]) -> None:
        """Put v_i of each client i in the group into its gradient row, where its owner's direction finds it.

        A group is as many clients as the gradients at all their models leave memory for. Distances of a
        whole group are read from the device at once.
        """
        clients, k, m = self.clients, len(group), int(part_n.sum())
        part_c = part_n[list(clients.ids)]
        rows_e, sizes_k = np.flatnonzero(part_c), np.bincount(self.cluster_n[part_n])
        only_kn = np.eye(self.n)[group]
        x_kd = self.exchange.all_reduce(only_kn, clients.x_cd)
        # The first model at all clients, then the next.
        points_ed = at_every_client(x_kd, len(rows_e), self.scratch)
        g_ed = clients.gradients_at(points_ed, np.tile(rows_e, k), t, "local", local_work=True)
        g_kcd = in_rows_of(rows_e, len(part_c), g_ed.view(k, len(rows_e), g_ed.shape[1]))
        v_kd = self.scratch.rows("centers", *x_kd.shape)
        v_kd.copy_(self.exchange.all_reduce(only_kn, g_kcd))  # g_i(x_i)
        for _ in range(self.config.inner_rounds):
            distances_kc = (g_kcd - v_kd[:, None]).norm(dim=2).cpu().double().numpy()
            distances_kc[:, ~part_c] = np.inf
            distances_kn = self.exchange.all_gather(distances_kc.T).T
            tau_k = np.sort(distances_kn)[np.arange(k), sizes_k[self.cluster_n[group]] - 1]
            within_kn = distances_kn <= tau_k[:, None]
            far_k1 = torch.from_numpy(1.0 - within_kn.sum(axis=1, keepdims=True) / m)
            near_kd = self.exchange.all_reduce(within_kn / m, g_kcd)
            v_kd.mul_(upload(far_k1, v_kd)).add_(near_kd)
        here = {i: row for row, i in enumerate(clients.ids)}
        mine = [at for at, i in enumerate(group) if i in here]
        rows = np.array([here[group[at]] for at in mine], dtype=np.int64)
        if mine:
            taken = v_kd.index_select(0, to_device(np.array(mine), v_kd.device))
            clients.g_cd.index_copy_(0, to_device(rows, v_kd.device), taken)
            self.weights.put_rows(rows, within_kn[mine].astype(np.float32))


def in_rows_of(rows_e: NDArray[np.int64], count: int, g_ked: Tensor) -> Tensor:
    """Return gradients [k, count, d] with those given in some rows and 0 in the others."""
    if len(rows_e) == count:
        return g_ked
    g_kcd = g_ked.new_zeros(len(g_ked), count, g_ked.shape[2])
    g_kcd[:, to_device(rows_e, g_ked.device)] = g_ked
    return g_kcd


def at_every_client(x_kd: Tensor, count: int, scratch: Scratch) -> Tensor:
    """Return each of k models `count` times, [k * count, d]; of a single model, which may be large, views."""
    if len(x_kd) == 1:
        return scratch.rows("point", *x_kd.shape).copy_(x_kd).expand(count, -1)
    points_ed = scratch.rows("points", len(x_kd) * count, x_kd.shape[1])
    take_rows(x_kd, to_device(np.arange(len(x_kd)).repeat(count), x_kd.device), points_ed)
    return points_ed
