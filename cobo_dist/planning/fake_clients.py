"""Stand-ins for all clients of a run: over them an algorithm goes through its rounds and nothing is learned.

A model is one number here, and buffers, where there are any, are two: enough for an algorithm to say which
rows it wants from where. They behave as clients who know their clusters: gradients of one cluster are alike,
those of two are not, and the losses of IFCA's centre k are least for cluster k.

Shapes: n clients, e models at points that are not the clients' own, k models of no client.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobo_dist.comm.placement import Placement
from cobo_dist.maths import seeds

MODEL, BUFFERS = 1, 2
"""Numbers in a row that stands for a model, and in one that stands for its buffers."""


class FakeClients:
    """All clients of a run.

    It notes what real clients would keep room for: `gradients_r`, the most gradients at foreign points that
    each rank takes at once, `apart_r`, the rows that it keeps for them, and `others`, the models beside the
    clients' own that every rank has. And what they would compute: `passes`, for each call of gradients the
    clients of each rank that take one, and `forwards`, the losses without a gradient.
    """

    lr = 0.0

    def __init__(
        self,
        placement: Placement,
        clusters: Sequence[int] | None,
        buffers: bool,
        dtype: torch.dtype,
    ) -> None:
        """Stand for the clients of a placement; without known clusters each is one of its own."""
        count = placement.clients
        labels = range(count) if clusters is None else clusters
        _, cluster_n = np.unique(np.asarray(labels), return_inverse=True)
        self.placement, self.ids = placement, tuple(range(count))
        self.cluster_n1 = torch.from_numpy(cluster_n.reshape(-1, 1)).to(dtype)
        self.x_cd = torch.zeros(count, MODEL, dtype=dtype)
        self.g_cd = self.cluster_n1.clone()
        self.b_cd = torch.zeros(count, BUFFERS * buffers, dtype=dtype)
        self.gradients_r = np.zeros(placement.ranks, dtype=np.int64)
        self.apart_r = np.zeros(placement.ranks, dtype=np.int64)
        self.others = 0
        self.passes: list[NDArray[np.int64]] = []
        self.forwards = np.zeros(placement.ranks, dtype=np.int64)
        self._scored = 0

    def eta(self, t: int) -> float:
        """Return 0: models stay where they are."""
        return 0.0

    def gradients(
        self,
        t: int,
        rows_e: NDArray[np.int64] | None = None,
        on_rows_ready: Callable[[slice], None] | None = None,
    ) -> Tensor:
        """Return losses of 0."""
        if on_rows_ready is not None:
            on_rows_ready(slice(None))
        if rows_e is None:
            self.passes.append(self._by_rank(np.arange(len(self.ids))))
            return torch.zeros(len(self.ids), dtype=self.x_cd.dtype)
        self.apart_r = np.maximum(self.apart_r, self._note(rows_e))
        return torch.zeros(len(rows_e), dtype=self.x_cd.dtype)

    def gradients_at(
        self,
        points_ed: Tensor,
        rows_e: NDArray[np.int64],
        t: int,
        stream: str,
        *,
        in_place: bool = False,
    ) -> Tensor:
        """Return gradients that tell clusters apart."""
        taken_r = self._note(rows_e)
        # In place of the points, one is taken beside them at a time.
        self.apart_r = np.maximum(self.apart_r, np.minimum(taken_r, 1) if in_place else taken_r)
        return self.cluster_n1[torch.from_numpy(rows_e)]

    def _note(self, rows_e: NDArray[np.int64]) -> NDArray[np.int64]:
        self.passes.append(self._by_rank(rows_e))
        self.gradients_r = np.maximum(self.gradients_r, self.passes[-1])
        return self.passes[-1]

    def _by_rank(self, rows_e: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(self.placement.owner_n[rows_e], minlength=self.placement.ranks)

    def losses_at(
        self, points_kd: Tensor, buffers_kd: Tensor, rows_e: NDArray[np.int64], t: int
    ) -> NDArray[np.float64]:
        """Return losses by which a client picks the centre of its cluster."""
        count = len(points_kd)
        self.forwards += count * self._by_rank(rows_e)
        own_e = self.cluster_n1[torch.from_numpy(rows_e), 0].numpy() % count
        return np.asarray(own_e[:, None] != np.arange(count), dtype=np.float64)

    def validation_losses_at(
        self, points_kd: Tensor, buffers_kd: Tensor, t: int, batch_size: int
    ) -> NDArray[np.float64]:
        """Return losses of which no two are alike, as measured ones are not."""
        self._scored += 1
        self.forwards += len(points_kd) * self._by_rank(np.arange(len(self.ids)))
        shape = len(self.ids), len(points_kd)
        name = seeds.key(0, "stand-ins' losses", self._scored)
        return seeds.uniforms(name, shape[0] * shape[1]).view(shape).numpy()

    def direction(self, rows: slice = slice(None)) -> Tensor:
        """Return what is in the rows of the gradients."""
        return self.g_cd[rows]

    def start_rows(self, count: int) -> Tensor:
        """Return models that every rank has beside its clients'."""
        self.others += count
        return torch.zeros(count, MODEL, dtype=self.x_cd.dtype)

    def start_buffers(self, count: int) -> Tensor:
        """Return their buffers."""
        return torch.zeros(count, self.b_cd.shape[1], dtype=self.x_cd.dtype)

    def new_optimizer(self, rows_kd: Tensor) -> StatelessOptimizer:
        """Return an optimizer for them."""
        return StatelessOptimizer()


class StatelessOptimizer:
    """Remembers nothing."""

    def direction(self, gradients_cd: Tensor, rows: slice = slice(None)) -> Tensor:
        """Return the gradients."""
        return gradients_cd

    def state(self) -> dict[str, Tensor]:
        """Return nothing."""
        return {}
