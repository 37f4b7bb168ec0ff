"""Local optimisers: from gradients to directions, for all rows at once.

The step itself is the algorithm's: x <- x - eta (direction + ...). An optimiser owns what a client
remembers between rounds, as rows beside X.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from cobo_dist.settings import Section


class OptimizerConfig(Section):
    """The local optimiser of every client."""

    name: Literal["sgd", "ema_momentum"] = Field(
        "sgd",
        description="sgd: direction m = momentum m + g (momentum 0 is the paper); ema_momentum: "
        "m = momentum m + (1 - momentum) g from m = 0 (the authors' code)",
    )
    lr: float = Field(0.1, ge=0, description="step size eta of the models")
    momentum: float = Field(0.0, ge=0, lt=1, description="how much of the last direction is kept")


class Optimiser(Protocol):
    """The contract of an optimiser."""

    def direction(self, gradients_cd: Tensor) -> Tensor:
        """Return this round's directions [c, d]; uses up `gradients_cd`."""


class Sgd:
    """Stochastic gradient descent with (heavy-ball) momentum; `momentum=0` is the paper's step."""

    def __init__(self, momentum: float, like_cd: Tensor) -> None:
        self.momentum = momentum
        self.m_cd = torch.zeros_like(like_cd) if momentum else None

    def direction(self, gradients_cd: Tensor) -> Tensor:
        """M <- momentum m + g."""
        if self.m_cd is None:
            return gradients_cd
        return self.m_cd.mul_(self.momentum).add_(gradients_cd)


class EmaMomentum:
    """Exponential moving average of gradients, as in the authors' code, started at m = 0.

    At learning rate lr it equals heavy-ball SGD at (1 - momentum) lr. `momentum=0` is plain SGD.
    """

    def __init__(self, momentum: float, like_cd: Tensor) -> None:
        self.momentum = momentum
        self.m_cd = torch.zeros_like(like_cd)

    def direction(self, gradients_cd: Tensor) -> Tensor:
        """M <- momentum m + (1 - momentum) g."""
        # Two roundings in a fixed order: `lerp` may fuse them, depending on where a row lies.
        return self.m_cd.mul_(self.momentum).add_(gradients_cd.mul_(1.0 - self.momentum))


def build_optimiser(config: OptimizerConfig, like_cd: Tensor) -> Optimiser:
    """Return the configured optimiser for models shaped like `like_cd`."""
    if config.name == "sgd":
        return Sgd(config.momentum, like_cd)
    return EmaMomentum(config.momentum, like_cd)
