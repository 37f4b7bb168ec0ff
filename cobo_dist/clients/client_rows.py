"""Models of clients as rows, with their buffers, and where they start.

Shapes: c clients of one rank, d parameters, b floating-point buffers, k models.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from cobo_dist.clients.buffers import BufferRows, Buffers, integer_rows, state_buffers
from cobo_dist.clients.columns import Columns, find_columns, layers_of
from cobo_dist.clients.engines import trained
from cobo_dist.clients.learning_task import LearningTask
from cobo_dist.maths.flat import Layout, empty_rows
from cobo_dist.maths.host_copy import host_copies


class ClientRows:
    """The clients `ids` in the rows of `x_cd` (models), `g_cd` (gradients) and `b_cd` (buffers)."""

    def __init__(
        self,
        ids: Iterable[int],
        task: LearningTask,
        dtype: torch.dtype,
        device: torch.device,
        own_starts: bool,
    ) -> None:
        """Start the clients at x^0, or with `own_starts` each at its own random model."""
        self.ids = tuple(int(client) for client in ids)
        self.task, self.device = task, device
        self.model = task.model().to(device=device, dtype=dtype)
        self.layout = Layout.of(trained(self.model))
        self.size = self.layout.size
        frozen = [one.numel() for one in self.model.parameters() if not one.requires_grad]
        self.frozen = sum(frozen)  # parameters of the frozen base, the same for all clients
        buffers = dict(state_buffers(self.model))
        floating = [(name, one) for name, one in buffers.items() if one.is_floating_point()]
        self.buffer_layout = Layout.of(floating)
        count = len(self.ids)
        self._empty_rows = partial(empty_rows, dtype=dtype, device=device)
        self.x_cd = self._empty_rows(count, self.layout.size)
        self.g_cd = self._empty_rows(count, self.layout.size)
        self.b_cd = self._empty_rows(count, self.buffer_layout.size)
        counters = integer_rows(buffers, count, device)  # algorithms do not average these
        self.buffers = BufferRows(
            (self.buffer_layout, *counters.layouts), (self.b_cd, *counters.rows)
        )
        self.counters = counters.views()
        self._start_all(floating, own_starts)

    def _start_all(self, floating: Iterable[tuple[str, Tensor]], own_starts: bool) -> None:
        """Give every client the common start x^0, or one of its own, and the module's buffers."""
        if own_starts:
            for x_d, client in zip(self.x_cd, self.ids, strict=True):
                self._write_start(client + 1, x_d)
        else:
            self.x_cd.copy_(self.start_rows(1))
        # A copy: the module's own buffers become views of the client that is loaded.
        self._start_1b = self._empty_rows(1, self.buffer_layout.size)
        views = self.buffer_layout.views(self._start_1b[0])
        for name, buffer in floating:
            views[name].copy_(buffer)
        self.b_cd.copy_(self._start_1b)
        self.g_cd.zero_()
        self.loaded = False  # whether models of another run replaced these starts

    def start_rows(self, count: int) -> Tensor:
        """Return starting models [count, d]: the first is x^0, the others have other seeds."""
        rows_kd = self._empty_rows(count, self.layout.size)
        for variant, row_d in enumerate(rows_kd):
            self._write_start(variant, row_d)
        return rows_kd

    def _write_start(self, variant: int, row_d: Tensor) -> None:
        start = self.task.start(variant)
        for name, view in self.layout.views(row_d).items():
            view.copy_(start[name])

    def start_buffers(self, count: int) -> Tensor:
        """Return the floating-point buffers [count, b] of starting models."""
        return self._empty_rows(count, self.buffer_layout.size).copy_(self._start_1b)

    def columns(self, *patterns: str, others: bool = False, buffers: bool = False) -> Columns:
        """Return the columns of X of the parameters that match a pattern (`columns.find_columns`).

        `others`: of those that match none. `buffers`: columns of `b_cd`, by the names of buffers.

        Raises:
            ConfigError: a pattern matches nothing.
        """
        layout = self.buffer_layout if buffers else self.layout
        return find_columns(layout, patterns, others=others)

    def layers(self) -> tuple[str, ...]:
        """Return the names of the model's layers, from the inputs to the outputs, for `columns`."""
        return layers_of(self.layout)

    def state_dict(self, row: int) -> dict[str, Tensor]:
        """Return one client's model by name, buffers included, on the CPU."""
        copies, wait = host_copies(self.model_views(row))
        wait()
        # Contiguous copies, since files store tensors in that order.
        return {
            name: tensor.clone(memory_format=torch.contiguous_format)
            for name, tensor in copies.items()
        }

    def model_views(self, row: int) -> dict[str, Tensor]:
        """Return one client's parameters and buffers by name: views."""
        return {**self.layout.views(self.x_cd[row]), **self._row_buffers(row)}

    def _row_buffers(self, row: int) -> Buffers:
        return {name: buffer[row] for name, buffer in self.buffers.views().items()}
