"""What a program asks of tensors: where they lie, copies between host and device, new tensors there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from virtual_cuda import counts, streams
from virtual_cuda.kernels import Kernels
from virtual_cuda.marks import (
    CPU,
    CUDA,
    is_pinned,
    mark_on_device,
    mark_pinned,
    on_device,
    refuse,
    unwatched,
)

_FROM_NUMBERS = {"tensor", "as_tensor", "scalar_tensor", "asarray", "new_tensor"}


class Functions(TorchFunctionMode):
    """Answers for tensors of the virtual device; all else passes on."""

    def __init__(self, kernels: Kernels) -> None:
        super().__init__()
        self._kernels = kernels
        self._answers = {
            Tensor.device.__get__: lambda one: CUDA if on_device(one) else CPU,
            Tensor.is_cuda.__get__: on_device,
            Tensor.is_cpu.__get__: lambda one: not on_device(one),
            Tensor.get_device: lambda one: 0 if on_device(one) else -1,
            Tensor.is_pinned: lambda one, *_: is_pinned(one),
            Tensor.pin_memory: self._pin,
            Tensor.cpu: lambda one, **_: self._move(one, CPU),
            Tensor.cuda: lambda one, *_, **how: self._move(one, CUDA, **how),
            Tensor.to: self._to,
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (answer := self._answers.get(func)) is not None:
            return answer(*args, **kwargs)
        if func in (Tensor.numpy, Tensor.__array__, Tensor.tolist) and on_device(args[0]):
            if func is not Tensor.tolist:
                refuse("numpy cannot read a tensor on the device")
            streams.wait_for_device("tolist")
            with unwatched():
                return args[0].tolist()
        name = getattr(func, "__name__", "")
        if name != "_parse_to" and ("device" in kwargs or name in _FROM_NUMBERS):
            return self._new(func, name, args, kwargs)
        if kwargs.get("pin_memory"):
            return mark_pinned(func(*args, **kwargs | {"pin_memory": False}))
        given = tree_leaves((args, kwargs))
        with self._kernels.making(any(isinstance(one, Tensor) and on_device(one) for one in given)):
            return func(*args, **kwargs)

    def _new(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Make a tensor on the device that is named, or on that of the tensor it is made from."""
        device = kwargs.get("device")
        if device is None:
            on = name == "new_tensor" and on_device(args[0])
        else:
            on = torch.device(device).type == "cuda"
            kwargs = kwargs | {"device": CPU}
        pinned = kwargs.pop("pin_memory", False)
        if name in _FROM_NUMBERS:
            first = args[-1] if args else None
            if isinstance(first, Tensor):  # as_tensor of a tensor
                moved = first if device is None else self._move(first, CUDA if on else CPU)
                return moved if kwargs.get("dtype") is None else moved.to(kwargs["dtype"])
            with self._kernels.placing(False):
                result = func(*args, **kwargs)
            if on:
                counts.upload(result.nbytes, blocks=True)
                return mark_on_device(
                    result.clone() if name in ("as_tensor", "asarray") else result
                )
            return mark_pinned(result) if pinned else result
        if device is None:
            return func(*args, **kwargs)
        with self._kernels.placing(on):
            result = func(*args, **kwargs)
        return mark_pinned(result) if pinned else result

    def _pin(self, tensor: Tensor, *_: Any) -> Tensor:
        if on_device(tensor):
            refuse("only host memory can be pinned")
        if is_pinned(tensor):
            return tensor
        with unwatched():
            copy = tensor.clone()
        return mark_pinned(copy)

    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        copy = kwargs.pop("copy", False)
        if "other" in kwargs:
            args = (kwargs.pop("other"), *args)
        if args and isinstance(args[0], Tensor):
            like = args[0]
            device, dtype = (CUDA if on_device(like) else CPU), like.dtype
            behind, layout = bool(kwargs.get("non_blocking", False)), None
        else:
            device, dtype, behind, layout = torch._C._nn._parse_to(*args, **kwargs)
        return self._move(
            tensor, device, dtype, non_blocking=behind, copy=copy, memory_format=layout
        )

    def _move(
        self,
        tensor: Tensor,
        device: torch.device | None,
        dtype: torch.dtype | None = None,
        *,
        non_blocking: bool = False,
        copy: bool = False,
        memory_format: torch.memory_format | None = None,
    ) -> Tensor:
        origin = on_device(tensor)
        to = origin if device is None else device.type == "cuda"
        how = {} if memory_format is None else {"memory_format": memory_format}
        dtype = dtype or tensor.dtype
        with torch._C.DisableTorchFunction():
            if origin == to:
                return tensor.to(dtype, copy=copy, **how)
            if to:
                counts.upload(tensor.nbytes, blocks=not non_blocking)
            else:
                counts.download(tensor.nbytes, blocks=False)
                if not non_blocking:
                    streams.wait_for_device("copy to the host")
            with self._kernels.moving():
                moved = tensor.to(dtype, copy=True, **how)
        if to:
            return mark_on_device(moved)
        if non_blocking:  # torch takes pinned memory for this
            mark_pinned(moved)
            streams.copy_later(moved.detach(), tensor)
        return moved
