"""The clients of one rank: their models as rows, and what they compute on their own data.

Shapes: c clients on this rank, d parameters, b floating-point buffers, e points with a client each (such as
midpoints), k models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobo_dist.clients.buffers import BufferRows, Buffers, integer_rows, state_buffers
from cobo_dist.clients.engine_choice import build_engine, fastest
from cobo_dist.clients.engines import Batch, Engine, OneByOne, trained, with_autocast
from cobo_dist.clients.evaluation import Evaluator
from cobo_dist.clients.graphs import GraphedPasses
from cobo_dist.clients.learning_task import BatchSource, LearningTask
from cobo_dist.clients.optimizer_config import OptimizerConfig
from cobo_dist.clients.optimizers import Optimizer, build_optimizer, step_size
from cobo_dist.maths.flat import Layout, Scratch, empty_rows, to_device
from cobo_dist.maths.host_copy import host_copies
from cobo_dist.phase_timer import PhaseTimer


class ClientBatch:
    """The clients `ids` in the rows of `x_cd` (models), `g_cd` (gradients) and `b_cd` (buffers)."""

    def __init__(
        self,
        ids: Iterable[int],
        task: LearningTask,
        optimizer: OptimizerConfig,
        *,
        dtype: torch.dtype,
        device: torch.device,
        autocast: torch.dtype | None = None,
        own_starts: bool = False,
        rounds: int = 1,
        skips_bad: bool = False,
        graphs: bool = False,
        timer: PhaseTimer | None = None,
    ) -> None:
        """Start the clients `ids` at x^0, with models, gradients and sums of `dtype`.

        `autocast`: the type in which PyTorch's autocast computes matrix products and convolutions.
        `own_starts`: start each client at its own random model instead.
        `rounds`: the length of the run, for the schedule of the step size.
        `skips_bad`: replace a gradient that is not finite, or whose loss is not, by 0, set the loss to NaN
        and undo the update of BatchNorm's statistics.
        `graphs`: on a GPU, record passes as CUDA graphs where the task allows it.
        """
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
        self.skips_bad = skips_bad
        self.timer = timer or PhaseTimer.off()
        self.loss = with_autocast(task.loss, device, autocast)
        self._start_all(floating, own_starts)
        self.optimizer: Optimizer = build_optimizer(optimizer, self.x_cd)
        self.lr, self._optimizer, self._rounds = optimizer.lr, optimizer, rounds
        self.source = task.training(self.ids, device)
        self._validation: dict[int, BatchSource] = {}  # by batch size, opened when first needed
        self._graphs = graphs and device.type == "cuda" and task.loss_is_pure
        self.engine = self._build_engine(OneByOne.name)
        self._loader = OneByOne(self.model, self.loss)
        self._evaluator = Evaluator(
            task, self._loader, with_autocast(task.score, device, autocast), device
        )
        self._scratch, self._copies = Scratch(dtype, device), self.buffers.empty(0)

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

    # -- engines ----------------------------------------------------------------------------------

    def use_engine(self, name: str) -> str:
        """Compute gradients with this engine (`one_by_one` or `vectorised`) from now on.

        Returns whether passes are recorded as CUDA graphs, in words; empty where they could not be.
        """
        self.engine = self._build_engine(name)
        if not isinstance(self.engine, GraphedPasses) or not self.ids:
            return ""
        self.engine.find(self.x_cd, self.g_cd, self.buffers, self.source.batch(0, "local"))
        refusal = self.engine.refusal
        return f"no CUDA graphs: {refusal}" if refusal else "CUDA graphs"

    def graphs_given_up(self) -> str:
        """Return why passes are not recorded as CUDA graphs any more; empty if nothing of that happened."""
        return self.engine.refusal if isinstance(self.engine, GraphedPasses) else ""

    def _build_engine(self, name: str) -> Engine:
        parts = self.task.accumulation
        return build_engine(name, self.model, self.loss, parts, graphs=self._graphs)

    def time_engines(self) -> tuple[str, dict[str, float]]:
        """Return the name of the fastest engine for this rank's models, and the seconds of each."""
        engines = [self._build_engine(name) for name in self.task.engines]
        return fastest(engines, self.x_cd, self.buffers, self.source.batch(0, "local"))

    # -- gradients --------------------------------------------------------------------------------

    def gradients(
        self,
        t: int,
        rows_e: NDArray[np.int64] | None = None,
        on_rows_ready: Callable[[slice], None] | None = None,
    ) -> Tensor:
        """Compute g_i(x_i) on every client's batch of round t into `g_cd`; return the losses [c].

        With `rows_e`, only for the clients in these rows: the losses are theirs [e], and the other rows of
        `g_cd` stay unchanged. Without, `on_rows_ready` is called for rows as soon as their gradients are
        computed, while gradients and models are in the cache; it may change both.
        """
        with self.timer.span("gradients"):
            if rows_e is None:
                batch = self.source.batch(t, "local")
                return self._compute(self.x_cd, self.g_cd, self.buffers, batch, on_rows_ready)
            rows = to_device(rows_e, self.device)
            gradients_ed = self._scratch.rows("gradients", len(rows), self.x_cd.shape[1])
            points_ed = self._scratch.rows("points", *gradients_ed.shape)
            torch.index_select(self.x_cd, 0, rows, out=points_ed)
            buffers = self._taken_buffers(rows)
            batch = self.source.batch(t, "local", torch.from_numpy(rows_e))
            losses_e = self._compute(points_ed, gradients_ed, buffers, batch)
            self.g_cd[rows] = gradients_ed
            self.buffers.put(rows, buffers)
            return losses_e

    def gradients_at(
        self,
        points_ed: Tensor,
        rows_e: NDArray[np.int64],
        t: int,
        stream: str,
        *,
        in_place: bool = False,
    ) -> Tensor:
        """Return the gradients [e, d] at other points: at point k, of the client in row `rows_e[k]`.

        They are in scratch rows or, `in_place`, replace the points. BatchNorm normalizes with the batch,
        and the client's own statistics stay unchanged, since this is no training step.
        """
        with self.timer.span("midpoints"):
            gradients_ed = points_ed
            if not in_place:
                gradients_ed = self._scratch.rows("gradients", *points_ed.shape)
            buffers = self._taken_buffers(to_device(rows_e, self.device))
            batch = self.source.batch(t, stream, torch.from_numpy(rows_e))
            self._compute(points_ed, gradients_ed, buffers, batch)
            return gradients_ed

    def _taken_buffers(self, rows_e: Tensor) -> BufferRows:
        """Return a copy of the buffers in some rows, which lies where the last one did.

        CUDA graphs are recorded for addresses.
        """
        if len(self._copies) < len(rows_e):
            self._copies = self.buffers.empty(len(rows_e))
        taken = self._copies.first(len(rows_e))
        self.buffers.take(rows_e, taken)
        return taken

    def _compute(
        self,
        points_ed: Tensor,
        gradients_ed: Tensor,
        buffers: BufferRows,
        batch: Batch,
        on_rows_ready: Callable[[slice], None] | None = None,
    ) -> Tensor:
        """Compute gradients and skip bad ones; return the losses [e]."""
        before = [rows.clone() for rows in buffers.rows] if self.skips_bad else []

        def done(rows: slice, losses_e: Tensor) -> None:
            if self.skips_bad:
                bad_k = ~(losses_e[rows].isfinite() & gradients_ed[rows].isfinite().all(dim=1))
                if bad_k.any():
                    gradients_ed[rows][bad_k] = 0.0
                    for current, old in zip(buffers.rows, before, strict=True):
                        current[rows][bad_k] = old[rows][bad_k]
                    losses_e[rows][bad_k] = float("nan")
            if on_rows_ready is not None:
                with self.timer.span("other"):
                    on_rows_ready(rows)

        return self.engine.gradients(points_ed, gradients_ed, buffers, batch, done)

    @torch.no_grad()
    def losses_at(
        self, points_kd: Tensor, buffers_kd: Tensor, rows_e: NDArray[np.int64], t: int
    ) -> Tensor:
        """Return the losses [e, k] of k models on round t's local batches of the clients in `rows_e`.

        In evaluation mode, with the models' own buffers [k, b], which stay unchanged. float64, on the device.
        """
        batch = self.source.batch(t, "local", torch.from_numpy(rows_e))
        return self._losses(points_kd, buffers_kd, batch)

    @torch.no_grad()
    def validation_losses_at(
        self, points_kd: Tensor, buffers_kd: Tensor, t: int, batch_size: int
    ) -> Tensor:
        """Return the losses [c, k] of k models on round t's `batch_size` validation examples.

        As `losses_at`, for all clients, each on its own validation data.
        """
        if batch_size not in self._validation:
            self._validation = {batch_size: self.task.validation(self.ids, self.device, batch_size)}
        batch = self._validation[batch_size].batch(t, "validation")
        return self._losses(points_kd, buffers_kd, batch)

    def _losses(self, points_kd: Tensor, buffers_kd: Tensor, batch: Batch) -> Tensor:
        counters = {  # evaluation reads none of them, so those of any client serve
            name: counter[:1].expand(len(points_kd), *counter.shape[1:])
            for name, counter in self.counters.items()
        }
        buffers = self.buffer_layout.views(buffers_kd) | counters
        count = len(batch[0])
        if not count or not len(points_kd) or self.engine.name == OneByOne.name:
            return self._evaluator.losses(points_kd, buffers, batch)
        # As many forward passes at once as a round of gradients has, which need more memory.
        at_once = max(1, len(self.ids) // count)
        return self._evaluator.losses_together(points_kd, buffers, batch, at_once)

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

    def new_optimizer(self, rows_kd: Tensor) -> Optimizer:
        """Return an optimizer like the clients', for the models in other rows."""
        return build_optimizer(self._optimizer, rows_kd)

    def eta(self, t: int) -> float:
        """Return the step size of round t."""
        return step_size(self._optimizer, t, self._rounds)

    def direction(self, rows: slice = slice(None)) -> Tensor:
        """Return the local optimizer's direction [c, d] for the gradients in (some rows of) `g_cd`."""
        return self.optimizer.direction(self.g_cd[rows], rows)

    # -- evaluation and saved state -----------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, split: str, whole: bool = True) -> list[dict[str, float]]:
        """Return each client's mean metrics in evaluation mode, with the number of `examples`.

        On all its data of `split`, or on the task's fixed part of it.
        """
        sums = [
            self._evaluator.sums(self.x_cd[row], self._row_buffers(row), client, split, whole)
            for row, client in enumerate(self.ids)
        ]
        return self._evaluator.means(sums)

    def state_dict(self, row: int) -> dict[str, Tensor]:
        """Return one client's model by name, buffers included, on the CPU."""
        copies, wait = host_copies({**self.layout.views(self.x_cd[row]), **self._row_buffers(row)})
        wait()
        # Contiguous copies, since files store tensors in that order.
        return {
            name: tensor.clone(memory_format=torch.contiguous_format)
            for name, tensor in copies.items()
        }

    def client_state(self, row: int) -> dict[str, Tensor]:
        """Return all that one client keeps between rounds, by name: views, to save or to overwrite."""
        kept = {"model": self.layout.views(self.x_cd[row]), "buffer": self._row_buffers(row)}
        kept["optimizer"] = {name: rows[row] for name, rows in self.optimizer.state().items()}
        return {f"{kind}.{name}": v for kind, views in kept.items() for name, v in views.items()}

    def replace(self, ids: Iterable[int]) -> None:
        """Replace the clients of this rank by as many others.

        Clients that stay keep their state; the caller writes the others' state (`client_state`).
        """
        row_of = {client: row for row, client in enumerate(self.ids)}
        self.ids = tuple(int(client) for client in ids)
        rows = torch.tensor([row_of.get(client, 0) for client in self.ids], device=self.device)
        for tensor in (self.x_cd, *self.buffers.rows, *self.optimizer.state().values()):
            tensor.copy_(tensor[rows.to(tensor.device)])
        self.source = self.task.training(self.ids, self.device)
        self._validation = {}

    def _row_buffers(self, row: int) -> Buffers:
        return {name: buffer[row] for name, buffer in self.buffers.views().items()}
