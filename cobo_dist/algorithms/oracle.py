"""Oracle: FedAvg inside each true cluster, the upper bound for learned collaboration."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.algorithms.base import RoundResult, RunContext
from cobo_dist.algorithms.fedavg import FedAvg, WeightedAveragingConfig
from cobo_dist.algorithms.peers import hand_over
from cobo_dist.maths.weights import Weights
from cobo_dist.registry import register


class OracleConfig(WeightedAveragingConfig):
    """FedAvg inside each true cluster."""

    name: Literal["oracle"] = "oracle"
    follows: bool = Field(
        True,
        description="whether it knows when clients change cluster (task.drift); false: it keeps the clusters "
        "of the start",
    )

    @property
    def needs_clusters(self) -> bool:
        """Yes: each is averaged by itself."""
        return True


@register.algorithm("oracle")
class Oracle(FedAvg):
    """x_C <- mean over i in C of (x_C - eta g_i(x_C)) for each true cluster C. W is block diagonal.

    One cluster of all clients is FedAvg; a cluster for each client is Local. A client that changes cluster
    gets the model of its new cluster before the round.
    """

    Config = OracleConfig
    title, color, marker, place = "Oracle", "#000000", "o", 9
    role = "upper_bound"
    config: OracleConfig

    def groups(self, context: RunContext) -> tuple[int, ...]:
        """Return the true clusters at the start."""
        if context.clusters is None:
            raise ValueError("Oracle needs a task with known clusters")
        return context.clusters

    def round(self, t: int) -> RoundResult:
        """Follow clients that change cluster, work locally, then average within the clusters."""
        changed = self.config.follows and self.follow(t)
        result = super().round(t)
        return RoundResult(result.losses_c, weights_replaced=changed)

    def follow(self, t: int) -> bool:
        """Average within the clusters of round t; return whether they differ from those of the last round."""
        before_n, now_n = (np.asarray(self.context.clusters_at(at)) for at in (t - 1, t))
        # Also after a restart, or after clients changed ranks.
        if not np.array_equal(np.unique(now_n, return_inverse=True)[1].reshape(-1), self.groups_n):
            self.use_groups(Weights(self.clients.ids, now_n, symmetric=True))
        if np.array_equal(before_n, now_n):
            return False
        donor_n = donors(before_n, now_n, self.context.taking_part(t))
        hand_over(self.clients, self.exchange, donor_n)
        return True


def donors(
    before_n: NDArray[np.int64], now_n: NDArray[np.int64], part_n: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return, for each client, a client that had the model of its present cluster, [n].

    That is the client itself where it stays, and where nobody was in its present cluster; else one that takes
    part, if there is any.

    >>> before_n, now_n = np.array([0, 0, 1, 1]), np.array([1, 0, 1, 2])
    >>> donors(before_n, now_n, np.array([True, True, False, True])).tolist()
    [3, 1, 2, 3]
    """
    found_n = np.arange(len(before_n))
    for client in np.flatnonzero(before_n != now_n):
        members = np.flatnonzero(before_n == now_n[client])
        if len(members):
            found_n[client] = members[int(np.argmax(part_n[members]))]
    return found_n
