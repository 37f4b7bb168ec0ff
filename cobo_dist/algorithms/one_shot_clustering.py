"""One-shot clustering: FedAvg, then groups that are found once, then FedAvg within them.

FLHC groups clients by their updates (Briggs, Fan, Andras, IJCNN 2020).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.algorithms.base import AlgorithmState, RoundResult
from cobo_dist.algorithms.found_groups import FoundGroups, FoundGroupsConfig
from cobo_dist.errors import ConfigError
from cobo_dist.lazy import Tensor, torch
from cobo_dist.maths.alignment import cosine
from cobo_dist.maths.distances import Linkage, linked_groups, squared_distances
from cobo_dist.registry import register

Floats = NDArray[np.float64]


class OneShotConfig(FoundGroupsConfig):
    """FedAvg within groups that are found once."""

    after_rounds: int = Field(
        10,
        ge=1,
        description="the round after whose local work clients are grouped; FedAvg before it",
    )
    linkage: Linkage = Field(
        "average",
        description="distance of two groups: the mean, largest or smallest one of their members",
    )
    clusters: int = Field(
        0,
        ge=0,
        le=10_000,
        description="number of groups; 0: the true number of clusters, or what algorithm.threshold finds",
    )
    threshold: float = Field(
        0.0,
        ge=0,
        description="groups nearer than so many times the mean distance of two clients are merged; 0: "
        "algorithm.clusters says how many there are",
    )

    @property
    def needs_clusters(self) -> bool:
        """Whether the number of groups is that of the clusters."""
        return not (self.clusters or self.threshold)

    def contradiction(self) -> str:
        """Return that only one of two keys can decide."""
        if self.clusters and self.threshold:
            return (
                f"algorithm.clusters={self.clusters} and algorithm.threshold={self.threshold:g} both say "
                "when merging stops; drop one of them"
            )
        return ""

    def representative_rounds(self, rounds: int) -> list[tuple[int, int]]:
        """Rounds of FedAvg, the round in which clients are grouped, and rounds within the groups."""
        at = self.after_rounds - 1
        if at >= rounds:
            return [(0, rounds)]
        parts = [(0, at), (at, 1), (rounds - 1, rounds - 1 - at)]
        return [(t, count) for t, count in parts if count]


class OneShotClustering(FoundGroups):
    """Clients are grouped once, by a distance of each two of them; then averages are within the groups.

    That is in round `after_rounds` or, where only some clients take part, in the first one after it by which
    all have taken part once. The groups are merged from single clients (`linkage`).
    """

    config: OneShotConfig

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.grouped_1 = torch.zeros(1, dtype=torch.uint8)  # whether it has happened
        if self.config.clusters > self.context.clients:
            raise ConfigError(
                f"algorithm.clusters={self.config.clusters} are more groups than the {self.context.clients} "
                f"clients; set at most {self.context.clients}"
            )

    @abstractmethod
    def distances(self, updates_cd: Tensor) -> Floats:
        """Return the distances of all clients on every rank, [n, n], from their last updates."""

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

    def group(self, distances_nn: Floats, members_m: NDArray[np.int64]) -> None:
        """Merge the clients in the run into groups; the others are in group 0 until they join."""
        config, n = self.config, len(members_m)
        distances_nn = distances_nn[np.ix_(members_m, members_m)]
        if not np.isfinite(distances_nn).all():
            return  # a model diverged, which ends the run
        count = config.clusters or len(set(self.context.clusters or ()))
        mean = distances_nn.sum() / max(1, n * (n - 1))
        self.found_n[members_m] = linked_groups(
            distances_nn,
            config.linkage,
            count=0 if config.threshold else count,
            threshold=config.threshold * mean,
        )
        self.grouped_1.fill_(1)
        self.use_found()

    def state(self) -> AlgorithmState:
        """Return also whether clients have been grouped."""
        state = super().state()
        return AlgorithmState(rows=state.rows, shared=state.shared | {"grouped": self.grouped_1})


class FlhcConfig(OneShotConfig):
    """FedAvg within groups of clients with like updates."""

    name: Literal["flhc"] = "flhc"
    distance: Literal["euclidean", "cosine"] = Field(
        "euclidean",
        description="distance of two clients' updates: of the vectors, or 1 - cosine of their directions",
    )


@register.algorithm("flhc")
class Flhc(OneShotClustering):
    """FedAvg for some rounds, then agglomerative clustering of the updates, then FedAvg within the groups.

    If it finds the true clusters it is Oracle from then on; one group is FedAvg, one for each client Local.
    """

    Config = FlhcConfig
    title, color, marker, place = "FLHC", "#5ab4ac", "8", 45
    config: FlhcConfig

    def distances(self, updates_cd: Tensor) -> Floats:
        """Return ||dx_i - dx_j||, or 1 - cos(dx_i, dx_j)."""
        products_nn = self.products(updates_cd)
        squares_n = products_nn.diagonal().copy()
        if self.config.distance == "cosine":
            return 1.0 - cosine(products_nn, squares_n[:, None], squares_n)
        return np.sqrt(squared_distances(products_nn, squares_n, range(len(squares_n))))
