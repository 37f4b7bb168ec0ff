"""Oracle: FedAvg inside each true cluster, the upper bound for learned collaboration."""

from __future__ import annotations

from typing import Literal

from cobo_dist.algorithms.base import RunContext
from cobo_dist.algorithms.fedavg import FedAvg, WeightedAveragingConfig
from cobo_dist.registry import register


class OracleConfig(WeightedAveragingConfig):
    """FedAvg inside each true cluster."""

    name: Literal["oracle"] = "oracle"

    @property
    def needs_clusters(self) -> bool:
        """Yes: each is averaged by itself."""
        return True


@register.algorithm("oracle")
class Oracle(FedAvg):
    """x_C <- mean over i in C of (x_C - eta g_i(x_C)) for each true cluster C. W is block diagonal.

    One cluster of all clients is FedAvg; a cluster for each client is Local.
    """

    Config = OracleConfig
    title, color, marker, place = "Oracle", "#000000", "o", 9
    role = "upper_bound"

    def groups(self, context: RunContext) -> tuple[int, ...]:
        """Return the true clusters."""
        if context.clusters is None:
            raise ValueError("Oracle needs a task with known clusters")
        return context.clusters
