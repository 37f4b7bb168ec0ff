"""Models as rows: one client's whole model is one flat, contiguous row of X [c, d].

Parameters, gradients and buffers are views into such rows, so a model is sent, averaged or updated without
being packed or unpacked.

Shapes: c clients, d parameters, m rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobo_dist.lazy import Tensor, torch

ALIGNMENT_BYTES = 64
_MIN_COLUMNS = 1 << 12  # a multiple of the alignment
_MAX_NUMBERS = 1 << 20  # in the columns taken at once on a CPU: 4 MB of float32
_MAX_NUMBERS_ON_GPU = 1 << 26  # 256 MB: a GPU has no cache to fit, and every part costs launches
_MAX_NUMBERS_OF_MODELS = 1 << 24  # that a round works on at once: 64 MB of float32
_MAX_NUMBERS_OF_MODELS_ON_GPU = 1 << 29  # 2 GB: each group costs messages and launches


@dataclass(frozen=True)
class Layout:
    """Where each named tensor lies in a row of length `size`.

    `size` is the sum of the elements (d), without padding. A convolution's kernel [O, I, h, w] has the
    memory format of its module: contiguous, or channels last [O, h, w, I].
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    channels_last: frozenset[str] = frozenset()

    @classmethod
    def of(cls, named: Iterable[tuple[str, Tensor]]) -> Layout:
        """Return the layout of named tensors, in their order and memory format."""
        pairs = list(named)
        return cls(
            tuple(name for name, _ in pairs),
            tuple(tensor.shape for _, tensor in pairs),
            frozenset(name for name, tensor in pairs if _has_channels_last(tensor)),
        )

    @cached_property
    def lengths(self) -> list[int]:
        """Number of elements of each tensor."""
        return [prod(shape) for shape in self.shapes]

    @cached_property
    def size(self) -> int:
        """Length d of a row."""
        return sum(self.lengths)

    def views(self, rows: Tensor) -> dict[str, Tensor]:
        """Return named views [*shape] of one row [d], or [m, *shape] of m rows [m, d]."""
        pieces = torch.split(rows, self.lengths, dim=-1)
        return {
            name: self._shaped(name, piece, rows.shape[:-1], shape)
            for name, piece, shape in zip(self.names, pieces, self.shapes, strict=True)
        }

    def _shaped(self, name: str, piece: Tensor, rows: torch.Size, shape: torch.Size) -> Tensor:
        if name not in self.channels_last:
            return piece.view(*rows, *shape)
        outputs, inputs, height, width = shape
        return piece.view(*rows, outputs, height, width, inputs).movedim(-1, -3)


def _has_channels_last(tensor: Tensor) -> bool:
    """Return whether a tensor is channels last and not contiguous as well."""
    return (
        tensor.dim() == 4
        and tensor.is_contiguous(memory_format=torch.channels_last)
        and not tensor.is_contiguous()
    )


def empty_rows(
    count: int, size: int, *, dtype: torch.dtype, device: str | torch.device = "cpu"
) -> Tensor:
    """Return uninitialized rows [count, size] whose every row starts on a 64-byte boundary.

    Kernels may add in another order where memory is aligned differently. Equal alignment of all rows
    keeps a client's numbers the same in any row. The stride is padded, the rows are not.
    """
    stride = row_bytes(size, dtype) // dtype.itemsize
    return torch.empty(count, stride, dtype=dtype, device=device)[:, :size]


def row_bytes(size: int, dtype: torch.dtype) -> int:
    """Return the bytes of one row of `empty_rows`, padding included."""
    return -(-size * dtype.itemsize // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def to_device(numbers: NDArray[Any] | Tensor, device: torch.device) -> Tensor:
    """Return numbers of the CPU on `device`, without waiting for the device.

    On the CPU the answer shares their memory, and so it may on a GPU until the copy is made: do not change
    them.
    """
    tensor = numbers if isinstance(numbers, Tensor) else torch.from_numpy(numbers)
    return tensor.to(device, non_blocking=True)


def upload(factors: Tensor, like: Tensor) -> Tensor:
    """Return factors of the CPU in the type and on the device of `like`, without waiting for the device."""
    return to_device(factors.to(like.dtype), like.device)


def numbers_at_once(device: torch.device) -> int:
    """Return how many numbers of X are worked on at a time where several passes go over them."""
    return _MAX_NUMBERS_ON_GPU if device.type == "cuda" else _MAX_NUMBERS


def columns_at_once(count: int, size: int, device: torch.device) -> Iterator[slice]:
    """Yield the columns of `count` rows of length `size`, in parts.

    Where several passes go over long rows, each part is small enough to stay in a CPU's cache between
    them, and a copy of it is small. Short rows are one part. Parts begin on 64-byte boundaries, as rows do.
    """
    width = widest(count, size, device)
    for start in range(0, size, width or 1):
        yield slice(start, min(size, start + width))


def widest(count: int, size: int, device: torch.device) -> int:
    """Return the largest number of columns in a part of `columns_at_once`."""
    width = numbers_at_once(device) // max(1, count) // _MIN_COLUMNS * _MIN_COLUMNS
    return min(size, max(width, _MIN_COLUMNS))


def some_rows(rows_cd: Tensor, index_k: NDArray[np.int64]) -> Tensor:
    """Return the rows number `index_k`, at least one: a view, where the numbers ascend in equal steps."""
    step = int(index_k[1] - index_k[0]) if len(index_k) > 1 else 1
    if step > 0 and (np.diff(index_k) == step).all():
        return rows_cd[int(index_k[0]) : int(index_k[-1]) + 1 : step]
    # Plain indexing takes four times as long for short rows.
    return rows_cd.index_select(0, to_device(index_k, rows_cd.device))


def take_rows(rows_cd: Tensor, index_k: Tensor, out_kd: Tensor) -> None:
    """Write the rows number `index_k` into `out_kd`, in its type; on a CPU with no copy in between."""
    if out_kd.dtype == rows_cd.dtype:
        torch.index_select(rows_cd, 0, index_k, out=out_kd)
        return
    if rows_cd.is_cuda:  # to read the numbers would wait for the device
        out_kd.copy_(rows_cd.index_select(0, index_k))
        return
    for out_d, row in zip(out_kd, index_k.tolist(), strict=True):
        out_d.copy_(rows_cd[row])


def put_rows(rows_kd: Tensor, index_k: NDArray[np.int64], into_nd: Tensor) -> None:
    """Write rows, in any type, over the rows number `index_k` (ascending) of `into_nd`."""
    if not len(index_k):
        return
    if index_k[-1] - index_k[0] == len(index_k) - 1:
        into_nd[int(index_k[0]) : int(index_k[-1]) + 1].copy_(rows_kd)
        return
    into_nd[to_device(index_k, into_nd.device)] = rows_kd.to(into_nd.dtype)


def models_at_once(size: int, device: torch.device) -> int:
    """Return how many models of `size` numbers a round works on at once, beside the clients' own."""
    on_gpu = device.type == "cuda"
    most = _MAX_NUMBERS_OF_MODELS_ON_GPU if on_gpu else _MAX_NUMBERS_OF_MODELS
    return max(1, most // max(1, size))


class Scratch:
    """Buffers by name that are used again every round.

    A name keeps the largest buffer requested so far, so the steady state allocates nothing. The content of
    a buffer is undefined.
    """

    def __init__(self, dtype: torch.dtype, device: str | torch.device) -> None:
        self.dtype, self.device = dtype, torch.device(device)
        self._rows: dict[tuple[str, int], Tensor] = {}
        self._flat: dict[str, Tensor] = {}

    def rows(self, name: str, count: int, size: int) -> Tensor:
        """Return `count` aligned rows [count, size] of the buffer `name`."""
        if (name, size) not in self._rows or len(self._rows[name, size]) < count:
            self._rows.pop((name, size), None)  # frees the old one before the new one is allocated
            self._rows[name, size] = empty_rows(count, size, dtype=self.dtype, device=self.device)
        return self._rows[name, size][:count]

    def flat(self, name: str, count: int) -> Tensor:
        """Return `count` contiguous numbers [count] of the buffer `name`."""
        if name not in self._flat or len(self._flat[name]) < count:
            self._flat.pop(name, None)
            self._flat[name] = torch.empty(count, dtype=self.dtype, device=self.device)
        return self._flat[name][:count]

    def several(
        self, name: str, counts: Mapping[int, int], *, separate: bool = False
    ) -> dict[int, Tensor]:
        """Return, by key, contiguous numbers [count] that follow one another in the flat buffer `name`.

        `separate`: each in its own buffer, so its alignment does not depend on the lengths of the others.
        """
        if separate:
            return {key: self.flat(f"{name} {key}", count) for key, count in counts.items()}
        parts = torch.split(self.flat(name, sum(counts.values())), list(counts.values()))
        return dict(zip(counts, parts, strict=True))
