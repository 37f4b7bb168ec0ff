"""Fake clients: an algorithm can run its rounds with them, and nothing is learned.

A model is one number here, and its buffers, if it has any, are two. That is enough for an algorithm to say
which rows it wants from which client. Fake clients behave as if they knew their clusters: gradients in one
cluster are equal, gradients in two clusters differ, and clients of cluster k have the least loss with the
k-th of several models.

Shapes: n clients, e models of other clients or of none, k models of no client, S counted ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobo_dist.clients.columns import find_columns, layers_of
from cobo_dist.clients.learning_task import LearningTask
from cobo_dist.clients.signatures import PredictionLayout, basis_columns
from cobo_dist.comm.placement import Placement
from cobo_dist.maths import seeds
from cobo_dist.maths.participation import Participation
from cobo_dist.planning.memory_estimate import ModelSize

MODEL, BUFFERS = 1, 2
"""Numbers in a row that stands for a model, and in one that stands for its buffers."""

Ints = NDArray[np.int64]


class FakeClients:
    """All n clients of a run.

    They note what real clients would keep in memory: `gradients_s`, the most gradients at other models that
    each counted rank takes at once; `apart_s`, the rows that it keeps for them; `others`, the models beside
    the clients' own that every rank has; `optimizers`, those of further models of every client.
    """

    lr = 0.0
    several_steps = False  # what is sent is the same
    loaded = False

    def __init__(
        self,
        placement: Placement,
        ranks: Ints,
        clusters: Sequence[int] | None,
        model: ModelSize,
        participation: Participation,
        task: LearningTask,
    ) -> None:
        """Make the clients of a placement. Where no clusters are known, each client is its own."""
        count, self.participation, self.task = placement.clients, participation, task
        labels = np.arange(count) if clusters is None else np.asarray(clusters)
        _, cluster_n = np.unique(labels, return_inverse=True)
        self.placement, self.ranks, self.ids = placement, ranks, tuple(range(count))
        self.size, dtype = model.size, model.dtype
        self.cluster_n1 = torch.from_numpy(cluster_n.reshape(-1, 1)).to(dtype)
        self.x_cd = torch.zeros(count, MODEL, dtype=dtype)
        self.g_cd = self.cluster_n1.clone()
        self.b_cd = torch.zeros(count, BUFFERS * (model.buffers > 0), dtype=dtype)
        self.model = model
        self.sizes = {0: 0, MODEL: model.size, BUFFERS: model.buffers}
        """For how many numbers a row of so many numbers here stands."""
        self.gradients_s = np.zeros(len(ranks), dtype=np.int64)
        self.apart_s = np.zeros(len(ranks), dtype=np.int64)
        self.others = self.optimizers = 0
        self.local_steps_c = np.ones(count, dtype=np.int64)
        self._scored = 0

    def eta(self, t: int) -> float:
        """Return a step that moves no model. It is not 0, at which nothing is pulled together."""
        return 1e-100

    def gradients(
        self,
        t: int,
        rows_e: Ints | None = None,
        on_rows_ready: Callable[[slice], None] | None = None,
        adjust: Callable[[Tensor, Tensor, Ints], None] | None = None,
        *,
        only: object = None,
        work: slice = slice(None),
    ) -> Tensor:
        """Return losses of 0."""
        if on_rows_ready is not None:
            on_rows_ready(slice(None))
        if rows_e is None:
            if self.participation.is_partial:
                self.apart_s = np.maximum(
                    self.apart_s, self._note(np.flatnonzero(self.participation(t)))
                )
            return torch.zeros(len(self.ids), dtype=self.x_cd.dtype)
        self.apart_s = np.maximum(self.apart_s, self._note(rows_e))
        return torch.zeros(len(rows_e), dtype=self.x_cd.dtype)

    def gradients_at(
        self,
        points_ed: Tensor,
        rows_e: Ints,
        t: int,
        stream: str,
        *,
        in_place: bool = False,
        local_work: bool = False,
    ) -> Tensor:
        """Return gradients that differ between clusters."""
        taken_s = self._note(rows_e)
        # In place of the points, one is taken beside them at a time.
        self.apart_s = np.maximum(self.apart_s, np.minimum(taken_s, 1) if in_place else taken_s)
        return self.cluster_n1[torch.from_numpy(rows_e)]

    def local_steps(self, t: int) -> FakeSteps:
        """Return one step of the clients that take part."""
        return self.data_steps(t, 1.0, np.flatnonzero(self.participation(t)))

    def data_steps(self, t: int, share: float, rows_e: Ints) -> FakeSteps:
        """Return one step; it keeps a model and a gradient of each of its clients beside their own."""
        self.apart_s = np.maximum(self.apart_s, 2 * self._note(rows_e))
        return FakeSteps(self.cluster_n1, torch.from_numpy(rows_e))

    def _note(self, rows_e: Ints) -> Ints:
        owner_e = self.placement.owner_n[rows_e]
        taken_s: Ints = np.bincount(owner_e, minlength=self.placement.ranks)[self.ranks]
        self.gradients_s = np.maximum(self.gradients_s, taken_s)
        return taken_s

    def losses_at(self, points_kd: Tensor, buffers_kd: Tensor, rows_e: Ints, t: int) -> Tensor:
        """Return losses by which a client picks the model of its cluster."""
        count = len(points_kd)
        own_e = self.cluster_n1[torch.from_numpy(rows_e), 0] % count
        return (own_e[:, None] != torch.arange(count)).double()

    def validation_losses_at(
        self,
        points_kd: Tensor,
        buffers_kd: Tensor,
        t: int,
        batch_size: int,
        rows_e: Ints | None = None,
    ) -> Tensor:
        """Return losses of which no two are equal, as in a real run."""
        self._scored += 1
        shape = len(self.ids if rows_e is None else rows_e), len(points_kd)
        name = seeds.key(0, "fake losses", self._scored)
        return seeds.uniforms(name, shape[0] * shape[1]).view(shape)

    def input_signatures(self, vectors: int, by_class: bool, angle: str) -> FakeSignatures:
        """Return signatures by which clients of one cluster are alike."""
        size = self.task.input_size * basis_columns(self.task, vectors, by_class)
        return FakeSignatures(self._stand_for(size))

    def prediction_signatures(self, examples: int, top: int) -> FakeSignatures:
        """Return signatures by which clients of one cluster are alike."""
        layout = PredictionLayout(*self.task.prediction_shape(examples), top)
        return FakeSignatures(self._stand_for(layout.size))

    def _stand_for(self, size: int) -> Tensor:
        """Return rows that stand for ones of `size` numbers, and have the client's cluster."""
        return self.cluster_n1.expand(-1, self._length_for(size))

    def _length_for(self, size: int) -> int:
        """Return the length of rows that stand for `size` numbers, and for no model."""
        known = [row for row, numbers in self.sizes.items() if numbers == size and row > BUFFERS]
        length = known[0] if known else max(self.sizes) + 1
        self.sizes[length] = size
        return length

    def direction(self, rows: slice = slice(None)) -> Tensor:
        """Return the rows of the gradients."""
        return self.g_cd[rows]

    def start_rows(self, count: int) -> Tensor:
        """Return models that every rank has beside its clients'."""
        self.others += count
        return torch.zeros(count, MODEL, dtype=self.x_cd.dtype)

    def start_buffers(self, count: int) -> Tensor:
        """Return the buffers of such models."""
        return torch.zeros(count, self.b_cd.shape[1], dtype=self.x_cd.dtype)

    def columns(self, *patterns: str, others: bool = False, buffers: bool = False) -> FakeColumns:
        """Return some columns, whose rows have a length of their own here."""
        names = self.model.buffer_names if buffers else self.model.names
        found = find_columns(names, patterns, others=others)
        return FakeColumns(found.names, self._length_for(found.size), found.size)

    def separate(self, *parts: object) -> None:
        """Have nothing to separate: models do not move."""

    def layers(self) -> tuple[str, ...]:
        """Return the names of the model's layers."""
        return layers_of(self.model.names)

    def new_optimizer(self, rows_kd: Tensor) -> FakeOptimizer:
        """Return an optimizer for further models of clients, or of no client."""
        self.optimizers += rows_kd is self.x_cd
        return FakeOptimizer()


@dataclass(frozen=True)
class FakeSignatures:
    """Signatures of all clients, which differ between clusters."""

    rows_cs: Tensor

    def distances(self, others_ks: Tensor) -> NDArray[np.float64]:
        """Return less than 1 within clusters and 90 more between them; no two are equal, as in a real run."""
        apart = (self.rows_cs[:, :1] != others_ks[:, 0]).double()
        name = seeds.key(0, "fake distances", len(others_ks))
        return (90.0 * apart + seeds.uniforms(name, apart.numel()).view(apart.shape)).numpy()


@dataclass(frozen=True)
class FakeColumns:
    """Columns of rows that stand for models: `length` numbers stand for `size`."""

    names: tuple[str, ...]
    length: int
    size: int

    def take(self, rows_cd: Tensor) -> Tensor:
        """Return rows of 0."""
        return rows_cd.new_zeros(len(rows_cd), self.length)

    def put(self, part_ck: Tensor, rows_cd: Tensor) -> None:
        """Have nothing to write: models do not move."""

    def fill(self, rows_cd: Tensor, value: float) -> None:
        """Have nothing to write."""


class FakeOptimizer:
    """An optimizer without memory."""

    def direction(
        self, gradients_cd: Tensor, rows: slice = slice(None), points_cd: Tensor | None = None
    ) -> Tensor:
        """Return the gradients."""
        return gradients_cd

    def state(self) -> dict[str, Tensor]:
        """Return nothing."""
        return {}


class FakeSteps:
    """One local step of some clients, with gradients that differ between clusters."""

    def __init__(self, gradients_n1: Tensor, rows: Tensor) -> None:
        """Let the clients in `rows` take it, each with its row of the gradients."""
        self.gradients_n1, self.rows = gradients_n1, rows
        self.losses_k = gradients_n1.new_zeros(len(rows))

    def __iter__(self) -> Iterator[FakeSteps]:
        """Yield the step: this one."""
        yield self

    def gradients(
        self, models_cd: Tensor, stream: str = "local", *, trains: bool = False
    ) -> Tensor:
        """Return the gradients."""
        return self.gradients_n1[self.rows]

    def descend(
        self, models_cd: Tensor, gradients_kd: Tensor, optimizer: object | None = None
    ) -> None:
        """Move no model."""

    def move(self, models_cd: Tensor, by_kd: Tensor, factor: float) -> None:
        """Move no model."""

    def losses(self) -> Tensor:
        """Return losses of 0."""
        return self.gradients_n1.new_zeros(len(self.gradients_n1))
