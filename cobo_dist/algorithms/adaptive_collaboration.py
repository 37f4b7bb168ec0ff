"""Adaptive collaboration (Philippenko, Le Bars, Scaman, Massoulié, arXiv 2507.06844)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.algorithms.all_gradients import AllGradients, AllGradientsConfig, weighted_sums
from cobo_dist.algorithms.base import Clients, Exchange, RoundResult, RunContext
from cobo_dist.algorithms.fedavg import WeightingConfig
from cobo_dist.lazy import Tensor, torch
from cobo_dist.maths.flat import to_device
from cobo_dist.registry import register


class AdaptiveCollaborationConfig(AllGradientsConfig, WeightingConfig):
    """Averages of the gradients that differ from a client's own by less than its length."""

    name: Literal["adaptive_collaboration"] = "adaptive_collaboration"
    shares: Literal["binary", "continuous"] = Field(
        "binary",
        description="what an accepted client counts, before `weighting`: 1, or "
        "1 - ||g_i - g_j||^2 / ||g_i||^2",
    )

    def equal_share(self, clients: int) -> float:
        """Return 1/n: a client's own gradient counts."""
        return 1.0 / clients


@register.algorithm("adaptive_collaboration")
class AdaptiveCollaboration(AllGradients):
    """x_i <- x_i - eta sum_j lambda_ij g_j(x_i), over j with ||g_i(x_i) - g_j(x_i)||^2 < ||g_i(x_i)||^2.

    lambda_ij is equal for all accepted clients, or in proportion to their examples (`weighting`), or to how
    near their gradients are (`shares`). The closer x_i comes to the optimum of f_i, the shorter its own
    gradient, and clients with another optimum drop out by themselves. Clients that are all alike give
    FedAvg; where nobody is accepted it is Local. Row i of W is lambda_i, last used; at first the identity.
    """

    Config = AdaptiveCollaborationConfig
    title, color, marker, place = "Adaptive collaboration", "#4d9221", ">", 50
    learns_weights = True

    def __init__(
        self,
        config: AdaptiveCollaborationConfig,
        clients: Clients,
        exchange: Exchange,
        context: RunContext,
    ) -> None:
        super().__init__(config, clients, exchange, context)
        shape = len(clients.ids), context.clients
        self.lambda_cn = torch.zeros(shape, dtype=torch.float64, device=clients.x_cd.device)

    def round(self, t: int) -> RoundResult:
        """Step, then read all weights from the device at once."""
        result = super().round(t)
        rows = np.flatnonzero(self.context.taking_part(t)[list(self.clients.ids)])
        self.weights.put_rows(rows, self.lambda_cn.cpu().numpy()[rows])
        return result

    def combine(
        self, rows_h: NDArray[np.int64], g_hmd: Tensor, part_n: NDArray[np.bool_], t: int
    ) -> Tensor:
        """Return sum_j lambda_ij g_j, and keep lambda."""
        device, part_m = g_hmd.device, np.flatnonzero(part_n)
        own_hd = self.own_gradients(rows_h, g_hmd, part_n)
        differences_hm = (g_hmd - own_hd[:, None]).norm(dim=2).double()
        # A client at its optimum accepts itself: 0 / tiny is 0.
        lengths_h1 = own_hd.norm(dim=1, keepdim=True).double().clamp(min=np.finfo(float).tiny)
        near_hm = (1.0 - (differences_hm / lengths_h1).square()).clamp(min=0.0)
        near_hm = near_hm.nan_to_num(nan=0.0)  # a gradient that is not finite is not accepted
        if self.config.shares == "binary":
            near_hm = (near_hm > 0.0).double()
        count_m = self.context.client_weights(t, self.config.weighting)[part_m]
        lambda_hm = near_hm * to_device(count_m, device)
        lambda_hm /= lambda_hm.sum(dim=1, keepdim=True).clamp(min=np.finfo(float).tiny)
        at = to_device(rows_h, device)[:, None], to_device(part_m, device)
        self.lambda_cn[at[0]] = 0.0
        self.lambda_cn[at] = lambda_hm
        return weighted_sums(g_hmd, lambda_hm.to(g_hmd.dtype), lambda_hm == 0.0)
