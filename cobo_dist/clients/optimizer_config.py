"""The config section `optimizer`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from cobo_dist.settings import Section, as_tuple

Beta = Annotated[float, Field(ge=0, lt=1)]

ADAMW_WEIGHT_DECAY = 1e-3
_EARLIER_KEYS = {
    "name", "lr", "momentum", "betas", "eps", "weight_decay", "schedule", "warmup", "div_factor",
    "final_div_factor",
}  # fmt: skip
"""All keys of a version in which weight decay belonged to AdamW alone."""
_OWNERS = {
    "step_every": "step", "step_factor": "step",
    "warmup": "one_cycle", "div_factor": "one_cycle", "final_div_factor": "one_cycle",
}  # fmt: skip
"""The schedule that each key belongs to."""


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
        0.0,
        ge=0,
        le=1e15,
        description="factor of the model that is added: to the gradient (sgd, ema_momentum), or to the "
        "direction (adamw, whose default is 1e-3)",
    )
    schedule: Literal["constant", "step", "cosine", "one_cycle"] = Field(
        "constant",
        description="eta over the rounds: constant; step: times step_factor after every step_every "
        "rounds; cosine: from lr down to 0 along a cosine; one_cycle: up along a cosine, then down "
        "along one (language)",
    )
    step_every: int = Field(
        100, ge=1, description="step: rounds from one change of eta to the next"
    )
    step_factor: float = Field(0.1, gt=0, le=1, description="step: factor of eta at each change")
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

    @model_validator(mode="before")
    @classmethod
    def _own_weight_decay(cls, given: Any) -> Any:
        """Give AdamW its own default, and the others theirs in the resolved config of an earlier version."""
        if not isinstance(given, dict):
            return given
        if given.get("name") == "adamw":
            return {"weight_decay": ADAMW_WEIGHT_DECAY, **given}
        if given.keys() == _EARLIER_KEYS and given["weight_decay"] == ADAMW_WEIGHT_DECAY:
            return {key: value for key, value in given.items() if key != "weight_decay"}
        return given

    @property
    def needs_rounds(self) -> tuple[str, ...]:
        """The schedules that end with the last round."""
        if self.schedule not in ("cosine", "one_cycle"):
            return ()
        return (f"optimizer.schedule={self.schedule} spreads over them",)

    def contradiction(self) -> str:
        """Return why keys of another optimizer or schedule have no effect; empty if none is set."""
        adam = self.name == "adamw"
        for key in ("momentum",) if adam else ("betas", "eps"):
            if getattr(self, key) != OptimizerConfig.model_fields[key].default:
                owner = "adamw" if key != "momentum" else "sgd or ema_momentum"
                return (
                    f"optimizer.{key} means nothing to optimizer.name={self.name}; drop it or set "
                    f"optimizer.name={owner}"
                )
        for key, owner in _OWNERS.items():
            if (
                owner != self.schedule
                and getattr(self, key) != OptimizerConfig.model_fields[key].default
            ):
                return (
                    f"optimizer.{key} means nothing to optimizer.schedule={self.schedule}; drop it or "
                    f"set optimizer.schedule={owner}"
                )
        return ""
