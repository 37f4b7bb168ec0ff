"""Local optimizers: from gradients to directions, for all rows at once.

The algorithm makes the step: x <- x - eta(t) (direction + ...). An optimizer owns the state that a client
keeps between rounds, as rows beside X.

Shapes: c clients, d parameters.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from cobo_dist.clients.optimizer_config import OptimizerConfig


def step_size(config: OptimizerConfig, t: int, rounds: int) -> float:
    """Return eta(t) of round t = 0 .. rounds-1: a pure function, so nothing has to be saved.

    `one_cycle` is PyTorch's OneCycleLR with cosines over `rounds` steps: from lr / div_factor up to lr
    at step warmup * rounds - 1, and down to lr / (div_factor * final_div_factor) at the last step.
    """
    if config.schedule == "constant":
        return config.lr
    first = config.lr / config.div_factor
    top, end = config.warmup * rounds - 1.0, rounds - 1.0
    if t <= top:
        # A warm-up of one round is over when it begins.
        return _cosine(first, config.lr, t / top if top > 0 else 1.0)
    return _cosine(config.lr, first / config.final_div_factor, (t - top) / (end - top))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2.0 * (1.0 + math.cos(math.pi * share))


class Optimizer(Protocol):
    """The contract of an optimizer."""

    def direction(self, gradients_cd: Tensor, rows: slice = slice(None)) -> Tensor:
        """Return this round's directions [c, d] of the models in `rows`; overwrites `gradients_cd`."""

    def state(self) -> dict[str, Tensor]:
        """Return what is kept between rounds, by name, [c, ...]: to save, or to overwrite."""


class Sgd:
    """Stochastic gradient descent with (heavy-ball) momentum; `momentum=0` is the paper's step."""

    def __init__(self, momentum: float, like_cd: Tensor) -> None:
        self.momentum = momentum
        self.m_cd = torch.zeros_like(like_cd) if momentum else None

    def direction(self, gradients_cd: Tensor, rows: slice = slice(None)) -> Tensor:
        """M <- momentum m + g."""
        if self.m_cd is None:
            return gradients_cd
        return self.m_cd[rows].mul_(self.momentum).add_(gradients_cd)

    def state(self) -> dict[str, Tensor]:
        """Return the last direction, if there is momentum."""
        return {} if self.m_cd is None else {"m": self.m_cd}


class EmaMomentum:
    """Exponential moving average of gradients, as in the authors' code, started at m = 0.

    At learning rate lr it equals heavy-ball SGD at (1 - momentum) lr. `momentum=0` is plain SGD.
    """

    def __init__(self, momentum: float, like_cd: Tensor) -> None:
        self.momentum = momentum
        self.m_cd = torch.zeros_like(like_cd)

    def direction(self, gradients_cd: Tensor, rows: slice = slice(None)) -> Tensor:
        """M <- momentum m + (1 - momentum) g."""
        # Two roundings in a fixed order: `lerp` may fuse them, depending on where a row lies.
        return self.m_cd[rows].mul_(self.momentum).add_(gradients_cd.mul_(1.0 - self.momentum))

    def state(self) -> dict[str, Tensor]:
        """Return the moving average."""
        return {"m": self.m_cd}


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019).

    The direction is m' / (sqrt(v') + eps) + weight_decay x, with m' and v' the bias-corrected moments. It
    reads the models x [c, d] that it was built for, so an algorithm asks for directions before it changes
    them. What an algorithm adds to the step is not part of the moments.
    """

    def __init__(self, config: OptimizerConfig, x_cd: Tensor) -> None:
        self.config, self.x_cd = config, x_cd
        # The same number for every row, by row because each client's state is saved on its own.
        self.steps_c = torch.zeros(len(x_cd), dtype=torch.int64)
        self.m_cd, self.v_cd = torch.zeros_like(x_cd), torch.zeros_like(x_cd)

    def direction(self, gradients_cd: Tensor, rows: slice = slice(None)) -> Tensor:
        """Update both moments by g and return the direction, in the rows of the gradients."""
        g_cd, (beta_1, beta_2) = gradients_cd, self.config.betas
        m_cd, v_cd, steps_c = self.m_cd[rows], self.v_cd[rows], self.steps_c[rows]
        steps_c += 1
        steps = int(steps_c[0])
        # Every product and sum is rounded by itself, as in `EmaMomentum`.
        term_cd = torch.mul(g_cd, g_cd).mul_(1.0 - beta_2)
        v_cd.mul_(beta_2).add_(term_cd)
        m_cd.mul_(beta_1).add_(g_cd.mul_(1.0 - beta_1))
        root_cd = torch.sqrt(v_cd, out=g_cd)
        root_cd.div_(math.sqrt(1.0 - beta_2**steps)).add_(self.config.eps)
        direction_cd = torch.div(m_cd, root_cd, out=g_cd).div_(1.0 - beta_1**steps)
        if self.config.weight_decay:
            torch.mul(self.x_cd[rows], self.config.weight_decay, out=term_cd)
            direction_cd.add_(term_cd)
        return direction_cd

    def state(self) -> dict[str, Tensor]:
        """Return both moments and the number of steps."""
        return {"m": self.m_cd, "v": self.v_cd, "steps": self.steps_c}


def build_optimizer(config: OptimizerConfig, x_cd: Tensor) -> Optimizer:
    """Return the configured optimizer for the models in the rows `x_cd`."""
    if config.name == "adamw":
        return AdamW(config, x_cd)
    if config.name == "sgd":
        return Sgd(config.momentum, x_cd)
    return EmaMomentum(config.momentum, x_cd)
