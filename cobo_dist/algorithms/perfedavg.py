"""Per-FedAvg: a start from which one step personalizes (Fallah, Mokhtari and Ozdaglar, NeurIPS 2020)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from cobo_dist.algorithms.algorithm import RunSettings
from cobo_dist.algorithms.base import RoundResult
from cobo_dist.algorithms.fedavg import WeightingConfig
from cobo_dist.algorithms.local_steps import LocalStep
from cobo_dist.algorithms.two_models import TwoModels
from cobo_dist.lazy import Tensor, torch
from cobo_dist.maths.alignment import dots
from cobo_dist.registry import register


class PerFedAvgConfig(WeightingConfig):
    """One start for all clients, which each adapts by one step."""

    name: Literal["perfedavg"] = "perfedavg"
    variant: Literal["first_order", "hessian_free"] = Field(
        "first_order",
        description="first_order: leave out the second derivatives; hessian_free: their product with the "
        "gradient by a difference of two gradients",
    )
    personal_lr: float = Field(
        0.01,
        gt=0,
        le=1e15,
        description="step size alpha of the personal step (at 0 it would be FedAvg); optimizer.lr is beta",
    )
    delta: float = Field(
        1e-3,
        gt=0,
        le=1e15,
        description="hessian_free: how far from w, in the norm, the two gradients are taken",
    )

    @property
    def batch_streams(self) -> int:
        """For the personal step, the gradient after it, the step to X; and for second derivatives."""
        return 4 if self.variant == "hessian_free" else 3

    @property
    def step_keys(self) -> tuple[str, ...]:
        """The step to the point where gradients are taken."""
        return ("algorithm.personal_lr",)

    def unsuited(self, settings: RunSettings) -> str:
        """Refuse clipped gradients where second derivatives are a difference of two."""
        if self.variant != "hessian_free" or not settings.clip_norm:
            return ""
        return (
            f"algorithm.variant=hessian_free takes second derivatives from a difference of two gradients, "
            f"which local.clip_norm={settings.clip_norm:g} would clip; set local.clip_norm=0 or "
            "algorithm.variant=first_order"
        )

    def contradiction(self) -> str:
        """Return why `delta` has no effect."""
        default = type(self).model_fields["delta"].default
        if self.variant == "first_order" and self.delta != default:
            return (
                f"algorithm.delta={self.delta:g} means nothing to algorithm.variant=first_order; drop it or "
                "set algorithm.variant=hessian_free"
            )
        return ""


@register.algorithm("perfedavg")
class PerFedAvg(TwoModels):
    """min_w mean_i f_i(w - alpha grad f_i(w)).

    In each local step of a client's copy w_i, on a batch each: x_i = w_i - alpha g_i(w_i), then
    w_i <- w_i - eta (I - alpha H_i(w_i)) g_i(x_i), where first_order leaves out H_i, and hessian_free takes
    H_i v as ||v|| (g_i(w_i + delta u) - g_i(w_i - delta u)) / (2 delta), u = v / ||v||. So these are two or
    four gradients a local step. After a round w = mean_i w_i over the clients that take part, and their
    models in X are one personal step from w, x_i = w - alpha g_i(w) on a further batch. The others keep
    theirs. The client's optimizer moves w_i; BatchNorm's statistics are those of x_i. W is all ones.
    """

    Config = PerFedAvgConfig
    title, color, marker, place = "Per-FedAvg", "#33a02c", "d", 22

    def round(self, t: int) -> RoundResult:
        """Take the local steps of the copies of w, average them, and personalize w."""
        x_cd, w_cd, alpha = self.clients.x_cd, self.copies(), self.config.personal_lr
        steps = self.clients.local_steps(t)
        for step in steps:
            x_cd[step.rows] = w_cd[step.rows]
            step.move(x_cd, step.gradients(w_cd), -alpha)
            g_kd = step.gradients(x_cd, "meta", trains=True)
            if self.config.variant == "hessian_free":
                g_kd = g_kd.clone()
                g_kd.sub_(self.hessian_product(step, w_cd, g_kd), alpha=alpha)
            step.descend(w_cd, g_kd)
        self.average(w_cd, t)
        x_cd[steps.rows] = self.w_1d
        part_c = self.context.taking_part(t)[list(self.clients.ids)]
        for step in self.clients.data_steps(t, 0.0, np.flatnonzero(part_c)):
            step.move(x_cd, step.gradients(x_cd, "adaptation"), -alpha)
        return RoundResult(steps.losses())

    def hessian_product(self, step: LocalStep, w_cd: Tensor, v_kd: Tensor) -> Tensor:
        """Return ||v_i|| (g_i(w_i + delta u_i) - g_i(w_i - delta u_i)) / (2 delta) [k, d]; overwrites X.

        u_i is v_i / ||v_i||: the points are as far apart for a short v_i, so that float32 tells them apart.
        """
        x_cd, delta = self.clients.x_cd, self.config.delta
        norms_k1 = dots(v_kd, v_kd).sqrt()[:, None]
        u_kd = v_kd / norms_k1.clamp(min=torch.finfo(v_kd.dtype).tiny)
        x_cd[step.rows] = w_cd[step.rows]
        step.move(x_cd, u_kd, delta)
        ahead_kd = step.gradients(x_cd, "hessian").clone()
        x_cd[step.rows] = w_cd[step.rows]
        step.move(x_cd, u_kd, -delta)
        return ahead_kd.sub_(step.gradients(x_cd, "hessian")).mul_(norms_k1 / (2.0 * delta))
