"""What every task offers to the loop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor

from cobo_dist.clients.learning_task import LearningTask
from cobo_dist.settings import Section, Text


class DataConfig(Section):
    """How examples are found and read."""

    root: Text = Field(
        "data",
        description="folder with CIFAR-100: cifar100.npz, or cifar-100-python as torchvision "
        "stores it (cross_silo, cross_device); with Wiki-40B's texts, and all texts as tokens "
        "(language)",
    )
    file: Text = Field(
        "",
        description="in place of CIFAR-100: an npz with x_train uint8 [N, H, W, 3 or 1], y_train, "
        "x_test, y_test (cross_silo, cross_device)",
    )
    batch_size: int = Field(
        32, ge=1, le=1_000_000, description="examples that a client's gradient is taken on at once"
    )
    accumulation: int = Field(
        1,
        ge=1,
        le=100_000,
        description="such batches in one gradient, a round: the mean over batch_size * accumulation "
        "examples in the memory of batch_size (BatchNorm sees each batch by itself)",
    )
    text_dir: Text = Field(
        "", description="in place of Wiki-40B: a folder with one NAME.txt a client (language)"
    )
    eval_batch_size: int = Field(
        200,
        ge=1,
        le=1_000_000_000,
        description="examples evaluated at once (language: batch_size at most): their activations are "
        "often the most memory that a rank takes",
    )
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

    @property
    def examples_a_round(self) -> int:
        """Examples of one client in a round."""
        return self.batch_size * self.accumulation


class Task(LearningTask, Protocol):
    """A learning problem split over n clients; `LearningTask` is what the clients see of it."""

    name: str
    clients: int
    names: tuple[str, ...]  # of the clients; empty where they have none
    clusters: tuple[int, ...] | None  # the true cluster of each client, where there is one
    splits: tuple[str, ...]  # what can be evaluated
    metrics: tuple[str, ...]  # what an evaluation gives: "loss" and more, the one that judges last
    diagnoses: bool  # whether `diagnose` has something to say every round

    def diagnose(self, x_nd: NDArray[np.floating]) -> dict[str, float]:
        """Return further figures of all clients' models [n, d]."""

    def fingerprint(self) -> str:
        """Return a digest of the data, the same on every rank that reads the same data."""

    def save(self, state: Mapping[str, Tensor], path: Path) -> None:
        """Write one client's model at `path`, which has no suffix yet; whole or not at all."""


def mean_of(sums: Mapping[str, float], examples: int) -> dict[str, float]:
    """Return every sum's mean over the examples."""
    return {name: value / examples for name, value in sums.items()}


def save_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Write one client's model as `path`.safetensors: into a neighbour first, then renamed."""
    draft = path.with_name(path.name + ".part")
    save_file(dict(state), draft)
    draft.replace(path.with_name(path.name + ".safetensors"))
