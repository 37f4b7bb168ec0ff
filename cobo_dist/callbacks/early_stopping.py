"""Stops a run whose clients no longer improve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from cobo_dist.callbacks.callback import Callback, CallbackSection, StopsAfter
from cobo_dist.errors import ConfigError
from cobo_dist.registry import register
from cobo_dist.run_config import RunConfig
from cobo_dist.settings import Text
from cobo_dist.storage.schema import higher_is_better


class EarlyStoppingConfig(CallbackSection):
    """Stop when the mean of a metric over clients has not improved for some evaluations."""

    metric: Text = Field("loss", description="metric of an evaluation, such as loss or accuracy")
    split: Literal["validation", "test"] = Field(
        "validation", description="data of the evaluation, one of run.eval_splits"
    )
    patience: int = Field(
        3, ge=1, description="evaluations without improvement after which the run stops"
    )
    min_delta: float = Field(0.0, ge=0, description="a smaller change than this is no improvement")
    mode: Literal["auto", "min", "max"] = Field(
        "auto",
        description="whether less or more is better; auto: less of loss, "
        "perplexity and bits_per_byte, more of every other metric",
    )


@register.callback("early_stopping")
class EarlyStopping(Callback):
    """Compares the metric with its best value after each evaluation in training."""

    name = "early_stopping"
    Config = EarlyStoppingConfig
    stops_after: ClassVar[StopsAfter] = "evaluations"
    config: EarlyStoppingConfig

    best: float = math.inf  # of what is minimized
    waited: int = 0  # evaluations since then

    def check(self, run: RunConfig, metrics: Sequence[str]) -> None:
        """Refuse a metric or split that is not evaluated."""
        watched = f"callbacks: early_stopping watches {self.config.split}/{self.config.metric}"
        if self.config.split not in run.eval_splits:
            both = ", ".join(dict.fromkeys((*run.eval_splits, self.config.split)))
            raise ConfigError(
                f"{watched}, and run.eval_splits={list(run.eval_splits)} lacks {self.config.split}; set "
                f"run.eval_splits=[{both}]"
            )
        if self.config.metric not in metrics:
            raise ConfigError(
                f"{watched}, and the task has {', '.join(metrics)}; choose one of them"
            )
        if not run.eval_every:
            raise ConfigError(
                f"{watched}, and run.eval_every=0 evaluates only at the end; raise it"
            )

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with the best value so far."""
        self.best = float(state.get("best", math.inf))
        self.waited = int(state.get("waited", 0))

    def after_round(self, r: int, metrics: Mapping[str, float]) -> bool | None:
        """Return True after `patience` evaluations without improvement."""
        value = metrics.get(f"{self.config.split}/{self.config.metric}")
        if value is None:
            return None
        rises = self.config.mode == "max" or (
            self.config.mode == "auto" and higher_is_better(self.config.metric)
        )
        value = -value if rises else value
        if value < self.best - (self.config.min_delta if math.isfinite(self.best) else 0.0):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        return self.waited >= self.config.patience

    def state(self) -> dict[str, Any]:
        """Return the best value and how long ago it was; no best value is not JSON."""
        return {"waited": self.waited} | ({"best": self.best} if math.isfinite(self.best) else {})
