"""FedAvg: one model for all (McMahan et al., AISTATS 2017)."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.algorithms.algorithm import Algorithm, AlgorithmSection
from cobo_dist.algorithms.base import Clients, Exchange, Newcomers, RoundResult, RunContext
from cobo_dist.algorithms.local import local_step
from cobo_dist.lazy import Tensor, torch
from cobo_dist.maths.flat import to_device, upload
from cobo_dist.maths.weights import Weights
from cobo_dist.registry import register


class AveragingConfig(AlgorithmSection):
    """What every averaging algorithm can be told."""

    buffers: Literal["local", "averaged"] = Field(
        "local",
        description="BatchNorm's statistics stay with the client, or are averaged as models are",
    )


class WeightingConfig(AlgorithmSection):
    """What an algorithm can be told that averages over clients."""

    weighting: Literal["equal", "examples"] = Field(
        "equal",
        description="what a client counts in an average: as much as any other, or in proportion to its "
        "training examples",
    )

    @property
    def weighs_examples(self) -> bool:
        """Whether clients count by their examples."""
        return self.weighting == "examples"


class WeightedAveragingConfig(AveragingConfig, WeightingConfig):
    """What every algorithm can be told that averages models within groups."""


class FedAvgConfig(WeightedAveragingConfig):
    """One model for all clients."""

    name: Literal["fedavg"] = "fedavg"


@register.algorithm("fedavg")
class FedAvg(Algorithm):
    """x <- mean_i (x - eta g_i(x)) over the clients that take part. W is all ones.

    With several local steps, the mean of the models after them. Afterwards all clients have the new model, as
    from a server. `weighting` examples: the mean is weighted by the clients' training examples. With one
    client it is Local.
    """

    Config: ClassVar[type[WeightingConfig]] = FedAvgConfig
    title, color, marker, place = "FedAvg", "#56b4e9", "v", 2
    newcomers_start = "group"

    def __init__(
        self,
        config: WeightingConfig,
        clients: Clients,
        exchange: Exchange,
        context: RunContext,
    ) -> None:
        super().__init__(config, clients, exchange, context)
        self.alike = context.all_take_part and config.weighting == "equal"
        self.use_groups(self.weights)

    def groups(self, context: RunContext) -> tuple[int, ...]:
        """Return the group of each client; a group shares one model."""
        return (0,) * context.clients

    def first_weights(self) -> Weights:
        """Return 1 within groups and 0 between them."""
        return Weights(self.clients.ids, self.groups(self.context), symmetric=True)

    def train(self, t: int) -> Tensor:
        """Work locally; return the losses [c]."""
        return local_step(self.clients, t)

    def use_groups(self, weights: Weights) -> None:
        """Average within the groups of W from now on: weights of 1 within them and 0 between them."""
        self.weights, self.groups_n = weights, weights.groups_n
        self.one_group = int(self.groups_n.max()) == 0
        share_c1 = torch.from_numpy(1.0 / weights.sums())[:, None]
        self.share_c1 = upload(share_c1, self.clients.x_cd)

    def round(self, t: int) -> RoundResult:
        """Work locally, then average within the group."""
        losses_c = self.train(t)
        self.average_all(t)
        return RoundResult(losses_c)

    def join(self, t: int, newcomers: Newcomers) -> None:
        """Give each client that joins the model of its group."""
        self.give_means(self.clients.x_cd, t, newcomers)
        if self.config.buffers == "averaged" and self.clients.b_cd.shape[1]:
            self.give_means(self.clients.b_cd, t, newcomers)

    def give_means(self, rows_cd: Tensor, t: int, newcomers: Newcomers) -> None:
        """Give clients that join the mean row of their group's members; without a member they keep theirs."""
        before_n = self.context.members(t)
        before_n[newcomers.ids_k] = False
        groups = np.unique(self.groups_n[newcomers.ids_k])
        among_gn = before_n & (self.groups_n == groups[:, None])
        groups, among_gn = groups[among_gn.any(axis=1)], among_gn[among_gn.any(axis=1)]
        if not len(groups):
            return
        means_gd = self.exchange.all_reduce(among_gn / among_gn.sum(axis=1, keepdims=True), rows_cd)
        for row, client in enumerate(self.clients.ids):
            if client in newcomers.ids_k and self.groups_n[client] in groups:
                rows_cd[row] = means_gd[np.searchsorted(groups, self.groups_n[client])]

    def average_all(self, t: int) -> None:
        """Average models, and their buffers if they are averaged too, within the groups."""
        self.average(self.clients.x_cd, t)
        if self.config.buffers == "averaged" and self.clients.b_cd.shape[1]:
            self.average(self.clients.b_cd, t)

    def average(self, rows_cd: Tensor, t: int) -> None:
        """Replace every row by the mean of its group's rows."""
        if not self.alike:
            self.weighted_average(rows_cd, self.context.client_weights(t, self.config.weighting))
        elif self.one_group:  # one sum for all clients of a rank; `mix` would write it c times
            ones_1n = np.ones((1, self.weights.shape[1]), dtype=self.weights.dtype)
            sum_1d = self.exchange.all_reduce(ones_1n, rows_cd)
            torch.mul(sum_1d, self.share_c1, out=rows_cd)
        else:
            for at, sum_cd in self.exchange.mix(self.weights, rows_cd):
                torch.mul(sum_cd, self.share_c1, out=rows_cd[:, at])

    def weighted_average(self, rows_cd: Tensor, weights_n: NDArray[np.float64]) -> None:
        """Replace every row by its group's weighted mean; rows of a group without weights stay."""
        totals_n = np.bincount(self.groups_n, weights_n)[self.groups_n]
        shares_n = weights_n / np.where(totals_n > 0, totals_n, 1.0)
        if self.one_group:
            if totals_n[0]:
                rows_cd.copy_(self.exchange.all_reduce(shares_n[None], rows_cd))
            return
        mine = list(self.clients.ids)
        sends_c = torch.from_numpy(np.where(shares_n > 0, shares_n, 1.0)[mine])
        rows_cd.mul_(upload(sends_c[:, None], rows_cd))
        averaged = to_device(np.flatnonzero(totals_n[mine]), rows_cd.device)
        sends_n = weights_n > 0
        weights = self.weights
        if not sends_n.all():
            weights = weights.among(sends_n, all_receive=True)
        for at, sum_cd in self.exchange.mix(weights, rows_cd):
            rows_cd[averaged, at] = sum_cd[averaged]
