"""pFedMe: personalized learning with Moreau envelopes (T Dinh, Tran and Nguyen, NeurIPS 2020)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from cobo_dist.algorithms.algorithm import Finding, HealthFacts, RunSettings
from cobo_dist.algorithms.base import Clients, Exchange, RoundResult, RunContext
from cobo_dist.algorithms.fedavg import WeightingConfig
from cobo_dist.algorithms.two_models import TwoModels
from cobo_dist.registry import register


class PFedMeConfig(WeightingConfig):
    """Personal models near a global one, which follows them."""

    name: Literal["pfedme"] = "pfedme"
    lambda_: float = Field(
        15.0,
        gt=0,
        le=1e15,
        alias="lambda",
        description="pull between a personal model and the client's copy of the global one (authors' "
        "code: 15)",
    )
    inner_steps: int = Field(
        5,
        ge=1,
        le=10_000,
        description="gradient steps K of the personal model on one batch, in each local step (authors' "
        "code: 5)",
    )
    personal_lr: float = Field(
        0.09,
        gt=0,
        le=1e15,
        description="step size of the personal model (authors' code: 0.09); optimizer.lr is that of the "
        "global one",
    )
    beta: float = Field(
        1.0,
        gt=0,
        le=1e15,
        description="share of the clients' mean in the new global model (authors' code: 1)",
    )

    @property
    def step_keys(self) -> tuple[str, ...]:
        """The pull, which moves both models, and the step of the personal one."""
        return ("algorithm.lambda", "algorithm.personal_lr")

    def unsuited(self, settings: RunSettings) -> str:
        """Refuse AdamW: w_i would move as far for any lambda."""
        return settings.without_size("pfedme", "lambda")

    def check_settings(self, facts: HealthFacts) -> Iterator[Finding]:
        """Check that neither step overshoots by its pull alone."""
        for key, lr in (
            ("algorithm.personal_lr", self.personal_lr),
            ("optimizer.lr", facts.lr),
        ):
            if lr * self.lambda_ >= 2.0:
                yield Finding(
                    f"pull {key}",
                    f"{key}={lr:g} times algorithm.lambda={self.lambda_:g} is {lr * self.lambda_:g}, and "
                    f"from 2 on the pull moves models apart; set {key} below {2.0 / self.lambda_:.3g}",
                )


@register.algorithm("pfedme")
class PFedMe(TwoModels):
    """min_w mean_i F_i(w), where F_i(w) = min_theta f_i(theta) + lambda/2 ||theta - w||^2.

    In each local step, on one batch: K times
    theta_i <- theta_i - eta_p (g_i(theta_i) + lambda (theta_i - w_i)), then
    w_i <- w_i - eta lambda (w_i - theta_i), which is a gradient step of F_i. After a round
    w <- (1 - beta) w + beta mean_i w_i over the clients that take part. Both w_i and theta_i start a round at
    w; in later local steps theta_i goes on from the last one. X has theta_i. That is K gradients a local
    step. The client's optimizer moves w_i; theta_i moves by plain gradient steps. Clients that do not take
    part keep theta_i. W is all ones.
    """

    Config = PFedMeConfig
    title, color, marker, place = "pFedMe", "#1f78b4", ">", 21

    def __init__(
        self, config: PFedMeConfig, clients: Clients, exchange: Exchange, context: RunContext
    ) -> None:
        super().__init__(config, clients, exchange, context)
        self.user_notice = (
            f"pFedMe takes algorithm.inner_steps={config.inner_steps} gradients in each local step"
        )

    def round(self, t: int) -> RoundResult:
        """Take the local steps of personal models and of copies of the global one, then average these."""
        config, theta_cd, w_cd = self.config, self.clients.x_cd, self.copies()
        steps = self.clients.local_steps(t)
        theta_cd[steps.rows] = self.w_1d
        for step in steps:
            rows = step.rows
            for _ in range(config.inner_steps):
                g_kd = step.gradients(theta_cd, trains=True)
                g_kd.add_(theta_cd[rows] - w_cd[rows], alpha=config.lambda_)
                step.move(theta_cd, g_kd, -config.personal_lr)
            step.descend(w_cd, (w_cd[rows] - theta_cd[rows]).mul_(config.lambda_))
        self.average(w_cd, t, config.beta)
        return RoundResult(steps.losses())
