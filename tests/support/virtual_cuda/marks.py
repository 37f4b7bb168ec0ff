"""Which tensors lie on the virtual device, and which in pinned host memory.

The mark is an attribute of the storage, so all views of a tensor share it and it ends with the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map

from virtual_cuda import memory
from virtual_cuda.counts import site

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")
_ON_DEVICE = "on_virtual_cuda"


class VirtualCudaError(RuntimeError):
    """What a real GPU would refuse, or compute wrongly."""


def refuse(what: str) -> NoReturn:
    """Raise VirtualCudaError with the line of the program."""
    raise VirtualCudaError(f"virtual CUDA: {what} (at {site()})")


@contextmanager
def unwatched() -> Iterator[None]:
    """Leave both modes: what runs here belongs to the virtual device, not to the program."""
    with torch._C.DisableTorchFunction(), _disable_current_modes():
        yield


def _storage(tensor: Tensor) -> Any:
    """Return the storage inside functorch's wrappers; None for a tensor without one."""
    with torch._C.DisableTorchFunction():
        while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            tensor = torch._C._functorch.get_unwrapped(tensor)
        try:
            return tensor.untyped_storage()
        except (RuntimeError, NotImplementedError):
            return None


def on_device(tensor: Tensor) -> bool:
    """Return whether a tensor lies on the virtual device."""
    return hasattr(_storage(tensor), _ON_DEVICE)


def is_pinned(tensor: Tensor) -> bool:
    """Return whether a tensor lies in pinned host memory."""
    return hasattr(_storage(tensor), "is_virtually_pinned")


def mark_on_device(result: Any) -> Any:
    """Put every tensor of a result on the virtual device; return the result."""
    return _mark(result, _ON_DEVICE)


def mark_pinned(result: Any) -> Any:
    """Put every tensor of a result into pinned host memory; return the result."""
    return _mark(result, "is_virtually_pinned")


def _mark(result: Any, name: str) -> Any:
    def one(item: Any) -> Any:
        if isinstance(item, Tensor) and (storage := _storage(item)) is not None:
            if name == _ON_DEVICE and not hasattr(storage, name):
                memory.current.allocate(storage)
            setattr(storage, name, True)
        return item

    return tree_map(one, result)
