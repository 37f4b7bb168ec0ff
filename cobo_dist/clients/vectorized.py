"""Gradients of all clients in one pass: `torch.func.vmap` maps the module over rows."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from cobo_dist.clients.buffers import BufferRows, Buffers, state_buffers
from cobo_dist.clients.engines import Batch, Done, Loss, parts_of, trained
from cobo_dist.lazy import Tensor, nn, torch
from cobo_dist.maths.flat import Layout
from cobo_dist.maths.gpu_memory import free_bytes

MAX_SHARE_OF_FREE_MEMORY = 0.8
"""The share of a GPU's free memory that one pass may take: what is left is lost between blocks."""


class Vectorized:
    """All clients in one pass, or as many as memory has room for; `torch.func.vmap` maps the module."""

    name = "vectorised"

    def __init__(self, model: nn.Module, loss: Loss, parts: int = 1) -> None:
        self.model, self.loss, self.parts = model, loss, parts
        self.layout = Layout.of(trained(model))
        # The dictionaries in which the module looks up its tensors. Replacing the tensors there takes half
        # the time of `torch.func.functional_call` for small models (0.3 ms of 2.5 for an MLP).
        self._slots = _slots(model, dict(trained(model))) + _slots(
            model, dict(state_buffers(model))
        )
        self._most: dict[Hashable, int] = {}  # models in one pass, by the shape of a batch

    def gradients(
        self,
        points_md: Tensor,
        gradients_md: Tensor,
        buffers: BufferRows,
        batch: Batch,
        done: Done | None = None,
    ) -> Tensor:
        """Map the forward pass over the m models; one backward pass a part writes all gradients.

        On a GPU, as many models go into one pass as its free memory has room for, by the memory that a pass
        of one model took. If it runs out nevertheless, half as many do from then on.
        """
        if not self.model.training:
            self.model.train()
        shape = tuple((one.shape[1:], one.dtype) for one in batch)
        if points_md.is_cuda and len(points_md) > 1 and shape not in self._most:
            self._most[shape] = self._measure(points_md, buffers, batch)
        losses_m, at = points_md.new_empty(len(points_md)), 0
        while at < len(points_md):
            rows = slice(at, at + self._next(shape, len(points_md) - at))
            gradients_kd = gradients_md[rows]
            points_kd = gradients_kd if gradients_md is points_md else points_md[rows]
            held = {name: rows_of[rows] for name, rows_of in buffers.views().items()}
            part = tuple(tensor[rows] for tensor in batch)
            try:
                losses_m[rows] = self._pass(points_kd, gradients_kd, held, part)
            except torch.OutOfMemoryError:
                if len(points_kd) == 1:
                    raise
                self._most[shape] = (len(points_kd) + 1) // 2
                torch.cuda.empty_cache()
                continue
            if done is not None:
                done(rows, losses_m)
            at = rows.stop
        return losses_m

    @property
    def most_at_once(self) -> int | None:
        """Models that have been found to fit into one pass; None: any number."""
        return min(self._most.values(), default=None)

    def _next(self, shape: Hashable, left: int) -> int:
        """Return how many of the models that are left go into the next pass: passes of equal size."""
        most = self._most.get(shape, left)
        return -(-left // -(-left // most))

    def _measure(self, points_md: Tensor, buffers: BufferRows, batch: Batch) -> int:
        """Return how many models' pass fits into the free memory, by one of the first model on copies."""
        device, free = points_md.device, free_bytes(points_md.device)
        held = {name: rows_of[:1].clone() for name, rows_of in buffers.views().items()}
        gradient_1d = torch.empty_like(points_md[:1])
        before = torch.cuda.memory_allocated(device)
        # A later peak has in it what is held now; only what came and went before is forgotten.
        torch.cuda.reset_peak_memory_stats(device)
        try:
            self._pass(points_md[:1], gradient_1d, held, tuple(one[:1] for one in batch))
        except torch.OutOfMemoryError:
            return 1
        needed = torch.cuda.max_memory_allocated(device) - before
        if self.parts > 1:  # a pass in place keeps the points
            needed += gradient_1d.nbytes
        return max(1, int(MAX_SHARE_OF_FREE_MEMORY * free / max(1, needed)))

    def _pass(
        self, points_md: Tensor, gradients_md: Tensor, buffers: Buffers, batch: Batch
    ) -> Tensor:
        """Write the gradients of m models, and return their losses [m]; a pass that fails changes nothing."""
        in_parts_in_place = gradients_md is points_md and self.parts > 1
        if in_parts_in_place:  # later parts need the points
            points_md = points_md.clone()
        views = self.layout.views(points_md)
        parameters = {name: view.detach().requires_grad_() for name, view in views.items()}

        # BatchNorm under vmap updates its statistics in place only where they are contiguous; otherwise the
        # update is lost in a copy. They are small: update a contiguous copy and write it back.
        dense = {
            name: held.clone(memory_format=torch.contiguous_format)
            for name, held in buffers.items()
        }

        def one(tensors: dict[str, Tensor], *batch: Tensor) -> Tensor:
            for name, tensors_of, key in self._slots:
                tensors_of[key] = tensors[name]
            return self.loss(self.model, *batch)

        gradient_views = self.layout.views(gradients_md).values()
        total = torch.zeros_like(points_md[:, 0])
        own = [tensors_of[key] for _, tensors_of, key in self._slots]
        for number, (part, divisor) in enumerate(parts_of(batch, self.parts, dim=1)):
            try:
                losses: Tensor = torch.func.vmap(one)(parameters | dense, *part)
                losses = losses / divisor
                gradients = torch.autograd.grad(losses.sum(), tuple(parameters.values()))
            except torch.OutOfMemoryError:
                if in_parts_in_place:
                    gradients_md.copy_(points_md)
                raise
            finally:
                for (_, tensors_of, key), tensor in zip(self._slots, own, strict=True):
                    tensors_of[key] = tensor
            # Autograd adds to `.grad` only after it has made the sum: a copy costs less than zero and add.
            for view, gradient in zip(gradient_views, gradients, strict=True):
                view.add_(gradient) if number else view.copy_(gradient)
            total += losses.detach()
        for name, held in buffers.items():
            held.copy_(dense[name])
        return total


def _slots(model: nn.Module, named: Mapping[str, Tensor]) -> list[tuple[str, dict[str, Any], str]]:
    """Return (name, dictionary, key) of every place where a module keeps one of these tensors.

    Modules that share a parameter keep it each in its own dictionary.
    """
    names = {id(tensor): name for name, tensor in named.items()}
    return [
        (names[id(tensor)], tensors_of, key)
        for module in model.modules()
        for tensors_of in (module._parameters, module._buffers)
        for key, tensor in tensors_of.items()
        if id(tensor) in names
    ]
