"""Gradients of many clients' models: one by one, or vectorised over clients.

Both engines serve all clients of a rank with one module. They read models as rows and write gradients
as rows: parameters and their gradients are views, so nothing is copied to pack or unpack.

A row holds what is trained. Parameters that need no gradient are the base, of which there is one for all
clients; buffers that a state dict leaves out are constants of the module, and stay where they are.

Shapes: m models at once, d parameters, batches are tuples of tensors [m, ...].
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import vmap

from cobo_dist.maths.flat import Layout, empty_rows

Batch = tuple[Tensor, ...]
Buffers = dict[str, Tensor]  # each [m, *shape], updated in place
Loss = Callable[..., Tensor]  # (model, *one client's batch) -> mean loss, a scalar
Done = Callable[[slice, Tensor], None]  # (rows whose gradients are there, losses [m])


def trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the named parameters that are trained: what lies in a row."""
    return ((name, one) for name, one in model.named_parameters() if one.requires_grad)


def state_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the named buffers that are a model's own: BatchNorm's, not a table of positions."""
    for at, module in model.named_modules():
        for name, buffer in module.named_buffers(prefix=at, recurse=False):
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                yield name, buffer


def parts_of(batch: Batch, parts: int, dim: int = 0) -> Iterator[Batch]:
    """Cut a batch along the dimension of its examples into equal parts."""
    return (
        zip(*(tensor.chunk(parts, dim) for tensor in batch), strict=True)
        if parts > 1
        else iter([batch])
    )


class Engine(Protocol):
    """The contract of an engine (one test function runs against both).

    Engines are built from a module, its loss, and the number of parts that a batch is taken in: the
    gradient is the mean of the parts'.
    """

    name: str

    def gradients(
        self,
        points_md: Tensor,
        gradients_md: Tensor,
        buffers: Buffers,
        batch: Batch,
        done: Done | None = None,
    ) -> Tensor:
        """Write the gradient of each model's loss into `gradients_md`; return the losses [m].

        Models are in training mode; their buffers (BatchNorm's statistics) move. `gradients_md` may be
        `points_md` itself: gradients take the place of the models they are taken at. `done` is called
        as soon as the gradients of some rows are there, and may change both in those rows.
        """


class OneByOne:
    """One client after the other through one module."""

    name = "one_by_one"

    def __init__(self, model: nn.Module, loss: Loss, parts: int = 1) -> None:
        self.model, self.loss, self.parts = model, loss, parts
        self.layout = Layout.of(trained(model))
        self._parameters = [parameter for _, parameter in trained(model)]
        self._buffers = [
            (name, model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2])
            for name, _ in state_buffers(model)
        ]
        self._apart_1d = torch.empty(0)

    def gradients(
        self,
        points_md: Tensor,
        gradients_md: Tensor,
        buffers: Buffers,
        batch: Batch,
        done: Done | None = None,
    ) -> Tensor:
        """Load, go forward and backward, for each of the m models in turn."""
        if not self.model.training:  # to say so again costs a walk over all modules
            self.model.train()
        losses = torch.zeros(len(points_md), dtype=points_md.dtype, device=points_md.device)
        in_place = gradients_md is points_md
        for row in range(len(points_md)):
            self.load(points_md[row], {name: held[row] for name, held in buffers.items()})
            # One row at a time: what is long leaves the cache before it is needed again.
            gradient_d = (self._apart(points_md) if in_place else gradients_md[row]).zero_()
            gradient_views = self.layout.views(gradient_d)
            for parameter, view in zip(self._parameters, gradient_views.values(), strict=True):
                parameter.grad = view  # backward adds into it in place
            for part in parts_of(tuple(tensor[row] for tensor in batch), self.parts):
                loss = self.loss(self.model, *part) / self.parts
                loss.backward()  # type: ignore[no-untyped-call]
                losses[row] += loss.detach()
            if in_place:
                points_md[row].copy_(gradient_d)
            if done is not None:
                done(slice(row, row + 1), losses)
        return losses

    def _apart(self, points_md: Tensor) -> Tensor:
        """Return a row [d] that is none of the points'."""
        if not self._apart_1d.numel():
            self._apart_1d = empty_rows(
                1, self.layout.size, dtype=points_md.dtype, device=points_md.device
            )
        return self._apart_1d[0]

    def load(self, point_d: Tensor, buffers: Buffers) -> nn.Module:
        """Make the module's parameters and buffers views of one client's, and return the module."""
        views = self.layout.views(point_d)
        for parameter, view in zip(self._parameters, views.values(), strict=True):
            parameter.data = view
        for name, owner, attribute in self._buffers:
            owner._buffers[attribute] = buffers[name]
        return self.model


class Vectorized:
    """All clients in one pass: the module is mapped over rows with `torch.func.vmap`."""

    name = "vectorised"

    def __init__(self, model: nn.Module, loss: Loss, parts: int = 1) -> None:
        self.model, self.loss, self.parts = model, loss, parts
        self.layout = Layout.of(trained(model))
        # Where the module looks for each tensor: putting others there takes half the time that
        # `torch.func.functional_call` takes to put small models (0.3 ms of 2.5 for an MLP).
        self._homes = _homes(model, dict(trained(model))) + _homes(
            model, dict(state_buffers(model))
        )

    def gradients(
        self,
        points_md: Tensor,
        gradients_md: Tensor,
        buffers: Buffers,
        batch: Batch,
        done: Done | None = None,
    ) -> Tensor:
        """Map the forward pass over the m models; one backward pass a part fills all gradient rows."""
        if not self.model.training:
            self.model.train()
        if not len(points_md):
            return points_md.new_empty(0)
        if gradients_md is points_md and self.parts > 1:  # later parts need the points
            points_md = points_md.clone()
        views = self.layout.batched_views(points_md)
        parameters = {name: view.detach().requires_grad_() for name, view in views.items()}

        # BatchNorm under vmap moves its statistics in place only where they lie densely; elsewhere the
        # update is lost in a copy. They are small: move a dense copy and write it back.
        dense = {
            name: held.clone(memory_format=torch.contiguous_format)
            for name, held in buffers.items()
        }

        def one(tensors: dict[str, Tensor], *batch: Tensor) -> Tensor:
            for name, home, key in self._homes:
                home[key] = tensors[name]
            return self.loss(self.model, *batch)

        gradient_views = self.layout.batched_views(gradients_md).values()
        total = torch.zeros_like(points_md[:, 0])
        own = [home[key] for _, home, key in self._homes]
        for number, part in enumerate(parts_of(batch, self.parts, dim=1)):
            try:
                losses: Tensor = vmap(one)(parameters | dense, *part)
            finally:
                for (_, home, key), tensor in zip(self._homes, own, strict=True):
                    home[key] = tensor
            losses = losses / self.parts
            gradients = torch.autograd.grad(losses.sum(), tuple(parameters.values()))
            # Autograd adds into `.grad` only after making the sum: one copy is less than zero and add.
            for view, gradient in zip(gradient_views, gradients, strict=True):
                view.add_(gradient) if number else view.copy_(gradient)
            total += losses.detach()
        for name, held in buffers.items():
            held.copy_(dense[name])
        if done is not None:
            done(slice(None), total)
        return total


def _homes(model: nn.Module, named: Mapping[str, Tensor]) -> list[tuple[str, dict[str, Any], str]]:
    """Return by name in which dictionary, and under which key, a module holds its tensors.

    Modules that share a parameter hold it each in its own.
    """
    names = {id(tensor): name for name, tensor in named.items()}
    return [
        (names[id(tensor)], home, key)
        for module in model.modules()
        for home in (module._parameters, module._buffers)
        for key, tensor in home.items()
        if id(tensor) in names
    ]


ENGINES: dict[str, Callable[..., Engine]] = {
    OneByOne.name: OneByOne,
    Vectorized.name: Vectorized,
}


def fastest(
    engines: Sequence[Engine],
    points_md: Tensor,
    buffers: Buffers,
    batch: Batch,
    repeats: int = 5,
    patience: float = 4.0,
) -> tuple[str, dict[str, float]]:
    """Time each engine on the real models and one real batch; return the winner and the seconds.

    Works on copies: no model, buffer or stream of batches moves. One warm-up each, then `repeats`
    passes in turn, or as many as fit into `patience` seconds, and the median counts.
    """
    ends = time.perf_counter() + patience
    gradients_md = empty_rows(*points_md.shape, dtype=points_md.dtype, device=points_md.device)
    seconds: dict[str, list[float]] = {engine.name: [] for engine in engines}
    for repeat in range(repeats + 1):
        if repeat > 1 and time.perf_counter() > ends:
            break
        for engine in engines:
            scratch = {name: held.clone() for name, held in buffers.items()}
            started = time.perf_counter()
            engine.gradients(points_md, gradients_md, scratch, batch)
            if points_md.is_cuda:
                torch.cuda.synchronize(points_md.device)
            if repeat:
                seconds[engine.name].append(time.perf_counter() - started)
    medians = {name: median(times) for name, times in seconds.items()}
    return min(medians, key=medians.__getitem__), medians
