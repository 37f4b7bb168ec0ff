"""FedAvg: one model for all (McMahan et al., AISTATS 2017), one local step a round."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from cobo_dist.algorithms.algorithm import Algorithm, AlgorithmSection
from cobo_dist.algorithms.base import Clients, Exchange, RoundResult, RunContext
from cobo_dist.algorithms.local import local_step
from cobo_dist.lazy import torch
from cobo_dist.maths.flat import to_device
from cobo_dist.maths.weights import Weights
from cobo_dist.registry import register


class AveragingConfig(AlgorithmSection):
    """What every averaging algorithm can be told."""

    buffers: Literal["local", "averaged"] = Field(
        "local",
        description="BatchNorm's statistics stay with the client, or are averaged as models are",
    )


class FedAvgConfig(AveragingConfig):
    """One model for all clients."""

    name: Literal["fedavg"] = "fedavg"


@register.algorithm("fedavg")
class FedAvg(Algorithm):
    """x <- mean_i (x - eta g_i(x)). W is all ones. With one client it is Local."""

    Config: ClassVar[type[AveragingConfig]] = FedAvgConfig
    title, color, marker, place = "FedAvg", "#56b4e9", "v", 2

    def __init__(
        self, config: AveragingConfig, clients: Clients, exchange: Exchange, context: RunContext
    ) -> None:
        super().__init__(config, clients, exchange, context)
        self.one_group = len(set(self.groups(context))) == 1
        sizes_c = self.weights.sums()
        share_c1 = torch.from_numpy(1.0 / sizes_c)[:, None]
        self.share_c1 = to_device(share_c1.to(clients.x_cd.dtype), clients.x_cd.device)

    def groups(self, context: RunContext) -> tuple[int, ...]:
        """Return the group of each client; a group shares one model."""
        return (0,) * context.clients

    def first_weights(self) -> Weights:
        """Return 1 within groups and 0 between them."""
        return Weights(self.clients.ids, self.groups(self.context), symmetric=True)

    def round(self, t: int) -> RoundResult:
        """Take one local step, then average within the group."""
        losses_c = local_step(self.clients, t)
        self.average(self.clients.x_cd)
        if self.config.buffers == "averaged" and self.clients.b_cd.shape[1]:
            self.average(self.clients.b_cd)
        return RoundResult(losses_c)

    def average(self, rows_cd: torch.Tensor) -> None:
        """Replace every row by the mean of its group's rows."""
        if self.one_group:  # one sum for all clients of a rank; `mix` would write it c times
            ones_1n = np.ones((1, self.weights.shape[1]), dtype=self.weights.dtype)
            sum_1d = self.exchange.all_reduce(ones_1n, rows_cd)
            torch.mul(sum_1d, self.share_c1, out=rows_cd)
            return
        for at, sum_cd in self.exchange.mix(self.weights, rows_cd):
            torch.mul(sum_cd, self.share_c1, out=rows_cd[:, at])
