"""For each client the model of an earlier round that the run leaves, beside the one in training.

Shapes: c clients on this rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cobo_dist.clients.buffers import BufferRows, Buffers
from cobo_dist.clients.local_work import Rows
from cobo_dist.maths.flat import Layout, to_device


class KeptModels:
    """Copies of models and buffers; `rounds_c1` [c, 1] says after which round each was taken."""

    def __init__(self, layout: Layout, x_cd: Tensor, buffers: BufferRows) -> None:
        """Keep the models x_cd as those after round 0."""
        self.layout, self.x_cd = layout, x_cd.clone()
        self.buffers = BufferRows(buffers.layouts, tuple(rows.clone() for rows in buffers.rows))
        count = len(x_cd)
        self.rounds_c1 = torch.zeros(count, 1, dtype=torch.int64)
        self.losses_c1 = torch.full((count, 1), torch.inf, dtype=torch.float64)

    def take(self, r: int, rows_k: Rows, x_cd: Tensor, buffers: BufferRows) -> None:
        """Keep the models of the clients in the rows `rows_k`, as they are after round r."""
        there = to_device(rows_k, x_cd.device)
        for kept, now in ((self.x_cd, x_cd), *zip(self.buffers.rows, buffers.rows, strict=True)):
            kept.index_copy_(0, there, now.index_select(0, there))
        self.rounds_c1[rows_k] = r

    def put_back(self, x_cd: Tensor, buffers: BufferRows) -> None:
        """Overwrite the models in training by the kept ones."""
        for kept, now in ((self.x_cd, x_cd), *zip(self.buffers.rows, buffers.rows, strict=True)):
            now.copy_(kept)

    def tensors(self) -> list[Tensor]:
        """Return all that is kept, each tensor [c, ...]."""
        return [self.x_cd, *self.buffers.rows, self.rounds_c1, self.losses_c1]

    def views(self, row: int) -> Buffers:
        """Return what is kept of one client, by name: views."""
        found = {f"model.{name}": one for name, one in self.layout.views(self.x_cd[row]).items()}
        found |= {f"buffer.{name}": one[row] for name, one in self.buffers.views().items()}
        return found | {"round": self.rounds_c1[row], "loss": self.losses_c1[row]}
