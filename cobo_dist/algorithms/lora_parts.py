"""LoRA adapters that are shared in part: FedSA-LoRA and FFA-LoRA.

An adapter adds (alpha/r) B A to a layer. A starts at random and B at 0; in an embedding it is the other way
round. The mean of products is not the product of means, so FedAvg of A and B is not the mean of the adapters.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
from pydantic import Field

from cobo_dist.algorithms.base import Columns, RoundResult
from cobo_dist.algorithms.fedavg import WeightingConfig
from cobo_dist.algorithms.local import local_step
from cobo_dist.algorithms.shared_part import SharedPart
from cobo_dist.errors import ConfigError
from cobo_dist.lazy import Tensor
from cobo_dist.registry import register
from cobo_dist.settings import Texts

FACTORS_A = ("*lora_A*", "*lora_embedding_A*")
DRAWN_FACTORS = ("*lora_A*", "*lora_embedding_B*")
"""The factors that start at random, in PEFT's names."""


class FedSaLoraConfig(WeightingConfig):
    """Common factors A, and own factors B."""

    name: Literal["fedsa_lora"] = "fedsa_lora"
    shared: Texts = Field(
        (), description="names or globs of the parameters that are averaged; empty: the factors A"
    )


class FfaLoraConfig(WeightingConfig):
    """Common adapters whose factors A stay at their start."""

    name: Literal["ffa_lora"] = "ffa_lora"
    frozen: Texts = Field(
        (),
        description="names or globs of the parameters that stay at their start; empty: the factors that "
        "start at random, A or in an embedding B",
    )


class LoraPart(SharedPart):
    """A method that treats one factor of every adapter differently."""

    def factors(self, key: str, *globs: str) -> tuple[Columns, Columns]:
        """Return the columns that a key names, or those of the factors like the globs; and all others."""
        names = [
            name
            for name in self.clients.columns("*").names
            if any(fnmatchcase(name, glob) for glob in globs)
        ]
        if not names and not getattr(self.config, key):
            raise ConfigError(
                f"algorithm.name={self.config.name} is for LoRA adapters, and this model has no parameter "
                f"like {globs[0]}; choose task.name=language, or name parameters in algorithm.{key}"
            )
        return self.columns(key, *names)


@register.algorithm("fedsa_lora")
class FedSaLora(LoraPart):
    """A and B are trained together, and A is averaged; B stays with its client (Guo et al., ICLR 2025).

    What is no adapter, such as a trained head, stays with its client too.
    """

    Config = FedSaLoraConfig
    title, color, marker, place = "FedSA-LoRA", "#4e79a7", "<", 57

    def split(self) -> tuple[Columns, Columns]:
        """Return all but the factors A, and these."""
        shared, own = self.factors("shared", *FACTORS_A)
        return own, shared


@register.algorithm("ffa_lora")
class FfaLora(LoraPart):
    """A stays at its start, and all else is trained and averaged (Sun et al., ICLR 2024).

    With a common A, the mean of the products B_i A is the product of the means. So all clients start at one
    A: that of x^0, or the mean of the models of another run (`run.init_from`).
    """

    Config = FfaLoraConfig
    title, color, marker, place = "FFA-LoRA", "#f28e2b", ">", 58
    trains_parts = True

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.start_1k = self.own.take(self.clients.start_rows(1)).clone()
        self.user_notice = self.user_notice.replace("with their client", "at their start")

    def split(self) -> tuple[Columns, Columns]:
        """Return the factors that start at random, and all others."""
        return self.factors("frozen", *DRAWN_FACTORS)

    def round(self, t: int) -> RoundResult:
        """Start all at one A; then work locally and average as FedAvg does."""
        if t == 0:
            self.start_alike()
        return super().round(t)

    def start_alike(self) -> None:
        """Give all clients the same A."""
        x_cd, n = self.clients.x_cd, self.context.clients
        common_1k = self.start_1k
        if self.clients.loaded:
            common_1k = self.exchange.all_reduce(np.full((1, n), 1.0 / n), self.own.take(x_cd))
        self.own.put(common_1k.expand(len(x_cd), -1), x_cd)

    def train(self, t: int) -> Tensor:
        """Train all but A."""
        return local_step(self.clients, t, only=self.shared)
