"""Copies of tensors in the memory of the host, so that the originals may change."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from cobo_dist.maths.gpu_memory import free_bytes

Name = TypeVar("Name", bound=Hashable)

MAX_SHARE_OF_FREE_MEMORY = 0.5
"""The largest share of a GPU's free memory that a copy on it may take: the next round needs some."""


def host_copies(named: Mapping[Name, Tensor]) -> tuple[dict[Name, Tensor], Callable[[], None]]:
    """Return copies of the same names, shapes and strides, and what waits until they are there.

    Views of one memory are copied in one piece, from the first to the last of their numbers: so are the
    parameters of all clients, which are views of rows. From a GPU the copies go to pinned memory behind the
    program; another thread may wait for them. If the GPU has memory for it, a first copy is made there, which
    is fast, and a stream of its own takes that to the host: kernels that come after need not wait for it.

    >>> x_cd = torch.arange(6.0).view(2, 3)
    >>> copies, wait = host_copies({"a": x_cd[0, :2], "b": x_cd[1]})
    >>> x_cd.zero_().sum().item(), copies["a"].tolist(), copies["b"].tolist()
    (0.0, [0.0, 1.0], [3.0, 4.0, 5.0])
    """
    groups: dict[Hashable, dict[Name, Tensor]] = {}
    for name, tensor in named.items():
        memory = tensor.untyped_storage().data_ptr(), tensor.dtype, tensor.device
        groups.setdefault(memory, {})[name] = tensor.detach()
    wholes = [_whole(views) for views in groups.values()]
    held, wait = _on_host(wholes)
    copies = {
        name: copy.as_strided(
            one.shape, one.stride(), one.storage_offset() - whole.storage_offset()
        )
        for views, whole, copy in zip(groups.values(), wholes, held, strict=True)
        for name, one in views.items()
    }
    return {name: copies[name] for name in named}, wait  # in the given order


def _whole(views: Mapping[Name, Tensor]) -> Tensor:
    """Return the memory from the first to the last number of some views, flat."""
    begin = min(one.storage_offset() for one in views.values())
    end = max(map(_end, views.values()))
    return next(iter(views.values())).as_strided((end - begin,), (1,), begin)


def _on_host(flat: Sequence[Tensor]) -> tuple[list[Tensor], Callable[[], None]]:
    """Return copies on the host of flat tensors, and what waits for them."""
    there = [one for one in flat if one.is_cuda]
    if not there:
        return [one.clone() for one in flat], lambda: None
    device = there[0].device
    main = stream = torch.cuda.current_stream(device)
    if sum(one.nbytes for one in there) <= MAX_SHARE_OF_FREE_MEMORY * free_bytes(device):
        # The rows may change while the copies travel, so what travels are copies on the device.
        flat = [one.clone() if one.is_cuda else one for one in flat]
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(main)
    with torch.cuda.stream(stream):
        held = [one.to("cpu", non_blocking=True) if one.is_cuda else one.clone() for one in flat]
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record(stream)
    travelling = list(flat)  # the main stream must not use their memory again before

    def wait() -> None:
        done.synchronize()
        travelling.clear()

    return held, wait


def _end(view: Tensor) -> int:
    """Return the place behind a view's last number in its memory."""
    if not view.numel():
        return int(view.storage_offset())
    last = sum((n - 1) * step for n, step in zip(view.shape, view.stride(), strict=True))
    return int(view.storage_offset()) + last + 1
