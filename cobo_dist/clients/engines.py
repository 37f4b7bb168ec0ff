"""Gradients of many clients' models: one by one, or vectorised over clients.

Both engines serve all clients of a rank with one module. They read models as rows and write gradients
as rows: parameters and their gradients are views, so nothing is packed or unpacked.

A row has the trained parameters. Parameters without gradient are a frozen base that all clients share.
Buffers that are not in the state dict are constants of the module and stay in it.

Shapes: m models at once, d parameters, batches are tuples of tensors [m, ...].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Protocol, TypeVar

from cobo_dist.clients.buffers import BufferRows, Buffers, state_buffers
from cobo_dist.lazy import Tensor, nn, torch
from cobo_dist.maths.flat import Layout, empty_rows

Result = TypeVar("Result")
Batch = tuple[Tensor, ...]


class ReusedBatch(Batch):
    """A batch that lies where the last one of its stream did: a recorded pass can read it there."""


Loss = Callable[..., Tensor]  # (model, *one client's batch) -> mean loss, a scalar
Done = Callable[[slice, Tensor], None]  # (rows whose gradients are computed, losses [m])


def trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the named parameters that are trained: the content of a row."""
    return ((name, one) for name, one in model.named_parameters() if one.requires_grad)


def parts_of(batch: Batch, parts: int, dim: int = 0) -> Iterator[tuple[Batch, float]]:
    """Divide a batch along the dimension of its examples; yield each part and what divides its mean loss.

    A complete batch divides into equal parts, whose losses count 1 / `parts` each. An incomplete one has
    fewer examples in its last part, or fewer parts.
    """
    if parts == 1:
        yield batch, 1.0
        return
    for part in zip(*(tensor.chunk(parts, dim) for tensor in batch), strict=True):
        yield part, batch[0].shape[dim] / part[0].shape[dim]


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
        buffers: BufferRows,
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
        buffers: BufferRows,
        batch: Batch,
        done: Done | None = None,
    ) -> Tensor:
        """Run forward and backward passes for each of the m models in turn."""
        if not self.model.training:  # setting it again costs a walk over all modules
            self.model.train()
        held_m = buffers.views()
        losses = torch.zeros(len(points_md), dtype=points_md.dtype, device=points_md.device)
        in_place = gradients_md is points_md
        for row in range(len(points_md)):
            self.load(points_md[row], {name: held[row] for name, held in held_m.items()})
            gradient_d = self._spare_row(points_md) if in_place else gradients_md[row]
            gradient_views = self.layout.views(gradient_d)
            one = tuple(tensor[row] for tensor in batch)
            if points_md.is_cuda:
                losses[row] += self.pass_into(list(gradient_views.values()), one)
            else:
                gradient_d.zero_()  # one row at a time, so that it is still in the cache when needed
                for parameter, view in zip(self._parameters, gradient_views.values(), strict=True):
                    parameter.grad = view  # the backward pass adds to it in place
                for part, divisor in parts_of(one, self.parts):
                    loss = self.loss(self.model, *part) / divisor
                    loss.backward()  # type: ignore[no-untyped-call]
                    losses[row] += loss.detach()
            if in_place:
                points_md[row].copy_(gradient_d)
            if done is not None:
                done(slice(row, row + 1), losses)
        return losses

    def pass_into(self, gradient_views: Sequence[Tensor], batch: Batch) -> Tensor:
        """Write the gradient of the loaded model on one client's batch into views; return the loss.

        Takes few launches on a GPU: the gradients are copied together.
        """
        if not self.model.training:
            self.model.train()
        total: Tensor | None = None
        for number, (part, divisor) in enumerate(parts_of(batch, self.parts)):
            loss = self.loss(self.model, *part) / divisor
            gradients = torch.autograd.grad(loss, self._parameters, materialize_grads=True)
            together = torch._foreach_add_ if number else torch._foreach_copy_
            together(list(gradient_views), list(gradients))
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None, "a batch has at least one part"
        return total

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
