"""The config section `optimizer`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from cobo_dist.settings import Section, as_tuple

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """The local optimizer of every client."""

    name: Literal["sgd", "ema_momentum", "adamw"] = Field(
        "sgd",
        description="sgd: direction m = momentum m + g (momentum 0 is the paper); ema_momentum: "
        "m = momentum m + (1 - momentum) g from m = 0 (the authors' code); adamw: decoupled weight "
        "decay (language)",
    )
    # Bounds of 1e15 are far above any use, and products of two still fit float32, which torch requires.
    lr: float = Field(
        0.1, ge=0, le=1e15, description="step size eta of the models; a schedule's peak"
    )
    momentum: float = Field(
        0.0, ge=0, lt=1, description="sgd, ema_momentum: factor of the last direction"
    )
    betas: Annotated[tuple[Beta, Beta], BeforeValidator(as_tuple)] = Field(
        (0.9, 0.95), description="adamw: factors of the two moments"
    )
    eps: float = Field(
        1e-8, gt=0, le=1e15, description="adamw: added to the root of the second moment"
    )
    weight_decay: float = Field(
        1e-3, ge=0, le=1e15, description="adamw: factor of the model in the direction"
    )
    schedule: Literal["constant", "one_cycle"] = Field(
        "constant",
        description="eta over the rounds: constant, or one_cycle: up along a cosine, then down along "
        "one (language)",
    )
    warmup: float = Field(
        0.02,
        ge=0,
        le=1,
        description="one_cycle: share of the rounds on the way up (the authors: 2%)",
    )
    div_factor: float = Field(
        25.0, ge=1, description="one_cycle: the first eta is lr / div_factor (PyTorch's default)"
    )
    final_div_factor: float = Field(
        1e4,
        gt=0,
        description="one_cycle: the last eta is the first / final_div_factor (PyTorch's default)",
    )

    def contradiction(self) -> str:
        """Return why keys of another optimizer or schedule have no effect; empty if none is set."""
        adam, cycle = self.name == "adamw", self.schedule == "one_cycle"
        for key in ("momentum",) if adam else ("betas", "eps", "weight_decay"):
            if getattr(self, key) != OptimizerConfig.model_fields[key].default:
                owner = "adamw" if key != "momentum" else "sgd or ema_momentum"
                return (
                    f"optimizer.{key} means nothing to optimizer.name={self.name}; drop it or set "
                    f"optimizer.name={owner}"
                )
        for key in () if cycle else ("warmup", "div_factor", "final_div_factor"):
            if getattr(self, key) != OptimizerConfig.model_fields[key].default:
                return (
                    f"optimizer.{key} means nothing to optimizer.schedule={self.schedule}; drop it or "
                    "set optimizer.schedule=one_cycle"
                )
        return ""
