"""L2GD: local steps, and now and then a step towards the mean (Hanzely and Richtarik, 2020)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from cobo_dist.algorithms.algorithm import Algorithm, RunSettings
from cobo_dist.algorithms.base import (
    AlgorithmState,
    Clients,
    Exchange,
    RoundResult,
    RunContext,
    sampled_rounds,
)
from cobo_dist.algorithms.fedavg import AveragingConfig
from cobo_dist.lazy import Tensor, torch
from cobo_dist.maths import seeds
from cobo_dist.maths.flat import to_device, upload
from cobo_dist.registry import register


class L2gdConfig(AveragingConfig):
    """Personal models that are sometimes pulled to their mean."""

    name: Literal["l2gd"] = "l2gd"
    p: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="probability that a round pulls to the mean, and trains nothing",
    )
    lambda_: float = Field(
        1.0, ge=0, le=1e15, alias="lambda", description="penalty on distances to the mean; 0: Local"
    )

    @property
    def takes_one_step(self) -> bool:
        """Yes: the rounds between two pulls are the local steps."""
        return True

    @property
    def step_keys(self) -> tuple[str, ...]:
        """`lambda` is the strength of the pull."""
        return ("algorithm.lambda",)

    def representative_rounds(self, rounds: int) -> list[tuple[int, int]]:
        """Rounds differ by the coin."""
        return sampled_rounds(rounds)

    def unsuited(self, settings: RunSettings) -> str:
        """Refuse a pull that goes beyond the mean."""
        n, lr = settings.clients, settings.lr
        if lr * self.lambda_ <= n * self.p * (1.0 + 1e-9):  # at 1 up to rounding
            return ""
        return (
            f"algorithm.lambda={self.lambda_:g} pulls beyond the mean: optimizer.lr lambda / (n p) = "
            f"{lr * self.lambda_ / (n * self.p):.3g} is above 1 with optimizer.lr={lr:g}, n={n} clients and "
            f"algorithm.p={self.p:g}; lower lambda to {n * self.p / lr:.3g} or less, or raise p"
        )


@register.algorithm("l2gd")
class L2gd(Algorithm):
    """x_i <- x_i - eta / (n (1 - p)) g_i(x_i) with probability 1 - p; with probability p

    x_i <- (1 - theta) x_i + theta m, theta = eta lambda / (n p), m = mean_i x_i.

    It minimizes mean_i f_i(x_i) + lambda/(2n) sum_i ||x_i - m||^2. One coin a round, for all clients. A pull
    does not move m, so the second of two pulls in a row sends nothing. eta is `optimizer.lr`: a client's mean
    step is 1/n of Local's. `lambda=0` is Local. theta = 1 averages as FedAvg does. Among clients that take
    part in a round, m is their mean. In a round without gradients a client reports its last loss, at first
    that of its start. W is all ones: CoBo's W with nothing to learn, and rho = lambda/n.
    """

    Config = L2gdConfig
    title, color, marker, place = "L2GD", "#aa4499", "*", 18
    all_linked = True

    sums = "none"

    def __init__(
        self, config: L2gdConfig, clients: Clients, exchange: Exchange, context: RunContext
    ) -> None:
        super().__init__(config, clients, exchange, context)
        self.local_share = 1.0 / (context.clients * (1.0 - config.p))
        self.user_notice = (
            f"L2GD's local step is optimizer.lr / (n (1 - p)) = {clients.lr * self.local_share:.3g}, in a "
            f"share 1 - p = {1.0 - config.p:g} of the rounds"
        )
        # The last means of models and of buffers.
        self.means = {"mean": clients.start_rows(1)}
        if config.buffers == "averaged" and clients.b_cd.shape[1]:
            self.means["mean.buffers"] = clients.start_buffers(1)
        every, x_cd, b_cd = np.arange(len(clients.ids)), clients.x_cd, clients.b_cd
        losses = [
            clients.losses_at(x_cd[row : row + 1], b_cd[row : row + 1], every[row : row + 1], 0)
            for row in every
        ]
        self.losses_c = torch.cat(losses)[:, 0].to(x_cd.dtype)

    def pulls(self, t: int) -> bool:
        """Return the coin of round t, the same on every rank."""
        coin = seeds.uniforms(seeds.key(self.context.seed, "l2gd coin", t), 1)
        return bool(float(coin) < self.config.p)

    def round(self, t: int) -> RoundResult:
        """Toss the coin; then step, or pull to the mean."""
        if self.pulls(t):
            self.pull(t)
        else:
            self.step(t)
        return RoundResult(self.losses_c.clone())

    def step(self, t: int) -> None:
        """x_i <- x_i - eta / (n (1 - p)) g_i(x_i)."""
        clients, eta = self.clients, self.clients.eta(t) * self.local_share

        def step(rows: slice) -> None:
            clients.x_cd[rows].add_(clients.direction(rows), alpha=-eta)

        losses_c = clients.gradients(t, on_rows_ready=step)
        part_c = to_device(self.context.taking_part(t)[list(clients.ids)], losses_c.device)
        self.losses_c = torch.where(part_c, losses_c, self.losses_c)

    def pull(self, t: int) -> None:
        """x_i <- (1 - theta) x_i + theta m for the clients that take part; m is known after another pull."""
        known = self.context.all_take_part and t > 0 and self.pulls(t - 1)
        part_n = self.context.taking_part(t)
        theta = self.clients.eta(t) * self.config.lambda_ / (self.context.clients * self.config.p)
        part_e = np.flatnonzero(part_n[list(self.clients.ids)])
        theta_e1 = torch.full((len(part_e), 1), theta, dtype=torch.float64)
        at = to_device(part_e, self.clients.x_cd.device)
        rows: dict[str, Tensor] = {"mean": self.clients.x_cd, "mean.buffers": self.clients.b_cd}
        for name, mean_1d in self.means.items():
            if not known:
                shares_n = part_n / part_n.sum()
                mean_1d.copy_(self.exchange.all_reduce(shares_n[None], rows[name]))
            # Only these rows: the others stay as they are, also where the mean is not finite.
            keep_e1, pull_e1 = upload(1.0 - theta_e1, mean_1d), upload(theta_e1, mean_1d)
            rows[name][at] = rows[name][at].mul_(keep_e1).addcmul_(pull_e1, mean_1d)

    def state(self) -> AlgorithmState:
        """Return the last mean and the last losses."""
        return AlgorithmState(rows={"loss": self.losses_c}, shared=self.means)
