"""What the clients of a rank need to know of a task: its model, loss, metrics and data.

Shapes: c clients, e rows of some clients, B examples in a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cobo_dist.clients.engines import Batch
from cobo_dist.lazy import Tensor, nn, torch


class BatchSource(Protocol):
    """Batches of this rank's clients."""

    def batch(
        self, t: int, stream: str, rows: Tensor | None = None, part: int | None = None
    ) -> Batch:
        """Return batch t of each client's endless sequence, tensors [c, B, ...], or [e, B, ...] of `rows`.

        `rows` int64 [e] is on the CPU. `stream` names an independent order of the data: one of
        `batches.TRAINING_STREAMS` for training data, "validation" for validation data. With `part`, return
        batch number `part` of epoch t instead, which may be incomplete: the clients have equally many
        examples in it.
        """


@runtime_checkable
class GraphedBatches(Protocol):
    """A source that can make its batches by CUDA graphs."""

    def use_graphs(self) -> None:
        """Do so from now on. A batch then keeps its numbers until the stream's next one is made."""


class LearningTask(Protocol):
    """A task as the clients see it."""

    engines: tuple[str, ...]  # the engines that can compute its gradients
    batch_size: int  # examples in one gradient of a client
    accumulation: int  # parts that a training batch is divided into, to need less memory
    loss_is_pure: bool = True  # `loss` depends on the model and the tensors of a batch alone
    input_size: int  # numbers of a training input; 0: inputs are no numbers

    def model(self) -> nn.Module:
        """Return the module that serves all clients. Parameters without gradient are a frozen base.

        A task may return the same module again: its trained parameters are then views of some row.
        """

    def start(self, variant: int = 0) -> dict[str, Tensor]:
        """Return the trained parameters of x^0, or of another start (variant 1, 2, ...).

        They are newly computed and not read from a module in use.
        """

    def loss(self, model: nn.Module, *batch: Tensor) -> Tensor:
        """Return the mean loss of one client's batch."""

    def score(self, model: nn.Module, *batch: Tensor) -> dict[str, Tensor]:
        """Return sums over one evaluation batch, from which `means` computes the metrics."""

    def means(self, sums: Mapping[str, float], examples: int) -> dict[str, float]:
        """Return one client's metrics from the sums over that many examples."""

    def train_sizes(self) -> Sequence[int]:
        """Return how many training examples each of all n clients has, [n]."""

    def training(self, clients: Sequence[int], device: torch.device) -> BatchSource:
        """Return the training batches of these clients."""

    def validation(
        self, clients: Sequence[int], device: torch.device, batch_size: int
    ) -> BatchSource:
        """Return batches of these clients' validation data, stream "validation".

        Only called for a task whose `splits` include validation.
        """

    def evaluation(
        self, client: int, split: str, device: torch.device, whole: bool = True
    ) -> Iterable[tuple[int, Batch]]:
        """Return (number of examples, batch) over one client's split, or over a fixed part of it."""

    def label_counts(self) -> NDArray[np.int64] | None:
        """Return each client's number of training examples with each label, [n, C]; None: no labels."""

    def training_inputs(self, client: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return a client's inputs [B, input_size] as its model takes them, and their labels [B].

        Only called for a task with an `input_size`.
        """

    def shared_inputs(self, count: int, device: torch.device) -> Batch:
        """Return `count` inputs that all clients know: the same for each, from validation data.

        Only called for a task whose `splits` include validation.
        """

    def predict(self, model: nn.Module, *inputs: Tensor) -> Tensor:
        """Return a model's predictions [P, C] for `shared_inputs`."""

    def prediction_shape(self, count: int) -> tuple[int, int]:
        """Return P and C of the predictions for `count` shared inputs."""
