"""Local optimizers: from gradients to directions, for all rows at once.

The algorithm makes the step: x <- x - eta(t) (direction + ...). An optimizer owns the state that a client
keeps between rounds, as rows beside X.

Shapes: c clients, d parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from cobo_dist.clients.optimizer_config import OptimizerConfig


def step_size(config: OptimizerConfig, t: int, rounds: int) -> float:
    """Return eta(t) of round t = 0 .. rounds-1: a pure function, so nothing has to be saved.

    `step` is PyTorch's StepLR, and `cosine` its CosineAnnealingLR down to 0 after `rounds` steps.
    `one_cycle` is its OneCycleLR with cosines over `rounds` steps: from lr / div_factor up to lr
    at step warmup * rounds - 1, and down to lr / (div_factor * final_div_factor) at the last step.
    """
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "step":
        return config.lr * config.step_factor ** (t // config.step_every)
    if config.schedule == "cosine":
        return _cosine(config.lr, 0.0, t / rounds)
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

    def direction(
        self, gradients_cd: Tensor, rows: slice = slice(None), points_cd: Tensor | None = None
    ) -> Tensor:
        """Return the directions [c, d] of the models in `rows`; overwrites `gradients_cd`.

        `points_cd`: where the gradients were taken, for weight decay; None: at the models themselves.
        """

    def state(self) -> dict[str, Tensor]:
        """Return what is kept between rounds, by name, [c, ...]: to save, or to overwrite."""


class Sgd:
    """Stochastic gradient descent with (heavy-ball) momentum; `momentum=0` is the paper's step.

    Weight decay adds `weight_decay` x to the gradient, as PyTorch's SGD does.
    """

    def __init__(self, momentum: float, weight_decay: float, x_cd: Tensor) -> None:
        self.momentum, self.weight_decay, self.x_cd = momentum, weight_decay, x_cd
        self.m_cd = torch.zeros_like(x_cd) if momentum else None

    def direction(
        self, gradients_cd: Tensor, rows: slice = slice(None), points_cd: Tensor | None = None
    ) -> Tensor:
        """M <- momentum m + g + weight_decay x."""
        if self.weight_decay:
            gradients_cd.add_(_at(points_cd, self.x_cd, rows), alpha=self.weight_decay)
        if self.m_cd is None:
            return gradients_cd
        return self.m_cd[rows].mul_(self.momentum).add_(gradients_cd)

    def state(self) -> dict[str, Tensor]:
        """Return the last direction, if there is momentum."""
        return {} if self.m_cd is None else {"m": self.m_cd}


class EmaMomentum:
    """Exponential moving average of gradients, as in the authors' code, started at m = 0.

    At learning rate lr it equals heavy-ball SGD at (1 - momentum) lr. `momentum=0` is plain SGD. Weight decay
    adds `weight_decay` x to the gradient.
    """

    def __init__(self, momentum: float, weight_decay: float, x_cd: Tensor) -> None:
        self.momentum, self.weight_decay, self.x_cd = momentum, weight_decay, x_cd
        self.m_cd = torch.zeros_like(x_cd)

    def direction(
        self, gradients_cd: Tensor, rows: slice = slice(None), points_cd: Tensor | None = None
    ) -> Tensor:
        """M <- momentum m + (1 - momentum) (g + weight_decay x)."""
        if self.weight_decay:
            gradients_cd.add_(_at(points_cd, self.x_cd, rows), alpha=self.weight_decay)
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
        # By row: clients may differ in how many steps they took, and each one's state is saved on its own.
        self.steps_c = torch.zeros(len(x_cd), dtype=torch.int64)
        self.m_cd, self.v_cd = torch.zeros_like(x_cd), torch.zeros_like(x_cd)

    def direction(
        self, gradients_cd: Tensor, rows: slice = slice(None), points_cd: Tensor | None = None
    ) -> Tensor:
        """Update both moments by g and return the direction, in the rows of the gradients."""
        points_cd = _at(points_cd, self.x_cd, rows)
        m_cd, v_cd, steps_c = self.m_cd[rows], self.v_cd[rows], self.steps_c[rows]
        steps_c += 1
        for alike in runs(steps_c.tolist()):
            parts = (gradients_cd, m_cd, v_cd, points_cd)
            self._step(int(steps_c[alike.start]), *(part[alike] for part in parts))
        return gradients_cd

    def _step(self, steps: int, g_kd: Tensor, m_kd: Tensor, v_kd: Tensor, x_kd: Tensor) -> None:
        """Replace the gradients of clients that took as many steps by their directions."""
        beta_1, beta_2 = self.config.betas
        # Every product and sum is rounded by itself, as in `EmaMomentum`.
        term_kd = torch.mul(g_kd, g_kd).mul_(1.0 - beta_2)
        v_kd.mul_(beta_2).add_(term_kd)
        m_kd.mul_(beta_1).add_(g_kd.mul_(1.0 - beta_1))
        root_kd = torch.sqrt(v_kd, out=g_kd)
        root_kd.div_(math.sqrt(1.0 - beta_2**steps)).add_(self.config.eps)
        torch.div(m_kd, root_kd, out=g_kd).div_(1.0 - beta_1**steps)
        if self.config.weight_decay:
            torch.mul(x_kd, self.config.weight_decay, out=term_kd)
            g_kd.add_(term_kd)

    def state(self) -> dict[str, Tensor]:
        """Return both moments and the number of steps."""
        return {"m": self.m_cd, "v": self.v_cd, "steps": self.steps_c}


def _at(points_cd: Tensor | None, x_cd: Tensor, rows: slice) -> Tensor:
    """Return the points at which gradients were taken."""
    return x_cd[rows] if points_cd is None else points_cd


def runs(numbers: Sequence[int], step: int = 0) -> Iterator[slice]:
    """Yield the slices in which each number is the one before it plus `step`.

    >>> list(runs([4, 4, 7]))
    [slice(0, 2, None), slice(2, 3, None)]
    >>> list(runs([2, 3, 6], step=1))
    [slice(0, 2, None), slice(2, 3, None)]
    """
    begin = 0
    for at in range(1, len(numbers) + 1):
        if at == len(numbers) or numbers[at] != numbers[at - 1] + step:
            yield slice(begin, at)
            begin = at


def build_optimizer(config: OptimizerConfig, x_cd: Tensor) -> Optimizer:
    """Return the configured optimizer for the models in the rows `x_cd`."""
    if config.name == "adamw":
        return AdamW(config, x_cd)
    kind = Sgd if config.name == "sgd" else EmaMomentum
    return kind(config.momentum, config.weight_decay, x_cd)
