"""Losses and metrics of models in evaluation mode.

Shapes: k models, e clients with a batch each, d parameters, b floating-point buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from cobo_dist.clients.buffers import Buffers
from cobo_dist.clients.engines import Batch, OneByOne, parts_of
from cobo_dist.clients.learning_task import LearningTask
from cobo_dist.maths.flat import to_device


class Evaluator:
    """Evaluates models through the module that serves all clients."""

    def __init__(
        self,
        task: LearningTask,
        loader: OneByOne,
        score: Callable[..., dict[str, Tensor]],
        predict: Callable[..., Tensor],
        device: torch.device,
    ) -> None:
        self.task, self.loader, self.device = task, loader, device
        self.score, self.predict = score, predict

    def losses(self, points_kd: Tensor, buffers: Buffers, batch: Batch) -> Tensor:
        """Return the losses float64 [e, k] of k models on e batches, one pair after the other.

        `buffers` are [k, ...], `batch` is [e, ...]. The losses stay on the device.
        """
        count = len(batch[0])
        losses_ek = torch.empty(count, len(points_kd), dtype=torch.float64, device=points_kd.device)
        for k, point_d in enumerate(points_kd):
            own = {name: held[k] for name, held in buffers.items()}
            model = self.loader.load(point_d, own).eval()
            for e in range(count):
                losses_ek[e, k] = self._mean_loss(model, tuple(tensor[e] for tensor in batch))
        return losses_ek

    def losses_together(
        self, points_kd: Tensor, buffers: Buffers, batch: Batch, at_once: int
    ) -> Tensor:
        """Return the same in few passes, each over all batches and `at_once` models.

        Only for a task that has the engine `vectorised`.
        """
        model = _WithLoss(self.loader.model.eval(), self._mean_loss)

        def one(tensors: Buffers, *one_batch: Tensor) -> Tensor:
            loss: Tensor = functional_call(model, tensors, one_batch)
            return loss

        every = vmap(
            vmap(one, in_dims=(None, *[0] * len(batch))), in_dims=(0, *[None] * len(batch))
        )
        named = {
            f"model.{name}": held
            for name, held in (self.loader.layout.views(points_kd) | buffers).items()
        }
        losses = [
            every({name: held[at : at + at_once] for name, held in named.items()}, *batch)
            for at in range(0, len(points_kd), at_once)
        ]
        return torch.cat(losses).t().double()

    def predictions(self, point_d: Tensor, buffers: Buffers, inputs: Batch) -> Tensor:
        """Return one model's predictions [P, C] for shared inputs."""
        return self.predict(self.loader.load(point_d, buffers).eval(), *inputs)

    def _mean_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        parts = list(parts_of(batch, self.task.accumulation))
        losses = [self.loader.loss(model, *part) for part, _ in parts]
        if any(divisor != len(parts) for _, divisor in parts):  # unequal parts count by their size
            losses = [
                loss * (len(parts) / divisor)
                for loss, (_, divisor) in zip(losses, parts, strict=True)
            ]
        total: Tensor = sum(losses) / len(parts)  # type: ignore[assignment]
        return total

    def sums(
        self, point_d: Tensor, buffers: Buffers, client: int, split: str, whole: bool
    ) -> tuple[int, dict[str, Tensor]]:
        """Return the examples of a client's split, and sums of one model's metrics over them."""
        model = self.loader.load(point_d, buffers).eval()
        sums: dict[str, Tensor] = {}
        count = 0
        for examples, batch in self.task.evaluation(client, split, self.device, whole):
            count += examples
            for name, value in self.score(model, *batch).items():
                sums[name] = sums[name] + value if name in sums else value
        return count, sums

    def means(self, sums: Sequence[tuple[int, dict[str, Tensor]]]) -> list[dict[str, float]]:
        """Return mean metrics with the number of `examples`; waits for the device once."""
        every = [value for _, of_client in sums for value in of_client.values()]
        read = iter(
            torch.stack([to_device(value.double(), self.device) for value in every]).tolist()
            if every
            else ()
        )
        return [
            self.task.means({name: next(read) for name in of_client}, count) | {"examples": count}
            for count, of_client in sums
        ]


class _WithLoss(nn.Module):
    """A module that returns the mean loss of a batch, so that `functional_call` can replace its tensors."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Batch], Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *batch: Tensor) -> Tensor:
        return self.loss(self.model, batch)
