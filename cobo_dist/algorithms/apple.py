"""APPLE: adaptive personalized cross-silo federated learning (Luo, Wu, IJCAI 2022)."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.algorithms.algorithm import Algorithm, RunSettings
from cobo_dist.algorithms.base import (
    AlgorithmState,
    Clients,
    Exchange,
    Newcomers,
    RoundResult,
    RunContext,
)
from cobo_dist.algorithms.fedavg import WeightingConfig
from cobo_dist.lazy import torch
from cobo_dist.maths.flat import to_device, upload
from cobo_dist.maths.weights import Weights
from cobo_dist.registry import register

LAST_PULL = 1e-3
"""What an exponential schedule has left of the pull in its last round (authors' code)."""


class AppleConfig(WeightingConfig):
    """Personal models that are learned combinations of all clients' core models."""

    name: Literal["apple"] = "apple"
    weights_lr: float = Field(
        0.001,
        gt=0,
        le=1e15,
        description="step size eta_2 of the directed relationships p (authors' code)",
    )
    mu: float = Field(
        0.1, ge=0, le=1e15, description="pull of p towards p_0, where it starts; 0 (PFLlib): none"
    )
    pull_share: float = Field(
        0.1, ge=0, le=1, description="share of the rounds, L / T, over which that pull falls to 0"
    )
    pull_schedule: Literal["cosine", "exponential"] = Field(
        "cosine", description="how it falls: (1 + cos(pi r / L)) / 2, or 0.001^(r / L)"
    )

    @property
    def takes_one_step(self) -> bool:
        """Yes: p moves by single gradients at personal models."""
        return True

    @property
    def needs_rounds(self) -> tuple[str, ...]:
        """The share of the rounds in which p is pulled."""
        share = f"algorithm.pull_share={self.pull_share:g}"
        return (f"{share}: APPLE pulls p in a share of them",) if self.mu else ()

    @property
    def step_keys(self) -> tuple[str, ...]:
        """A large step of p makes models diverge."""
        return ("algorithm.weights_lr",)

    def equal_share(self, clients: int) -> float:
        """Return 1/n: p starts there, and is free afterwards."""
        return 1.0 / clients

    def comparisons(self, t: int, context: RunContext) -> float:
        """All gradients are multiplied with all core models."""
        return float(context.clients**2)

    def unsuited(self, settings: RunSettings) -> str:
        """Refuse AdamW: y_i would move as far for any p_ii."""
        return settings.without_size("apple", "p_ii")

    def pull(self, t: int, rounds: int) -> float:
        """Return lambda(t) mu in round t = 0 .. T-1."""
        last = self.pull_share * rounds
        if t >= last:
            return 0.0
        if self.pull_schedule == "cosine":
            return self.mu * (1.0 + math.cos(math.pi * t / last)) / 2.0
        return float(self.mu * LAST_PULL ** (t / last))


@register.algorithm("apple")
class Apple(Algorithm):
    """x_i = sum_j p_ij y_j: client i's personal model, of the core models y_j of all clients.

        y_i  <- y_i - eta p_ii g_i(x_i)
        p_ij <- p_ij - eta_2 (<g_i(x_i), y_j> + lambda(t) mu (p_ij - p_0j))

    That is gradient descent on f_i(x_i) + lambda(t) mu / 2 ||p_i - p_0||^2 by client i's own y_i and p_i.
    Entries of p may be negative, and need not sum to 1. p starts at p_0, which is equal for all clients, or
    in proportion to their examples (`weighting`). A round has one step; then all cores are combined anew.
    x_i is what trains, is evaluated and saved; weight decay is that of x_i, too. Row i of W is p_i.

    As from the paper's server, clients get the core of one that does not take part as it was left; they
    change neither that nor its row of p.
    """

    Config = AppleConfig
    title, color, marker, place = "APPLE", "#bf812d", "p", 55
    learns_weights = True

    def __init__(
        self, config: AppleConfig, clients: Clients, exchange: Exchange, context: RunContext
    ) -> None:
        super().__init__(config, clients, exchange, context)
        self.core_cd = clients.x_cd.clone()
        n = context.clients
        self.user_notice = (
            f"APPLE takes one local step a round, and at p = 1/n models move by optimizer.lr / n = "
            f"{clients.lr / n:.3g} times the mean gradient of n={n} clients"
        )

    def start(self) -> NDArray[np.float64]:
        """Return p_0 [n]."""
        counts_n = np.ones(self.context.clients)
        if self.config.weighting == "examples":
            counts_n = np.asarray(self.context.examples, np.float64)
        p_0n: NDArray[np.float64] = counts_n / counts_n.sum()
        return p_0n

    def first_weights(self) -> Weights:
        """Return p_0 in every row."""
        p_0cn = np.tile(self.start(), (len(self.clients.ids), 1))
        return Weights.of_rows(self.clients.ids, p_0cn.astype(self.weight_type))

    def round(self, t: int) -> RoundResult:
        """Take a gradient at x_i, and step y_i and p_i along it."""
        clients, ids = self.clients, list(self.clients.ids)
        rows_e = np.flatnonzero(self.context.taking_part(t)[ids])
        if t == 0 or not self.context.all_take_part:  # else they are combined already
            self.combine(rows_e)
        losses_c = clients.gradients(t)
        products_cn = self.exchange.gram(clients.g_cd, self.core_cd)  # <g_i, y_j>

        p_en = self.weights.rows(rows_e).astype(np.float64)
        pull_en = self.config.pull(t, self.context.rounds) * (p_en - self.start())
        own_c1 = torch.from_numpy(self.weights.at(np.arange(len(ids)), np.array(ids))[:, None])
        clients.g_cd.mul_(upload(own_c1, clients.g_cd))
        self.core_cd.add_(clients.direction(), alpha=-clients.eta(t))
        p_en -= self.config.weights_lr * (products_cn[rows_e] + pull_en)
        self.weights.put_rows(rows_e, p_en)
        self.combine(rows_e)
        return RoundResult(losses_c, weights_replaced=True)

    def join(self, t: int, newcomers: Newcomers) -> None:
        """Make the models that newcomers got their core models."""
        rows = np.flatnonzero(np.isin(self.clients.ids, newcomers.ids_k[~newcomers.returns_k]))
        at = to_device(rows, self.core_cd.device)
        self.core_cd[at] = self.clients.x_cd[at]

    def combine(self, rows_e: NDArray[np.int64]) -> None:
        """x_i <- sum_j p_ij y_j for the clients in some rows."""
        x_cd = self.clients.x_cd
        p_cn = np.zeros(self.weights.shape, dtype=self.weights.dtype)
        p_cn[rows_e] = self.weights.rows(rows_e)
        rows = to_device(rows_e, x_cd.device)
        for at, mixed in self.exchange.mix(Weights.of_rows(self.clients.ids, p_cn), self.core_cd):
            x_cd[rows, at] = mixed[rows]

    def state(self) -> AlgorithmState:
        """Return the core models."""
        return AlgorithmState(rows={"core": self.core_cd})
