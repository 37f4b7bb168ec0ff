"""FLHC: groups by updates, found once (Briggs, Fan, Andras, IJCNN 2020).

Shapes: n clients, c on this rank, d parameters.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.algorithms.base import RoundResult
from cobo_dist.algorithms.found_groups import GroupsByUpdates
from cobo_dist.algorithms.one_shot_clustering import OneShotClustering, OneShotConfig
from cobo_dist.lazy import Tensor
from cobo_dist.maths.alignment import cosine
from cobo_dist.maths.distances import squared_distances
from cobo_dist.registry import register

Floats = NDArray[np.float64]


class FlhcConfig(OneShotConfig):
    """FedAvg within groups of clients with like updates."""

    name: Literal["flhc"] = "flhc"
    after_rounds: int = Field(
        10,
        ge=1,
        description="the round after whose local work clients are grouped; FedAvg before it",
    )
    distance: Literal["euclidean", "cosine"] = Field(
        "euclidean",
        description="distance of two clients' updates: of the vectors, or 1 - cosine of their directions",
    )

    def representative_rounds(self, rounds: int) -> list[tuple[int, int]]:
        """Rounds of FedAvg, the round in which clients are grouped, and rounds within the groups."""
        at = self.after_rounds - 1
        if at >= rounds:
            return [(0, rounds)]
        parts = [(0, at), (at, 1), (rounds - 1, rounds - 1 - at)]
        return [(t, count) for t, count in parts if count]


@register.algorithm("flhc")
class Flhc(GroupsByUpdates, OneShotClustering):
    """FedAvg for some rounds, then agglomerative clustering of the updates, then FedAvg within the groups.

    Clients are grouped in round `after_rounds` or, where only some take part, in the first one after it by
    which all have taken part once. If FLHC finds the true clusters it is Oracle from then on; one group is
    FedAvg, one for each client Local.
    """

    Config = FlhcConfig
    title, color, marker, place = "FLHC", "#5ab4ac", "8", 45
    config: FlhcConfig

    def round(self, t: int) -> RoundResult:
        """Work locally, group the clients when it is time, and average within the groups."""
        self.use_found()
        losses_c, _, updates_cd = self.local_updates(t)
        members_n = self.context.members(t)
        due = t + 1 >= self.config.after_rounds and bool(self.known_n[members_n].all())
        groups_now = due and not int(self.grouped_1)
        if groups_now:
            self.group(self.distances(updates_cd), np.flatnonzero(members_n))
        self.average_all(t)
        return RoundResult(losses_c, weights_replaced=groups_now)

    def distances(self, updates_cd: Tensor) -> Floats:
        """Return ||dx_i - dx_j||, or 1 - cos(dx_i, dx_j), on every rank, [n, n]."""
        products_nn = self.products(updates_cd)
        squares_n = products_nn.diagonal().copy()
        if self.config.distance == "cosine":
            return 1.0 - cosine(products_nn, squares_n[:, None], squares_n)
        return np.sqrt(squared_distances(products_nn, squares_n, range(len(squares_n))))
