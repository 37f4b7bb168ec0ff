"""FedALA: adaptive local aggregation (Zhang, Hua, Wang, Song, Xue, Ma and Guan, AAAI 2023)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from cobo_dist.algorithms.base import AlgorithmState, Clients, Exchange, RoundResult, RunContext
from cobo_dist.algorithms.fedavg import WeightedAveragingConfig
from cobo_dist.algorithms.local import local_step
from cobo_dist.algorithms.two_models import TwoModels
from cobo_dist.errors import ConfigError
from cobo_dist.lazy import torch
from cobo_dist.maths.flat import to_device
from cobo_dist.registry import register


class FedAlaConfig(WeightedAveragingConfig):
    """Starts of local work between a client's model and the global one, element by element."""

    name: Literal["fedala"] = "fedala"
    layers: int = Field(
        1,
        ge=1,
        description="number p of top layers whose start is learned; lower ones start at the global model "
        "(paper: 1; without any it would be FedAvg)",
    )
    share: float = Field(
        0.8,
        gt=0,
        le=1,
        description="share s of a client's examples on which it learns the start (paper: 0.8)",
    )
    weight_lr: float = Field(
        1.0, gt=0, le=1e15, description="step size of the weights A of the global model (paper: 1)"
    )
    first_passes: int = Field(
        10,
        ge=1,
        le=10_000,
        description="passes over these examples when a client learns A for the first time, later one "
        "(paper: until its loss settles)",
    )

    @property
    def batch_streams(self) -> int:
        """One for local steps, one to learn where they start."""
        return 2

    def representative_rounds(self, rounds: int) -> list[tuple[int, int]]:
        """The first round, without a global model, and one of the others."""
        return [(0, 1), (1, rounds - 1)] if rounds > 1 else [(0, rounds)]


@register.algorithm("fedala")
class FedAla(TwoModels):
    """Local work from x_i + (w - x_i) * A_i, then w = mean_i x_i.

    A_i in [0, 1] is learned for each element of the top p layers, from 1 on; below, the start is w. On whole
    batches of a share of its examples, new ones in each round, a client takes steps
    A_i <- clip(A_i - eta_A g_i(start) * (w - x_i), 0, 1), each at the start that A_i then gives. The first
    time it makes `first_passes` passes over them, later one. In round 1 there is no w yet, and clients start
    at their own models. X has the models after the local work, w is the mean of those that take part; the
    others keep theirs. A_i = 1 is FedAvg, A_i = 0 keeps a client's own top layers. W is all ones.
    """

    Config = FedAlaConfig
    title, color, marker, place = "FedALA", "#b15928", "H", 23

    def __init__(
        self, config: FedAlaConfig, clients: Clients, exchange: Exchange, context: RunContext
    ) -> None:
        super().__init__(config, clients, exchange, context)
        layers = clients.layers()
        if config.layers > len(layers):
            raise ConfigError(
                f"algorithm.layers={config.layers}, but the model has {len(layers)} layers; set at most "
                f"algorithm.layers={len(layers)}"
            )
        self.top = clients.columns(*layers[-config.layers :])
        self.a_ck = torch.ones_like(self.top.take(clients.x_cd))
        self.learned_c = torch.zeros(
            len(clients.ids), dtype=torch.int64
        )  # whether a client has; on the CPU
        self.b_1b = clients.start_buffers(1)  # of w

    def round(self, t: int) -> RoundResult:
        """Learn where to start, work locally, and average the models after it."""
        if t:
            self.start_between(t)
        losses_c = local_step(self.clients, t)
        self.average(self.clients.x_cd, t)
        if self.averages_buffers:
            self.add_mean(self.b_1b, self.clients.b_cd, t)
        return RoundResult(losses_c)

    @property
    def averages_buffers(self) -> bool:
        """Whether BatchNorm's statistics go with w."""
        return self.config.buffers == "averaged" and self.clients.b_cd.shape[1] > 0

    def start_between(self, t: int) -> None:
        """Replace the models of clients that take part by their starts, and learn A there."""
        clients, x_cd, a_ck = self.clients, self.clients.x_cd, self.a_ck
        rows_e = np.flatnonzero(self.context.taking_part(t)[list(clients.ids)])
        rows = to_device(rows_e, x_cd.device)
        own_ck = self.top.take(x_cd).clone()
        far_ck = self.top.take(self.w_1d) - own_ck  # from x_i to w
        x_cd[rows] = self.w_1d
        if self.averages_buffers:
            clients.b_cd[rows] = self.b_1b
        start_ck = self.top.take(x_cd)
        start_ck[rows] = own_ck[rows] + far_ck[rows] * a_ck[rows]
        self.top.put(start_ck, x_cd)
        first_e = rows_e[self.learned_c.numpy()[rows_e] == 0]
        for passed in range(self.config.first_passes if len(first_e) else 1):
            learning_e = rows_e if passed == 0 else first_e
            for step in clients.data_steps(t, self.config.share, learning_e):
                at = step.rows
                slopes_kk = self.top.take(step.gradients(x_cd, "adaptation")) * far_ck[at]
                a_ck[at] = (a_ck[at] - self.config.weight_lr * slopes_kk).clamp_(0.0, 1.0)
                start_ck[at] = own_ck[at] + far_ck[at] * a_ck[at]
                self.top.put(start_ck, x_cd)
        self.learned_c[rows_e] = 1

    def state(self) -> AlgorithmState:
        """Return A and who has learned it, and the global model with its buffers."""
        return AlgorithmState(
            rows={"A": self.a_ck, "learned": self.learned_c},
            shared={"w": self.w_1d, "w.buffers": self.b_1b},
        )
