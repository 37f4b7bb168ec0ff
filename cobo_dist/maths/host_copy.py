"""Copies of tensors in the memory of the host, so that the originals may change."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

Name = TypeVar("Name", bound=Hashable)


def host_copies(named: Mapping[Name, Tensor]) -> tuple[dict[Name, Tensor], Callable[[], None]]:
    """Return copies of the same names, shapes and strides, and what waits until they are there.

    Views of one memory are copied in one piece, from the first to the last of their numbers: so are the
    parameters of all clients, which are views of rows. From a GPU the copies go to pinned memory behind the
    program, in the order of its stream; another thread may wait for them.

    >>> x_cd = torch.arange(6.0).view(2, 3)
    >>> copies, wait = host_copies({"a": x_cd[0, :2], "b": x_cd[1]})
    >>> x_cd.zero_().sum().item(), copies["a"].tolist(), copies["b"].tolist()
    (0.0, [0.0, 1.0], [3.0, 4.0, 5.0])
    """
    groups: dict[Hashable, dict[Name, Tensor]] = {}
    for name, tensor in named.items():
        memory = tensor.untyped_storage().data_ptr(), tensor.dtype, tensor.device
        groups.setdefault(memory, {})[name] = tensor.detach()
    copies: dict[Name, Tensor] = {}
    for views in groups.values():
        copies |= _copy_together(views)
    copies = {name: copies[name] for name in named}  # in the given order
    if not any(tensor.is_cuda for tensor in named.values()):
        return copies, lambda: None
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()
    return copies, done.synchronize


def _copy_together(views: dict[Name, Tensor]) -> dict[Name, Tensor]:
    begin = min(one.storage_offset() for one in views.values())
    end = max(map(_end, views.values()))
    whole = next(iter(views.values())).as_strided((end - begin,), (1,), begin)
    held = whole.to("cpu", non_blocking=True) if whole.is_cuda else whole.clone()
    return {
        name: held.as_strided(one.shape, one.stride(), one.storage_offset() - begin)
        for name, one in views.items()
    }


def _end(view: Tensor) -> int:
    """Return the place behind a view's last number in its memory."""
    if not view.numel():
        return int(view.storage_offset())
    last = sum((n - 1) * step for n, step in zip(view.shape, view.stride(), strict=True))
    return int(view.storage_offset()) + last + 1
