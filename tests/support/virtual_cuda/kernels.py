"""Every operation on tensors: refuses tensors of two devices, marks results, counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from virtual_cuda import counts, streams
from virtual_cuda.marks import is_pinned, mark_on_device, on_device, refuse

# No kernel, although the result is no view by its schema.
_FREE = {
    "empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "detach_", "lift",
    "lift_fresh", "set_", "resize_", "_unsafe_view", "_reshape_alias", "is_same_size", "record_stream",
    "_has_compatible_shallow_copy_type", "is_pinned", "unsafe_split", "unsafe_chunk", "is_nonzero",
    "_local_scalar_dense", "equal",
}  # fmt: skip
# The size of the result, or the result itself, is a number that the host must know.
_READ_BY_HOST = {
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "repeat_interleave",
}  # fmt: skip
# Kernels of an operation where CUDA surely launches more than one.
_SEVERAL = {
    "sort": 4, "argsort": 4, "topk": 3, "cumsum": 2, "index_put": 4, "index_put_": 4, "native_batch_norm": 2,
    "native_batch_norm_backward": 2, "convolution_backward": 3, "max_pool2d_with_indices_backward": 2,
    "embedding_dense_backward": 5,
}  # fmt: skip
# A CPU tensor without dimensions is a plain number for these, as for all element-wise operations.
_TAKE_NUMBERS = {
    "masked_fill",
    "masked_fill_",
    "fill_",
    "index_put",
    "index_put_",
    "where",
    "_foreach_mul_",
}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class Kernels(TorchDispatchMode):
    """Sees every operation below autograd and vmap."""

    def __init__(self) -> None:
        super().__init__()
        self._place: bool | None = None
        self._made_on_device = False
        self._moves = False

    @contextmanager
    def making(self, on: bool) -> Iterator[None]:
        """Place what operations make from no tensors, as torch does inside of its own functions."""
        before, self._made_on_device = self._made_on_device, on
        try:
            yield
        finally:
            self._made_on_device = before

    @contextmanager
    def placing(self, on: bool) -> Iterator[None]:
        """Place results on the virtual device, or on the host, whatever the arguments are."""
        before, self._place = self._place, on
        try:
            yield
        finally:
            self._place = before

    @contextmanager
    def moving(self) -> Iterator[None]:
        """Copy between host and device: the copy is no kernel."""
        before, self._moves = self._moves, True
        try:
            yield
        finally:
            self._moves = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._moves:
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if name == "copy_":
            return self._copy(func, args, kwargs)
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        here = [on_device(one) for one in tensors]
        if self._place is None and any(here):
            self._check(func, name, args, tensors, here)
            if name in _READ_BY_HOST:
                streams.wait_for_device(name.strip("_"))
            if name in _INDEXING:
                _note_indices(args[0], tree_leaves(args[1]))
        result = func(*args, **kwargs)
        place = self._place
        if place is None:
            place = any(here) if here else self._made_on_device
        if place and name != "_local_scalar_dense":
            if name not in _FREE and not _is_view(func):
                counts.kernel(_SEVERAL.get(name, 1))
                streams.launched()
            mark_on_device(result)
        return result

    def _copy(self, func: Any, args: Any, kwargs: Any) -> Any:
        target, source, *rest = args
        to, origin = on_device(target), on_device(source)
        behind = bool(rest[0] if rest else kwargs.get("non_blocking", False))
        if to and origin:
            counts.kernel()
            streams.launched()
        elif to:
            counts.upload(source.nbytes, blocks=not behind)
        elif origin and behind and is_pinned(target):
            counts.download(target.nbytes, blocks=False)
            streams.copy_later(target, source)
            return target
        elif origin:
            counts.download(target.nbytes, blocks=False)
            streams.wait_for_device("copy to the host")
        return func(*args, **kwargs)

    def _check(
        self, func: Any, name: str, args: Any, tensors: list[Tensor], here: list[bool]
    ) -> None:
        """Refuse tensors of two devices, except where CUDA takes a number or indices from the CPU."""
        if all(here):
            return
        foreign = [one for one, on in zip(tensors, here, strict=True) if not on]
        if name in _INDEXING and on_device(args[0]):
            indices = [one for one in tree_leaves(args[1]) if isinstance(one, Tensor)]
            foreign = [one for one in foreign if not any(one is index for index in indices)]
        takes_numbers = name in _TAKE_NUMBERS or torch.Tag.pointwise in func.tags
        numbers = takes_numbers and all(one.dim() == 0 for one in foreign)
        written = [
            one
            for one, argument in zip(args, func._schema.arguments, strict=False)
            if isinstance(one, Tensor) and argument.alias_info and argument.alias_info.is_write
        ]
        if foreign and not (numbers and all(map(on_device, written))):
            places = ", ".join(
                f"{'cuda' if on else 'cpu'}{list(one.shape)}"
                for one, on in zip(tensors, here, strict=True)
            )
            refuse(f"{name} of tensors on two devices: {places}")


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(
        one.alias_info is not None and not one.alias_info.is_write for one in returns
    )


def _note_indices(indexed: Tensor, indices: list[Any]) -> None:
    """Note what indexing waits for: a mask becomes numbers first, an index on the CPU is copied."""
    for index in indices:
        if isinstance(index, Tensor):
            if not on_device(index):
                counts.upload(index.nbytes, blocks=True)
            if index.dtype in (torch.bool, torch.uint8):
                streams.wait_for_device("index by a mask")
