"""One-shot clustering: groups that are found once by a distance of clients, and FedAvg within them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.algorithms.base import AlgorithmState
from cobo_dist.algorithms.found_groups import FoundGroups, FoundGroupsConfig
from cobo_dist.errors import ConfigError
from cobo_dist.lazy import torch
from cobo_dist.maths.distances import Linkage, linked_groups

Floats = NDArray[np.float64]


class OneShotConfig(FoundGroupsConfig):
    """FedAvg within groups that are found once."""

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


class OneShotClustering(FoundGroups):
    """Clients are grouped once, by a distance of each two of them; averages are within the groups.

    The groups are merged from single clients (`linkage`). Until then all clients are one group.
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

    def unit(self, distances_mm: Floats) -> float:
        """Return the distance that a threshold of 1 is: here the mean one of two clients."""
        pairs = len(distances_mm) * (len(distances_mm) - 1)
        return float(distances_mm.sum() / max(1, pairs))

    def group(self, distances_nn: Floats, members_m: NDArray[np.int64]) -> None:
        """Merge the clients in the run into groups; the others are in group 0 until they join."""
        config = self.config
        distances_nn = distances_nn[np.ix_(members_m, members_m)]
        if not np.isfinite(distances_nn).all():
            return  # a model diverged, which ends the run
        count = config.clusters or len(set(self.context.clusters or ()))
        self.found_n[members_m] = linked_groups(
            distances_nn,
            config.linkage,
            count=0 if config.threshold else count,
            threshold=config.threshold * self.unit(distances_nn),
        )
        self.grouped_1.fill_(1)
        self.use_found()

    def state(self) -> AlgorithmState:
        """Return also whether clients have been grouped."""
        state = super().state()
        return AlgorithmState(rows=state.rows, shared=state.shared | {"grouped": self.grouped_1})
