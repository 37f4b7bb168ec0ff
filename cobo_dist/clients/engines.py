"""Gradients of many clients' models: one by one, or vectorised over clients.

Both engines serve all clients of a rank with one module. They read models as rows and write gradients
as rows: parameters and their gradients are views, so nothing is packed or unpacked.

A row has the trained parameters. Parameters without gradient are a frozen base that all clients share.
Buffers that are not in the state dict are constants of the module and stay in it.

Shapes: m models at once, d parameters, batches are tuples of tensors [m, ...].
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from statistics import median
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.func import vmap

from cobo_dist.maths.flat import Layout, empty_rows

Result = TypeVar("Result")
Batch = tuple[Tensor, ...]
Buffers = dict[str, Tensor]  # each [m, *shape], updated in place
Loss = Callable[..., Tensor]  # (model, *one client's batch) -> mean loss, a scalar
Done = Callable[[slice, Tensor], None]  # (rows whose gradients are computed, losses [m])


def trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the named parameters that are trained: the content of a row."""
    return ((name, one) for name, one in model.named_parameters() if one.requires_grad)


def state_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the named buffers of the state dict: BatchNorm's, but no constant tables."""
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(prefix=prefix, recurse=False):
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                yield name, buffer


def parts_of(batch: Batch, parts: int, dim: int = 0) -> Iterator[Batch]:
    """Divide a batch along the dimension of its examples into equal parts."""
    return (
        zip(*(tensor.chunk(parts, dim) for tensor in batch), strict=True)
        if parts > 1
        else iter([batch])
    )


def with_autocast(
    function: Callable[..., Result], device: torch.device, dtype: torch.dtype | None
) -> Callable[..., Result]:
    """Return the function, run under PyTorch's autocast if a type is given.

    Every call enters autocast anew: it caches the parameters it has cast, and between two calls a
    parameter becomes a view of another client's row.
    """
    if dtype is None:
        return function

    @wraps(function)
    def cast(*args: object) -> Result:
        with torch.autocast(device.type, dtype):
            return function(*args)

    return cast


class Engine(Protocol):
    """The contract of an engine (one test function runs against both).

    An engine is built from a module, its loss, and the number of parts that a batch is divided into: the
    gradient is the mean over the parts.
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

        Models are in training mode; their buffers (BatchNorm's statistics) are updated. `gradients_md`
        may be `points_md` itself: gradients replace the models. `done` is called as soon as the gradients
        of some rows are computed, and may change gradients and models in those rows.
        """


class OneByOne:
    """One client after the other."""

    name = "one_by_one"

    def __init__(self, model: nn.Module, loss: Loss, parts: int = 1) -> None:
        self.model, self.loss, self.parts = model, loss, parts
        self.layout = Layout.of(trained(model))
        self._parameters = [parameter for _, parameter in trained(model)]
        self._buffers = [
            (name, model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2])
            for name, _ in state_buffers(model)
        ]
        self._spare_1d = torch.empty(0)

    def gradients(
        self,
        points_md: Tensor,
        gradients_md: Tensor,
        buffers: Buffers,
        batch: Batch,
        done: Done | None = None,
    ) -> Tensor:
        """Run forward and backward passes for each of the m models in turn."""
        if not self.model.training:  # setting it again costs a walk over all modules
            self.model.train()
        losses = torch.zeros(len(points_md), dtype=points_md.dtype, device=points_md.device)
        in_place = gradients_md is points_md
        for row in range(len(points_md)):
            self.load(points_md[row], {name: held[row] for name, held in buffers.items()})
            # Zero one row at a time: all rows together would leave the cache before they are needed.
            gradient_d = (self._spare_row(points_md) if in_place else gradients_md[row]).zero_()
            gradient_views = self.layout.views(gradient_d)
            for parameter, view in zip(self._parameters, gradient_views.values(), strict=True):
                parameter.grad = view  # the backward pass adds to it in place
            for part in parts_of(tuple(tensor[row] for tensor in batch), self.parts):
                loss = self.loss(self.model, *part) / self.parts
                loss.backward()  # type: ignore[no-untyped-call]
                losses[row] += loss.detach()
            if in_place:
                points_md[row].copy_(gradient_d)
            if done is not None:
                done(slice(row, row + 1), losses)
        return losses

    def _spare_row(self, points_md: Tensor) -> Tensor:
        """Return a row [d] for a gradient that will replace its point."""
        if not self._spare_1d.numel():
            self._spare_1d = empty_rows(
                1, self.layout.size, dtype=points_md.dtype, device=points_md.device
            )
        return self._spare_1d[0]

    def load(self, point_d: Tensor, buffers: Buffers) -> nn.Module:
        """Make the module's parameters and buffers views of one client's; return the module."""
        views = self.layout.views(point_d)
        for parameter, view in zip(self._parameters, views.values(), strict=True):
            parameter.data = view
        for name, owner, attribute in self._buffers:
            owner._buffers[attribute] = buffers[name]
        return self.model


class Vectorized:
    """All clients in one pass: `torch.func.vmap` maps the module over rows."""

    name = "vectorised"

    def __init__(self, model: nn.Module, loss: Loss, parts: int = 1) -> None:
        self.model, self.loss, self.parts = model, loss, parts
        self.layout = Layout.of(trained(model))
        # The dictionaries in which the module looks up its tensors. Replacing the tensors there takes half
        # the time of `torch.func.functional_call` for small models (0.3 ms of 2.5 for an MLP).
        self._slots = _slots(model, dict(trained(model))) + _slots(
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
        """Map the forward pass over the m models; one backward pass a part writes all gradients."""
        if not self.model.training:
            self.model.train()
        if not len(points_md):
            return points_md.new_empty(0)
        if gradients_md is points_md and self.parts > 1:  # later parts need the points
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
        for number, part in enumerate(parts_of(batch, self.parts, dim=1)):
            try:
                losses: Tensor = vmap(one)(parameters | dense, *part)
            finally:
                for (_, tensors_of, key), tensor in zip(self._slots, own, strict=True):
                    tensors_of[key] = tensor
            losses = losses / self.parts
            gradients = torch.autograd.grad(losses.sum(), tuple(parameters.values()))
            # Autograd adds to `.grad` only after it has made the sum: a copy costs less than zero and add.
            for view, gradient in zip(gradient_views, gradients, strict=True):
                view.add_(gradient) if number else view.copy_(gradient)
            total += losses.detach()
        for name, held in buffers.items():
            held.copy_(dense[name])
        if done is not None:
            done(slice(None), total)
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
    max_seconds: float = 4.0,
) -> tuple[str, dict[str, float]]:
    """Time each engine on the real models and one real batch; return the fastest and the seconds of each.

    Works on copies: no model or buffer changes. After one warm-up, each engine makes `repeats` passes, or
    as many as fit into `max_seconds`, and its median counts.
    """
    deadline = time.perf_counter() + max_seconds
    gradients_md = empty_rows(*points_md.shape, dtype=points_md.dtype, device=points_md.device)
    seconds: dict[str, list[float]] = {engine.name: [] for engine in engines}
    for repeat in range(repeats + 1):
        if repeat > 1 and time.perf_counter() > deadline:
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
