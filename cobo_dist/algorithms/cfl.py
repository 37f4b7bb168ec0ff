"""CFL: clustered federated learning by recursive bipartition (Sattler, Mueller, Samek, IEEE TNNLS 2021)."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.algorithms.base import AlgorithmState, RoundResult
from cobo_dist.algorithms.found_groups import FoundGroups, FoundGroupsConfig
from cobo_dist.lazy import torch
from cobo_dist.maths.alignment import cosine, squared_norms
from cobo_dist.maths.distances import linked_groups
from cobo_dist.maths.flat import Scratch
from cobo_dist.registry import register

Floats = NDArray[np.float64]


class CflConfig(FoundGroupsConfig):
    """FedAvg within clusters that are split where clients disagree."""

    name: Literal["cfl"] = "cfl"
    eps1: float = Field(
        0.4,
        ge=0,
        description="a cluster is split only where the norm of its mean update is below it (authors: 0.4, "
        "absolute)",
    )
    eps2: float = Field(
        0.6,
        ge=0,
        description="and the largest norm of a member's update is above it (authors: 1.6, absolute)",
    )
    norms: Literal["relative", "absolute"] = Field(
        "relative",
        description="whether eps1 and eps2 are norms of updates (paper), or factors on eta(t) times the mean "
        "norm of an update over its step size in the rounds without a split, which suits any schedule",
    )
    linkage: Literal["complete", "single"] = Field(
        "complete",
        description="how a cluster is cut: by complete linkage (authors' code), or by single linkage, whose "
        "cut has the least largest cosine across (paper, Algorithm 1)",
    )
    first_split: int = Field(
        20, ge=1, description="the first rounds without a split (authors: 20), at least one"
    )
    min_size: int = Field(
        3, ge=2, description="members that a cluster must have to be split (authors: 3)"
    )
    gamma: float | None = Field(
        None,
        ge=-1,
        le=1,
        description="a cluster is split only where the largest cosine across the cut is below "
        "sqrt((1 - gamma)/2) (paper: gamma_max, Algorithm 3); null: without this check, as published code",
    )


@register.algorithm("cfl")
class Cfl(FoundGroups):
    """FedAvg within clusters; a cluster is cut in two where it is stationary and its members are not.

    With the updates dx_i of a round, cluster C is cut if ||mean over C of dx_i|| < eps1 and max over C of
    ||dx_i|| > eps2, into two parts by the cosines of dx_i and dx_j. `linkage=single` makes the largest
    cosine across the cut least, which is the paper's optimal bipartition. Complete linkage, as the authors'
    code has it, does not in general: it keeps the least cosine within a part large. Parts are cut again in
    later rounds; they begin at the model of C. With relative norms, eps1 and eps2 are for dx_i / eta(t), so
    that a schedule of the step size does not change when clusters are cut. `eps1=0` is FedAvg.
    The clients that take part decide whether a cluster is cut. Where only some do, the last updates of all
    members say how, once all have one.
    """

    Config = CflConfig
    title, color, marker, place = "CFL", "#1b7837", "<", 43
    config: CflConfig

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.scratch = Scratch(self.clients.x_cd.dtype, self.clients.x_cd.device)
        self.norms_2 = torch.zeros(2, dtype=torch.float64)  # of early directions: sum and number
        if not self.clients.several_steps:
            self.user_notice = (
                "CFL compares the updates of a round, and those of one step are much the noise of a batch: "
                "local.epochs=1 makes them comparable"
            )

    def round(self, t: int) -> RoundResult:
        """Work locally, average within clusters, and cut clusters that ask for it."""
        self.use_found()
        x_cd = self.clients.x_cd
        start_cd = self.scratch.rows("start", *x_cd.shape).copy_(x_cd)
        losses_c, direction_cd, updates_cd = self.local_updates(t)
        own_c = squared_norms(direction_cd)
        self.average_all(t)
        mean_c = squared_norms(start_cd.neg_().add_(x_cd))
        squares_c2 = torch.stack([own_c, mean_c], dim=1).cpu().numpy()
        own_n, mean_n = np.sqrt(self.exchange.all_gather(squares_c2)).T
        stationary = self.to_cut(t, own_n, mean_n)
        if not stationary:
            return RoundResult(losses_c)
        products_nn = self.products(updates_cd)
        squares_n = products_nn.diagonal()
        cosines_nn = cosine(products_nn, squares_n[:, None], squares_n)
        cut = [self.cut(members, cosines_nn) for members in stationary]
        self.use_found()
        return RoundResult(losses_c, weights_replaced=any(cut))

    def to_cut(self, t: int, own_n: Floats, mean_n: Floats) -> list[NDArray[np.int64]]:
        """Return the members of each cluster that is stationary while its members are not.

        Args:
            t: the round.
            own_n: norms of the clients' directions in this round: of their updates over eta(t).
            mean_n: norms of the mean updates of their clusters.
        """
        config, part_n, eta = self.config, self.context.taking_part(t), self.clients.eta(t)
        if t < config.first_split:
            early = own_n[part_n]
            self.norms_2 += torch.tensor([early.sum(), len(early)], dtype=torch.float64)
            return []
        total, count = self.norms_2.tolist()
        unit = 1.0 if config.norms == "absolute" else eta * total / max(count, 1.0)
        found = []
        for label in range(int(self.found_n.max()) + 1):
            members = np.flatnonzero((self.found_n == label) & self.context.members(t))
            taking = members[part_n[members]]
            if len(members) < config.min_size or not len(taking) or not self.known_n[members].all():
                continue
            largest = eta * own_n[taking].max()
            if mean_n[members[0]] < config.eps1 * unit and largest > config.eps2 * unit:
                found.append(members)
        return found

    def cut(self, members: NDArray[np.int64], cosines_nn: Floats) -> bool:
        """Cut a cluster in two by its members' cosines; return whether the check of gamma let it."""
        cosines_mm = cosines_nn[np.ix_(members, members)]
        side_m = linked_groups(1.0 - cosines_mm, self.config.linkage, count=2)
        across = cosines_mm[np.ix_(side_m == 0, side_m == 1)]
        gamma = self.config.gamma
        if not across.size or (gamma is not None and across.max() >= math.sqrt((1 - gamma) / 2)):
            return False
        self.found_n[members[side_m == 1]] = self.found_n.max() + 1
        return True

    def state(self) -> AlgorithmState:
        """Return also the norms of early updates."""
        state = super().state()
        return AlgorithmState(rows=state.rows, shared=state.shared | {"norms": self.norms_2})
