"""Steps by the gradients of all clients at each client's model, which subclasses combine.

Shapes: c clients on this rank, n in all, m of them take part, h visitors of this rank, d parameters.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from cobo_dist.algorithms.algorithm import Algorithm, AlgorithmSection
from cobo_dist.algorithms.base import Clients, Exchange, RoundResult, RunContext
from cobo_dist.lazy import Tensor, torch
from cobo_dist.maths.flat import Scratch, take_rows, to_device


class AllGradientsConfig(AlgorithmSection):
    """What methods have in common that compare the gradients of all clients at one model."""

    @property
    def takes_one_step(self) -> bool:
        """Yes: gradients at one model are compared."""
        return True

    def comparisons(self, t: int, context: RunContext) -> float:
        """At each client's model, all clients compute a gradient."""
        return float(context.clients**2)


class AllGradients(Algorithm):
    """x_i <- x_i - eta v_i, where v_i combines the gradients g_j(x_i) of all clients j at i's model.

    That is n^2 gradients a round: x_i visits all ranks, and the gradients there go to i's owner, which
    combines them alone. Clients that do not take part in a round neither compute gradients nor step.
    """

    sums = "none"  # of one client at a time

    def __init__(
        self, config: AllGradientsConfig, clients: Clients, exchange: Exchange, context: RunContext
    ) -> None:
        super().__init__(config, clients, exchange, context)
        n = context.clients
        # Allocated once: CUDA graphs are recorded for addresses.
        self.scratch = Scratch(clients.x_cd.dtype, clients.x_cd.device)
        self.user_notice = (
            f"algorithm.name={config.name} computes n^2 = {n * n} gradients a round, and moves every model "
            "to all ranks and all gradients to their models' owners"
        )

    @abstractmethod
    def combine(
        self, rows_h: NDArray[np.int64], g_hmd: Tensor, part_n: NDArray[np.bool_], t: int
    ) -> Tensor:
        """Return v_i [h, d] of the clients in rows `rows_h`, at least one.

        `g_hmd` has the gradients at their models of all clients that take part, in client order.
        """

    def round(self, t: int) -> RoundResult:
        """Combine the gradients at all clients, a group after the other, then step."""
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
            rows_h, g_hmd = self.exchange.send_back(g_ked)
            if len(rows_h):
                v_hd = self.combine(rows_h, g_hmd, part_n, t)
                # Where the direction finds them.
                clients.g_cd.index_copy_(0, to_device(rows_h, v_hd.device), v_hd)
        clients.x_cd.add_(clients.direction(), alpha=-clients.eta(t))
        return RoundResult(losses_c, weights_replaced=True)

    def own_gradients(
        self, rows_h: NDArray[np.int64], g_hmd: Tensor, part_n: NDArray[np.bool_]
    ) -> Tensor:
        """Return g_i(x_i) [h, d], a copy."""
        own_h = np.searchsorted(np.flatnonzero(part_n), np.array(self.clients.ids)[rows_h])
        at = to_device(np.arange(len(rows_h)), g_hmd.device), to_device(own_h, g_hmd.device)
        return g_hmd[at]


def weighted_sums(g_hmd: Tensor, weights_hm: Tensor, without_hm: Tensor) -> Tensor:
    """Return sum_m weights_hm g_hmd [h, d], without those for which `without_hm` is true.

    On a CPU terms are added in client order, so that the bits are those of any number of ranks.
    """
    terms_hmd = g_hmd * weights_hm[:, :, None]
    # A client that diverged is far from all others, and 0 times its gradient is not 0.
    terms_hmd.masked_fill_(without_hm[:, :, None], 0.0)
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
