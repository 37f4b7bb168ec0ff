"""What every task offers to the loop."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.clients.group import LearningTask
from cobo_dist.settings import Section


class DataConfig(Section):
    """How examples are read."""

    batch_size: int = Field(
        32, ge=1, le=1_000_000, description="examples in a client's batch, a round (digits)"
    )
    eval_batch_size: int = Field(1000, ge=1, description="examples evaluated at once")


class Task(LearningTask, Protocol):
    """A learning problem split over n clients; `LearningTask` is what the clients see of it."""

    name: str
    clients: int
    clusters: tuple[int, ...] | None  # the true cluster of each client, where there is one
    splits: tuple[str, ...]  # what can be evaluated
    metrics: tuple[str, ...]  # what an evaluation gives: "loss" and more
    diagnoses: bool  # whether `diagnose` has something to say every round

    def diagnose(self, x_nd: NDArray[np.floating]) -> dict[str, float]:
        """Return further figures of all clients' models [n, d]."""

    def fingerprint(self) -> str:
        """Return a digest of the data, the same on every rank that reads the same data."""
