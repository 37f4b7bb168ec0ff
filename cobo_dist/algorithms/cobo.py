"""CoBo: Collaborative Learning via Bilevel Optimization (Hashemi, He, Jaggi, NeurIPS 2024), Algorithm 1.

Outer problem (model training), W fixed:
    min over x_1..x_n   sum_i f_i(x_i) + rho/2 sum_{i<j} w_ij ||x_i - x_j||^2
Inner problem (client selection), X fixed:
    max over w_ij in [0, 1]   w_ij <grad f_i(z_ij), grad f_j(z_ij)>,   z_ij = (x_i + x_j)/2

`rho=0` is Local. W fixed block-diagonal and rho -> infinity is Oracle; W all ones, FedAvg.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from cobo_dist.maths import projections, seeds
from cobo_dist.maths.alignment import midpoints
from cobo_dist.maths.sampling import draw_pairs, pair_probability
from cobo_dist.settings import Section

from .base import Clients, Exchange, Round, Selection, Setting


class SamplingConfig(Section):
    """Which pairs meet in a round (Table 1)."""

    name: Literal["constant", "time", "mixed", "all", "published"] = Field(
        "constant",
        description="probability of an unordered pair: constant 1/n, time 1/t, mixed 1/n at first "
        "and then 1/t, all 1; published (the authors' code) 2/n for 800 rounds, then 1/sqrt(t)",
    )
    rate: float = Field(1.0, ge=0, description="factor on that probability; 0 draws none")
    switch_fraction: float = Field(
        0.002, ge=0, le=1, description="mixed: share of the rounds before 1/t (paper: 0.2%)"
    )


class CoBoConfig(Section):
    """Models and collaboration weights learned together."""

    name: Literal["cobo"] = "cobo"
    rho: float = Field(0.2, ge=0, description="penalty on the distance of collaborators' models")
    gamma: float = Field(0.01, ge=0, description="step size of the collaboration weights")
    domain: Literal["box"] = Field("box", description="where weights live: box is [0, 1] each")
    sampling: SamplingConfig = SamplingConfig()
    alignment: Literal["inner", "cosine"] = Field(
        "inner",
        description="what moves a weight: inner product of the midpoint gradients (paper) or their "
        "cosine, which does not fade with the gradients",
    )
    start: Literal["ones", "zeros"] = Field(
        "ones", description="W^0: all ones (paper) or zeros, which lets collaboration grow"
    )
    order: Literal["weights_first", "models_first"] = Field(
        "weights_first",
        description="within a round: client selection, then models with the new weights (paper), or "
        "models with the old weights, then selection (the authors' code); both read x^t",
    )
    midpoint_data: Literal["fresh", "shared"] = Field(
        "fresh",
        description="a client's examples at midpoints: a stream of their own, or the batch of its "
        "local step (the paper leaves it open)",
    )


class CoBo:
    """Alternates client selection and model training; both read x^t, and selection comes first."""

    notice = ""

    def __init__(
        self, config: CoBoConfig, clients: Clients, exchange: Exchange, setting: Setting
    ) -> None:
        self.config, self.clients, self.exchange, self.setting = config, clients, exchange, setting
        w_0 = 1.0 if config.start == "ones" else 0.0
        double = clients.x_cd.dtype == torch.float64
        # This rank's rows of W only. The diagonal is never drawn and has no effect.
        self.weights_cn: NDArray[np.floating] = np.full(
            (len(clients.ids), setting.clients), w_0, dtype=np.float64 if double else np.float32
        )

    def round(self, t: int) -> Round:
        """Algorithm 1, lines 2 to 5, for this rank's clients."""
        pairs_m2 = self.draw(t)
        self.exchange.send_models(self.clients.x_cd, pairs_m2)
        losses_c = self.clients.gradients(t)  # independent of W: computed while models travel
        self.exchange.receive_models()
        weights_cn = self.weights_cn
        if self.config.order == "models_first":
            weights_cn = weights_cn.copy()  # selection moves the weights, models keep the old ones
        # At most n pairs at a time, to bound the memory of midpoints. A weight depends only on x^t and
        # its own past, so cutting the list changes nothing.
        pieces = torch.split(pairs_m2, self.setting.clients)
        selections = [self.client_selection(t, pairs_k2) for pairs_k2 in pieces]
        self.model_training(weights_cn)
        return Round(losses_c, len(pairs_m2), selections)

    def draw(self, t: int) -> Tensor:
        """Return the pairs of round t, int64 [m, 2]: the same on every rank."""
        n, sampling = self.setting.clients, self.config.sampling
        probability = pair_probability(
            sampling.name,
            t,
            n,
            self.setting.rounds,
            rate=sampling.rate,
            switch_fraction=sampling.switch_fraction,
        )
        return draw_pairs(seeds.key(self.setting.seed, "pairs", t), n, probability)

    def client_selection(self, t: int, pairs_k2: Tensor) -> Selection:
        """w_ij <- Proj(w_ij + gamma <g_i(z_ij), g_j(z_ij)>), each gradient on its owner's data."""
        ends, partner_ed = self.exchange.meet(pairs_k2)
        z_ed = midpoints(self.clients.x_cd, ends.rows, partner_ed)
        stream = "midpoint" if self.config.midpoint_data == "fresh" else "local"
        g_ed = self.clients.gradients_at(z_ed, ends.rows, t, stream)
        alignment_e = self.exchange.alignment(g_ed, self.config.alignment)
        moved_e = self.weights_cn[ends.rows, ends.partners] + self.config.gamma * alignment_e
        w_e = projections.box(torch.from_numpy(moved_e)).numpy().astype(self.weights_cn.dtype)
        self.weights_cn[ends.rows, ends.partners] = w_e
        once = ends.first
        return Selection(ends.ids[once], ends.partners[once], w_e[once], alignment_e[once])

    def model_training(self, weights_cn: NDArray[np.floating]) -> None:
        """x_i <- x_i - eta (g_i + rho sum_k w_ik (x_i - x_k)) with these rows of W.

        Written as x_i (1 - eta rho deg_i) + eta (rho sum_k w_ik x_k - g_i), deg_i = sum_k w_ik,
        which needs no room beside what `mix` delivers.
        """
        x_cd, eta, rho = self.clients.x_cd, self.clients.eta, self.config.rho
        degree_c = torch.from_numpy(weights_cn.sum(axis=1, dtype=np.float64))
        mixed_cd = self.exchange.mix(weights_cn, x_cd)
        mixed_cd.mul_(rho).sub_(self.clients.direction()).mul_(eta)
        x_cd.mul_((1.0 - eta * rho * degree_c)[:, None].to(x_cd)).add_(mixed_cd)
