"""Buffers of many models as flat rows, one matrix for each type of number.

BatchNorm's statistics are floating-point numbers, which algorithms may average; its counters are integers.

Shapes: m models, b buffers of one type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cobo_dist.lazy import Tensor, nn, torch
from cobo_dist.maths.flat import Layout, empty_rows

Buffers = dict[str, Tensor]  # each [m, *shape], updated in place


def state_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the named buffers of the state dict: BatchNorm's, but no constant tables."""
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(prefix=prefix, recurse=False):
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                yield name, buffer


@dataclass(frozen=True)
class BufferRows:
    """The buffers of m models: `rows[i]` is [m, b] and laid out by `layouts[i]`."""

    layouts: tuple[Layout, ...]
    rows: tuple[Tensor, ...]

    def __len__(self) -> int:
        """Return the number of models; 0 where they have no buffers."""
        return len(self.rows[0]) if self.rows else 0

    def views(self) -> Buffers:
        """Return every buffer of all models by name, [m, *shape]: views."""
        found: Buffers = {}
        for layout, rows in zip(self.layouts, self.rows, strict=True):
            found |= layout.views(rows)
        return found

    def empty(self, count: int) -> BufferRows:
        """Return uninitialized buffers for `count` models."""
        return BufferRows(
            self.layouts,
            tuple(
                empty_rows(count, rows.shape[1], dtype=rows.dtype, device=rows.device)
                for rows in self.rows
            ),
        )

    def first(self, count: int) -> BufferRows:
        """Return the buffers of the first `count` models: views."""
        return BufferRows(self.layouts, tuple(rows[:count] for rows in self.rows))

    def take(self, index_e: Tensor, into: BufferRows) -> None:
        """Copy the buffers of some models into those of others."""
        for rows, out in zip(self.rows, into.rows, strict=True):
            torch.index_select(rows, 0, index_e, out=out)

    def put(self, index_e: Tensor, other: BufferRows) -> None:
        """Overwrite the buffers of some models, each named once, by another's."""
        for rows, new in zip(self.rows, other.rows, strict=True):
            rows[index_e] = new


def integer_rows(named: Mapping[str, Tensor], count: int, device: torch.device) -> BufferRows:
    """Return the buffers that are no floating-point numbers, the same for `count` models."""
    layouts, rows = [], []
    kinds = {buffer.dtype for buffer in named.values() if not buffer.is_floating_point()}
    for dtype in sorted(kinds, key=str):
        own = [(name, buffer) for name, buffer in named.items() if buffer.dtype == dtype]
        flat = torch.cat([buffer.flatten() for _, buffer in own]).to(device)
        layouts.append(Layout.of(own))
        rows.append(flat.expand(count, -1).clone(memory_format=torch.contiguous_format))
    return BufferRows(tuple(layouts), tuple(rows))
