"""What every task offers to the loop."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.clients.group import LearningTask
from cobo_dist.settings import Section, Text


class DataConfig(Section):
    """How examples are found and read."""

    root: Text = Field(
        "data",
        description="folder with CIFAR-100: cifar100.npz, or cifar-100-python as torchvision "
        "stores it (cross_silo, cross_device)",
    )
    file: Text = Field(
        "",
        description="in place of CIFAR-100: an npz with x_train uint8 [N, H, W, 3 or 1], y_train, "
        "x_test, y_test (cross_silo, cross_device)",
    )
    batch_size: int = Field(
        32, ge=1, le=1_000_000, description="examples in a client's batch, a round"
    )
    eval_batch_size: int = Field(1000, ge=1, description="examples evaluated at once")
    eval_examples: int = Field(
        0,
        ge=0,
        description="examples of each client evaluated while training goes on, a fixed random part; "
        "0: all. The last evaluation always uses all",
    )
    augment: bool = Field(
        True,
        description="images for training: random crop with reflect padding 4, horizontal flip",
    )
    channels_last: bool = Field(
        True, description="images lie in memory with channels last, which convolutions like best"
    )


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
