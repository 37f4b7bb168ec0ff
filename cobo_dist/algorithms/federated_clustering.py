"""Federated clustering by thresholds (Werner, He, Karimireddy, Jordan, Jaggi, TMLR 2023)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.algorithms.algorithm import Algorithm, AlgorithmSection
from cobo_dist.algorithms.base import Clients, Exchange, RoundResult, RunContext
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
    s the known size of i's cluster. That is n^2 gradients a round: x_i visits all ranks, and the gradients
    there go to i's owner, which clusters them.
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
            f"federated clustering computes n^2 = {n * n} gradients a round, and moves every model to all "
            "ranks and all gradients to their models' owners"
        )

    def round(self, t: int) -> RoundResult:
        """Cluster the gradients around all clients, a group after the other, then step."""
        clients = self.clients
        losses_c = clients.gradients(t)  # updates BatchNorm's statistics, unlike `gradients_at`
        part_n = self.context.taking_part(t)
        rows_e = np.flatnonzero(part_n[list(clients.ids)])
        numbers = int(part_n.sum()) * clients.size
        for _, (x_kd,) in self.exchange.visits(clients.x_cd, among_n=part_n, numbers=numbers):
            # The first model at all clients, then the next.
            points_ed = at_every_client(x_kd, len(rows_e), self.scratch)
            many_e = np.tile(rows_e, len(x_kd))
            g_ed = clients.gradients_at(points_ed, many_e, t, "local", local_work=True)
            g_ked = g_ed.view(len(x_kd), len(rows_e), g_ed.shape[1])
            self.cluster_around(*self.exchange.send_back(g_ked), part_n)
        clients.x_cd.add_(clients.direction(), alpha=-clients.eta(t))
        return RoundResult(losses_c, weights_replaced=True)

    def cluster_around(
        self, rows_h: NDArray[np.int64], g_hmd: Tensor, part_n: NDArray[np.bool_]
    ) -> None:
        """Put v_i of the clients in some rows into their gradient rows, where the direction finds them.

        `g_hmd` has the gradients at their models of all clients that take part. Distances of all are read
        from the device at once.
        """
        if not len(rows_h):
            return
        part_m, ids_h = np.flatnonzero(part_n), np.array(self.clients.ids)[rows_h]
        nearest_h = np.bincount(self.cluster_n[part_m])[self.cluster_n[ids_h]]  # s of each client
        own = np.arange(len(ids_h)), np.searchsorted(part_m, ids_h)
        v_hd = g_hmd[tuple(to_device(one, g_hmd.device) for one in own)]  # a copy of g_i(x_i)
        for _ in range(self.config.inner_rounds):
            distances_hm = (g_hmd - v_hd[:, None]).norm(dim=2).cpu().double().numpy()
            tau_h = np.sort(distances_hm)[np.arange(len(rows_h)), nearest_h - 1]
            within_hm = distances_hm <= tau_h[:, None]
            far_h1 = torch.from_numpy(1.0 - within_hm.mean(axis=1, keepdims=True))
            v_hd.mul_(upload(far_h1, v_hd)).add_(mean_of_near(g_hmd, within_hm))
        self.clients.g_cd.index_copy_(0, to_device(rows_h, v_hd.device), v_hd)
        weights_hn = np.zeros((len(rows_h), self.n), dtype=np.float32)
        weights_hn[:, part_m] = within_hm
        self.weights.put_rows(rows_h, weights_hn)


def mean_of_near(g_hmd: Tensor, within_hm: NDArray[np.bool_]) -> Tensor:
    """Return the sums of the gradients that are within [h, d], divided by m.

    On a CPU they are added in client order, so that the bits are those of any number of ranks.
    """
    weights_hm = torch.from_numpy(within_hm / within_hm.shape[1])
    terms_hmd = g_hmd * upload(weights_hm, g_hmd)[:, :, None]
    # A client that diverged is far from all others, and 0 times its gradient is not 0.
    far = to_device(torch.from_numpy(~within_hm), g_hmd.device)
    terms_hmd.masked_fill_(far[:, :, None], 0.0)
    if terms_hmd.is_cuda:  # where every addition costs a launch
        return terms_hmd.sum(dim=1)
    sums_hd = torch.zeros_like(terms_hmd[:, 0])
    for m in range(terms_hmd.shape[1]):
        sums_hd.add_(terms_hmd[:, m])
    return sums_hd


def at_every_client(x_kd: Tensor, count: int, scratch: Scratch) -> Tensor:
    """Return each of k models `count` times, [k * count, d]; of a single model, which may be large, views."""
    if len(x_kd) == 1:
        return scratch.rows("point", *x_kd.shape).copy_(x_kd).expand(count, -1)
    points_ed = scratch.rows("points", len(x_kd) * count, x_kd.shape[1])
    take_rows(x_kd, to_device(np.arange(len(x_kd)).repeat(count), x_kd.device), points_ed)
    return points_ed
