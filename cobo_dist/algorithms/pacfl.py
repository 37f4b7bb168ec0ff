"""PACFL: groups by the subspaces of clients' data, found once (Vahidian et al., AAAI 2023, arXiv 2209.10526).

Shapes: n clients, c on this rank, s numbers of a signature.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.algorithms.base import Newcomers, RoundResult
from cobo_dist.algorithms.one_shot_clustering import OneShotClustering, OneShotConfig
from cobo_dist.algorithms.peers import signature_distances
from cobo_dist.maths.subspaces import Angle
from cobo_dist.registry import register

Floats = NDArray[np.float64]


class PacflConfig(OneShotConfig):
    """FedAvg within groups of clients whose inputs lie in like subspaces."""

    name: Literal["pacfl"] = "pacfl"
    vectors: int = Field(
        3,
        ge=1,
        le=1_000,
        description="leading singular vectors that a client shows of its inputs, for each class or in all",
    )
    by_class: bool = Field(
        True, description="take them of the inputs of each class apart, or of all together"
    )
    angle: Angle = Field(
        "smallest",
        description="distance of two clients: the smallest principal angle of what their vectors span, or "
        "the mean of all these angles",
    )
    threshold: float = Field(
        0.0,
        ge=0,
        description="groups nearer than so many degrees are merged (authors: 4.9 for CIFAR-10 with two "
        "classes a client); 0: algorithm.clusters says how many there are",
    )

    @property
    def needs_inputs(self) -> bool:
        """Yes: clients show directions of them."""
        return True

    def representative_rounds(self, rounds: int) -> list[tuple[int, int]]:
        """The round in which clients are grouped, and rounds within the groups."""
        return [(t, count) for t, count in ((0, 1), (rounds - 1, rounds - 1)) if count]


@register.algorithm("pacfl")
class Pacfl(OneShotClustering):
    """Agglomerative clustering by principal angles between clients' data, then FedAvg within the groups.

    Before round 1 each client shows a few singular vectors of its inputs, once. A newcomer shows its own and
    joins the nearest group. Labels only tell classes apart, so clusters whose inputs are alike, such as those
    of permuted labels, cannot be found.
    """

    Config = PacflConfig
    title, color, marker, place = "PACFL", "#01665e", ">", 47
    newcomers_start = "group"
    config: PacflConfig

    def unit(self, distances_mm: Floats) -> float:
        """Return 1 degree."""
        return 1.0

    def round(self, t: int) -> RoundResult:
        """Group the clients before round 1; then work locally and average within the groups."""
        self.use_found()
        groups_now = not int(self.grouped_1)
        if groups_now:
            members_n = self.context.members(t)
            self.group(self.angles(members_n), np.flatnonzero(members_n))
        losses_c = self.train(t)
        self.average_all(t)
        return RoundResult(losses_c, weights_replaced=groups_now)

    def angles(self, among_n: NDArray[np.bool_]) -> Floats:
        """Return the angles between all clients of `among_n` on every rank, [n, n]; 0 for others."""
        config = self.config
        shown = self.clients.input_signatures(config.vectors, config.by_class, config.angle)
        angles_cn = signature_distances(shown, self.exchange, among_n)
        return self.exchange.all_gather(angles_cn).astype(np.float64)

    def to_group(self, angles_m: Floats) -> float:
        """Return the distance from a group, by those from its members."""
        if self.config.linkage == "average":
            return float(angles_m.mean())
        return float(angles_m.max() if self.config.linkage == "complete" else angles_m.min())

    def join(self, t: int, newcomers: Newcomers) -> None:
        """Put each newcomer into the nearest group, by `linkage`, and give it the group's model."""
        before_n = self.context.members(t)
        before_n[newcomers.ids_k] = False
        new = newcomers.ids_k[~newcomers.returns_k]
        if int(self.grouped_1) and before_n.any() and len(new):
            angles_nn = self.angles(self.context.members(t))
            groups = np.unique(self.found_n[before_n])
            for client in new:
                far_g = [
                    self.to_group(angles_nn[client, before_n & (self.found_n == group)])
                    for group in groups
                ]
                self.found_n[client] = groups[int(np.argmin(far_g))]
        self.use_found()
        super().join(t, newcomers)
