"""Losses and metrics of single models in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cobo_dist.clients.buffers import Buffers
from cobo_dist.clients.engines import Batch, OneByOne, parts_of
from cobo_dist.clients.learning_task import LearningTask


class Evaluator:
    """Evaluates models through the module that serves all clients, one after the other."""

    def __init__(
        self,
        task: LearningTask,
        loader: OneByOne,
        score: Callable[..., dict[str, Tensor]],
        device: torch.device,
    ) -> None:
        self.task, self.loader, self.score, self.device = task, loader, score, device

    def batch_loss(self, point_d: Tensor, buffers: Buffers, batch: Batch) -> Tensor:
        """Return the mean loss of one model on one client's batch."""
        model = self.loader.load(point_d, buffers).eval()
        losses = [
            self.loader.loss(model, *part) for part in parts_of(batch, self.task.accumulation)
        ]
        total: Tensor = sum(losses) / len(losses)  # type: ignore[assignment]
        return total

    def metrics(
        self, point_d: Tensor, buffers: Buffers, client: int, split: str, whole: bool
    ) -> dict[str, float]:
        """Return one model's mean metrics on a client's split, with the number of `examples`."""
        model = self.loader.load(point_d, buffers).eval()
        sums: dict[str, Tensor] = {}
        count = 0
        for examples, batch in self.task.evaluation(client, split, self.device, whole):
            count += examples
            for name, value in self.score(model, *batch).items():
                sums[name] = sums[name] + value if name in sums else value
        means = self.task.means({name: float(value) for name, value in sums.items()}, count)
        return means | {"examples": count}
