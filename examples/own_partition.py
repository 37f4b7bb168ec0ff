"""A partition of your own: one half of the clients has even labels, the other odd ones.

python -m cobo_dist.train plugins=examples/own_partition.py task.name=classification \
    task.partition.name=even_odd task.partition.clients=6 run.rounds=100
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist import ConfigError, PartitionSection, TrainingLabels, register
from cobo_dist.maths import seeds


@register.partition("even_odd")
class EvenOdd(PartitionSection):
    """Even labels for the first half of the clients, odd ones for the second."""

    clients: int = Field(4, ge=2, description="number of clients, which is even")

    def assign(self, given: TrainingLabels, seed: int) -> NDArray[np.int64]:
        """Return the client of each example: those of one parity in turn, in a random order."""
        if self.clients % 2:
            raise ConfigError(
                f"task.partition.clients={self.clients} cannot be halved; make it even"
            )
        half = self.clients // 2
        owners = np.empty(len(given.labels), dtype=np.int64)
        for parity in (0, 1):
            own = np.flatnonzero(given.labels % 2 == parity)
            order = seeds.permutation(seeds.key(seed, "even or odd", parity), len(own)).numpy()
            owners[own[order]] = parity * half + np.arange(len(own)) % half
        return owners

    def clusters_of(self, clients: int) -> Sequence[int]:
        """Return the halves, with which W is compared."""
        return [i * 2 // clients for i in range(clients)]
