"""The protocol of a task, and what tasks have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.clients.engines import Batch
from cobo_dist.clients.learning_task import LearningTask
from cobo_dist.lazy import Tensor, nn, torch
from cobo_dist.maths.true_graph import TrueGraph, Truth
from cobo_dist.settings import Section, Text
from cobo_dist.tasks.sections import ModelSection


class DataConfig(Section):
    """Location and batches of the examples."""

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
    seed: int | None = Field(
        None,
        ge=0,
        description="seed of what clients have: splits, partitions and label maps; null: run.seed. Batches, "
        "pairs, participation and x^0 come from run.seed, so several runs may share one split",
    )
    batch_size: int = Field(
        32, ge=1, le=1_000_000, description="examples that a client's gradient is taken on at once"
    )
    accumulation: int = Field(
        1,
        ge=1,
        le=100_000,
        description="such batches in one gradient, a round: the mean over batch_size * accumulation "
        "examples in the memory of batch_size (BatchNorm treats each batch separately)",
    )
    text_dir: Text = Field(
        "", description="in place of Wiki-40B: a folder with one NAME.txt a client (language)"
    )
    eval_batch_size: int = Field(
        200,
        ge=1,
        le=1_000_000_000,
        description="examples evaluated at once (language: batch_size at most): their activations are "
        "often the largest part of a rank's memory",
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
        True,
        description="keep images in memory with channels last, which makes convolutions faster",
    )

    def split_seed(self, run_seed: int) -> int:
        """Return the seed of splits, partitions and label maps."""
        return run_seed if self.seed is None else self.seed

    @property
    def examples_a_round(self) -> int:
        """Examples of one client in one local step."""
        return self.batch_size * self.accumulation


class Task(LearningTask, Protocol):
    """A learning problem split over n clients; `LearningTask` is the part that the clients use."""

    name: str
    clients: int
    names: tuple[str, ...] = ()  # of the clients; empty if they have none
    clusters: tuple[int, ...] | None  # the true cluster of each client, if known
    true_graph: TrueGraph | None = None  # where clusters do not say all that is known
    splits: tuple[str, ...]  # what can be evaluated
    batch_size: int = 1  # training examples in one gradient of a client
    metrics: tuple[str, ...]  # of an evaluation: "loss" first, the one to compare runs by last
    notices: tuple[str, ...] = ()  # what a user should know of the data, a line each
    diagnoses: bool = False  # whether `diagnose` returns figures every round
    model_section: ModelSection | None = None  # the config of its model, if the task takes one
    random_order: bool = False  # whether clients read their examples by shuffled indices
    input_size: int = 0  # numbers of a training input; 0: inputs are no numbers

    @property
    def truth(self) -> Truth:
        """Clusters and graph in each round: here the same in all."""
        return Truth.constant(self.clusters, self.true_graph)

    def begin_round(self, r: int) -> None:
        """Give clients the data of round r = 1 .. T from now on, or for r = 0 those before round 1.

        Where clients have the same data in all rounds there is nothing to do.
        """
        return None

    def train_sizes(self) -> Sequence[int]:
        """Return how many training examples each of all n clients has, [n]; here 1 each."""
        return [1] * self.clients

    def means(self, sums: Mapping[str, float], examples: int) -> dict[str, float]:
        """Return one client's metrics from the sums over so many examples: their means."""
        return {name: value / examples for name, value in sums.items()}

    def diagnose(self, x_nd: NDArray[np.floating], r: int) -> dict[str, float]:
        """Return further figures of all clients' models [n, d] after round r."""
        return {}

    def describe(self) -> dict[str, str]:
        """Return model and data in words, by what to call them: what a user wants to know ahead of time."""
        return {"model": f"{sum(one.numel() for one in self.model().parameters()):,} parameters"}

    def label_counts(self) -> NDArray[np.int64] | None:
        """Return each client's number of training examples with each label, [n, C]; None: no labels."""
        return None

    def training_inputs(self, client: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return a client's inputs and labels; a task whose inputs are numbers has this, and `input_size`."""
        raise TypeError(f"task {self.name} has no input_size")

    def shared_inputs(self, count: int, device: torch.device) -> Batch:
        """Return inputs that all clients know; a task that predicts has this and the next two."""
        raise TypeError(f"task {self.name} has no predictions")

    def predict(self, model: nn.Module, *inputs: Tensor) -> Tensor:
        """Return predictions [P, C]."""
        raise TypeError(f"task {self.name} has no predictions")

    def prediction_shape(self, count: int) -> tuple[int, int]:
        """Return P and C; here 0: there are no predictions."""
        return 0, 0

    def data_in_memory(self) -> tuple[str, int]:
        """Return what a rank keeps of the examples, in words, and its bytes."""
        return "data, once", 0

    def model_facts(self) -> dict[str, Any]:
        """Return the fields of model.json, from which a model can be rebuilt without the data."""
        return {}

    def partition(self) -> dict[str, NDArray[Any]]:
        """Return the arrays of partition.npz; none where clients share examples or have none."""
        return {}

    def fingerprint(self) -> str:
        """Return a digest of the data, by which ranks check that they read the same data."""

    def lack(self, split: str) -> str:
        """Say why `split` is not among `splits`, and what helps."""
        return f"task.name={self.name} has only {', '.join(self.splits)} data"

    def lack_clusters(self) -> str:
        """Say why `clusters` is None, and what helps."""
        return f"task.name={self.name} knows none; choose another algorithm"

    def save(self, state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
        """Write one client's model atomically at `path`, to which the task adds a suffix.

        `metadata` are those of `storage.model_schema.ModelMetadata`.
        """
        from safetensors.torch import save_file

        draft = path.with_name(path.name + ".part")
        save_file(dict(state), draft, dict(metadata))
        draft.replace(path.with_name(path.name + ".safetensors"))

    def load(self, path: Path) -> dict[str, Tensor]:
        """Return the state that `save` wrote.

        Raises:
            OSError: it cannot be read.
            SafetensorError: it is no such file.
        """
        from safetensors.torch import load

        return load(path.with_name(path.name + ".safetensors").read_bytes())
