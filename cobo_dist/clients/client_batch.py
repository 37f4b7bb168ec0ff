"""The clients of one rank: their models as rows, and what they compute on their own data.

Shapes: c clients on this rank, d parameters, b floating-point buffers, e points with a client each (such as
midpoints), k models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cobo_dist.clients.buffers import BufferRows, Buffers, integer_rows, state_buffers
from cobo_dist.clients.engine_choice import build_engine, fastest
from cobo_dist.clients.engines import Batch, Engine, OneByOne, trained, with_autocast
from cobo_dist.clients.evaluation import Evaluator
from cobo_dist.clients.graphs import GraphedPasses
from cobo_dist.clients.learning_task import BatchSource, GraphedBatches, LearningTask
from cobo_dist.clients.local_config import LocalWorkConfig
from cobo_dist.clients.local_work import Batches, LocalSchedule, Rows, clip_rows
from cobo_dist.clients.optimizer_config import OptimizerConfig
from cobo_dist.clients.optimizers import Optimizer, build_optimizer, runs, step_size
from cobo_dist.clients.vectorized import Vectorized
from cobo_dist.maths.flat import Layout, Scratch, empty_rows, to_device
from cobo_dist.maths.host_copy import host_copies
from cobo_dist.maths.participation import Participation
from cobo_dist.phase_timer import PhaseTimer

Adjust = Callable[[Tensor, Tensor, Rows], None]
"""Changes gradients [k, d] at points [k, d] of the clients in some rows [k] of X, in place."""


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
        local: LocalWorkConfig | None = None,
        participation: Participation | None = None,
        timer: PhaseTimer | None = None,
    ) -> None:
        """Start the clients `ids` at x^0, with models, gradients and sums of `dtype`.

        `autocast`: the type in which PyTorch's autocast computes matrix products and convolutions.
        `own_starts`: start each client at its own random model instead.
        `rounds`: the length of the run, for the schedule of the step size.
        `skips_bad`: replace a gradient that is not finite, or whose loss is not, by 0, set the loss to NaN
        and undo the update of BatchNorm's statistics.
        `graphs`: on a GPU, record passes as CUDA graphs where the task allows it.
        `local`: the local work of a round; None: one step.
        `participation`: which clients take part in a round; None: all.
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
        self.local = local or LocalWorkConfig()
        every = len(task.train_sizes())
        self.participation = participation or Participation(0, every, every)
        self.several_steps = self.local.several_steps
        self._graphs = graphs and device.type == "cuda" and task.loss_is_pure
        self._open_source()
        self._computed: Rows | None = None  # rows of the last `gradients`; None: all
        self._validation: dict[int, BatchSource] = {}  # by batch size, opened when first needed
        self.engine = self._build_engine(OneByOne.name)
        self._loader = OneByOne(self.model, self.loss)
        self._evaluator = Evaluator(
            task, self._loader, with_autocast(task.score, device, autocast), device
        )
        self._scratch, self._copies = Scratch(dtype, device), self.buffers.empty(0)

    def _open_source(self) -> None:
        self.source: BatchSource = self._graphed(self.task.training(self.ids, self.device))
        sizes_n = self.task.train_sizes()
        sizes_c = [sizes_n[client] for client in self.ids]
        self._schedule = LocalSchedule(self.local, sizes_c, self.task.batch_size)

    def _graphed(self, source: BatchSource) -> BatchSource:
        if self._graphs and isinstance(source, GraphedBatches):
            source.use_graphs()
        return source

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
        rows_e: Rows | None = None,
        on_rows_ready: Callable[[slice], None] | None = None,
        adjust: Adjust | None = None,
    ) -> Tensor:
        """Compute g_i(x_i) on the batch of round t of clients that take part into `g_cd`; return the losses.

        They are [c], and NaN for clients that do not take part, whose `direction` is 0.

        With several local steps, a client takes them from x_i on a copy, and `g_cd` holds the sum of its
        optimizer's directions: x_i - eta times it is the model after its local work. The loss is then the
        mean over the steps.

        With `rows_e`, only for the clients in these rows, ascending: the losses are theirs [e], and the
        other rows of `g_cd` stay unchanged. `on_rows_ready` is called for rows as soon as their gradients
        are computed, while gradients and models are in the cache; it may change both.
        `adjust(points, gradients, rows)` may change the gradients [k, d] of the clients in `rows` [k] in
        every local step, for example by a pull towards another model.
        """
        with self.timer.span("gradients"):
            taking_part_c = None
            if rows_e is None and self.participation.is_partial:
                taking_part_c = self.participation(t)[list(self.ids)]
                rows_e = np.flatnonzero(taking_part_c)
            self._computed = rows_e
            if rows_e is None and not self.several_steps:
                batch = self.source.batch(t, "local")
                return self._compute(
                    self.x_cd, self.g_cd, self.buffers, batch, None, on_rows_ready, adjust
                )
            rows_e = np.arange(len(self.ids)) if rows_e is None else rows_e
            rows = to_device(rows_e, self.device)
            points_ed = self._scratch.rows("points", len(rows), self.x_cd.shape[1])
            torch.index_select(self.x_cd, 0, rows, out=points_ed)
            if self.several_steps:
                gradients_ed = self._scratch.rows("sums", *points_ed.shape)
                losses_e = self._work(t, rows_e, points_ed, gradients_ed, True, adjust)
            else:
                gradients_ed = self._scratch.rows("gradients", *points_ed.shape)
                batches = Batches(t, None, None)
                losses_e = self._pass(points_ed, gradients_ed, rows_e, batches, True, adjust)
            self.g_cd[rows] = gradients_ed
            if on_rows_ready is not None:
                with self.timer.span("other"):
                    for run in runs(rows_e.tolist(), step=1):
                        on_rows_ready(slice(int(rows_e[run.start]), int(rows_e[run.stop - 1]) + 1))
            if taking_part_c is None:
                return losses_e
            losses_c = self.x_cd.new_full((len(self.ids),), float("nan"))
            losses_c[rows] = losses_e
            return losses_c

    def gradients_at(
        self,
        points_ed: Tensor,
        rows_e: Rows,
        t: int,
        stream: str,
        *,
        in_place: bool = False,
        local_work: bool = False,
    ) -> Tensor:
        """Return the gradients [e, d] at other points: at point k, of the client in row `rows_e[k]`.

        They are in scratch rows or, `in_place`, replace the points. BatchNorm normalizes with the batch,
        and the client's own statistics stay unchanged, since this is no training step of its model.
        Stream "local" is the batch of the first local step. `local_work`: they train a model. So they are
        clipped, and with several local steps each is the sum of the gradients along plain gradient steps
        from its point; rows are then ascending.
        """
        with self.timer.span("midpoints"):
            if local_work and self.several_steps:
                now_ed, sums_ed = (
                    self._scratch.rows(name, *points_ed.shape) for name in ("points", "sums")
                )
                now_ed.copy_(points_ed)
                self._work(t, rows_e, now_ed, sums_ed, False)
                return sums_ed
            gradients_ed = points_ed
            if not in_place:
                gradients_ed = self._scratch.rows("gradients", *points_ed.shape)
            groups = [Batches(t, None, None)]
            if stream == "local":
                groups = self._schedule.first(t, rows_e)
            for batches in groups:
                clip = local_work
                if batches.at is None:
                    self._pass(points_ed, gradients_ed, rows_e, batches, False, None, stream, clip)
                    continue
                out_kd = self._some(points_ed, batches.at)
                self._pass(out_kd, out_kd, rows_e[batches.at], batches, False, None, stream, clip)
                gradients_ed[to_device(batches.at, self.device)] = out_kd
            return gradients_ed

    def _work(
        self,
        t: int,
        rows_e: Rows,
        points_ed: Tensor,
        sums_ed: Tensor,
        own: bool,
        adjust: Adjust | None = None,
    ) -> Tensor:
        """Take round t's local steps from the points, in place, and write the sums of directions.

        `own`: the points are the clients' models, whose optimizer and buffers change; otherwise a direction
        is the gradient. Returns the mean losses [e] over the steps of each client.
        """
        eta = self.eta(t)
        losses_e, steps_e = (points_ed.new_zeros(len(rows_e)) for _ in range(2))
        sums_ed.zero_()
        for batches in self._schedule.steps(t, rows_e):
            at_k = np.arange(len(rows_e)) if batches.at is None else batches.at
            rows_k, here = rows_e[at_k], to_device(at_k, self.device)
            points_kd = points_ed if batches.at is None else self._some(points_ed, batches.at)
            gradients_kd = self._scratch.rows("gradients", *points_kd.shape)
            losses_k = self._pass(points_kd, gradients_kd, rows_k, batches, own, adjust)
            losses_e[here] += losses_k
            steps_e[here] += 1.0
            for run in runs(rows_k.tolist(), step=1):  # an optimizer's state is in rows of X
                direction_kd = gradients_kd[run]
                if own:
                    rows = slice(int(rows_k[run.start]), int(rows_k[run.stop - 1]) + 1)
                    direction_kd = self.optimizer.direction(direction_kd, rows, points_kd[run])
                places = slice(int(at_k[run.start]), int(at_k[run.stop - 1]) + 1)
                points_ed[places].add_(direction_kd, alpha=-eta)
                sums_ed[places].add_(direction_kd)
        return losses_e / steps_e

    def _some(self, points_ed: Tensor, at_k: Rows) -> Tensor:
        """Return a copy of some points, which lies where the last one did."""
        points_kd = self._scratch.rows("some points", len(at_k), points_ed.shape[1])
        torch.index_select(points_ed, 0, to_device(at_k, self.device), out=points_kd)
        return points_kd

    def _pass(
        self,
        points_kd: Tensor,
        gradients_kd: Tensor,
        rows_k: Rows,
        batches: Batches,
        own: bool,
        adjust: Adjust | None = None,
        stream: str = "local",
        clips: bool = True,
    ) -> Tensor:
        """Compute gradients of some clients; return their losses [k]. `own`: their buffers change."""
        rows = to_device(rows_k, self.device)
        buffers = self._taken_buffers(rows)
        batch = self.source.batch(batches.number, stream, torch.from_numpy(rows_k), batches.part)
        losses_k = self._compute(
            points_kd, gradients_kd, buffers, batch, rows_k, adjust=adjust, clips=clips
        )
        if own:
            self.buffers.put(rows, buffers)
        return losses_k

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
        rows_e: Rows | None,
        on_rows_ready: Callable[[slice], None] | None = None,
        adjust: Adjust | None = None,
        clips: bool = True,
    ) -> Tensor:
        """Compute gradients of the clients in `rows_e` (None: all), skip bad ones, adjust and clip them.

        Returns the losses [e].
        """
        before = [rows.clone() for rows in buffers.rows] if self.skips_bad else []

        def done(rows: slice, losses_e: Tensor) -> None:
            if self.skips_bad:
                bad_k = ~(losses_e[rows].isfinite() & gradients_ed[rows].isfinite().all(dim=1))
                if bad_k.any():
                    gradients_ed[rows][bad_k] = 0.0
                    for current, old in zip(buffers.rows, before, strict=True):
                        current[rows][bad_k] = old[rows][bad_k]
                    losses_e[rows][bad_k] = float("nan")
            if adjust is not None:
                own_k = np.arange(len(points_ed)) if rows_e is None else rows_e
                adjust(points_ed[rows], gradients_ed[rows], own_k[rows])
            if clips and self.local.clip_norm:
                clip_rows(gradients_ed[rows], self.local.clip_norm)
            if on_rows_ready is not None:
                with self.timer.span("other"):
                    on_rows_ready(rows)

        return self.engine.gradients(points_ed, gradients_ed, buffers, batch, done)

    @torch.no_grad()
    def losses_at(self, points_kd: Tensor, buffers_kd: Tensor, rows_e: Rows, t: int) -> Tensor:
        """Return the losses [e, k] of k models on round t's first local batches of the clients in `rows_e`.

        In evaluation mode, with the models' own buffers [k, b], which stay unchanged. float64, on the device.
        """
        losses_ek = torch.empty(
            len(rows_e), len(points_kd), dtype=torch.float64, device=self.device
        )
        for number, part, at in self._schedule.first(t, rows_e):
            rows_k = torch.from_numpy(rows_e if at is None else rows_e[at])
            losses = self._losses(
                points_kd, buffers_kd, self.source.batch(number, "local", rows_k, part)
            )
            if at is None:
                return losses
            losses_ek[to_device(at, self.device)] = losses
        return losses_ek

    @torch.no_grad()
    def validation_losses_at(
        self,
        points_kd: Tensor,
        buffers_kd: Tensor,
        t: int,
        batch_size: int,
        rows_e: Rows | None = None,
    ) -> Tensor:
        """Return the losses [c, k] of k models on round t's `batch_size` validation examples.

        As `losses_at`, for all clients or those in `rows_e` [e, k], each on its own validation data.
        """
        if batch_size not in self._validation:
            source = self.task.validation(self.ids, self.device, batch_size)
            self._validation = {batch_size: self._graphed(source)}
        batch = self._validation[batch_size].batch(
            t, "validation", None if rows_e is None else torch.from_numpy(rows_e)
        )
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
        # As many forward passes at once as a pass for gradients has, which needs more memory.
        most = self.engine.most_at_once if isinstance(self.engine, Vectorized) else None
        at_once = max(1, min(len(self.ids), most or len(self.ids)) // count)
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
        """Return the local optimizer's direction [c, d] for the gradients in (some rows of) `g_cd`.

        It is 0 for clients that `gradients` left out. With several local steps it is their sum, in `g_cd`.
        """
        if self._computed is None and not self.several_steps:
            return self.optimizer.direction(self.g_cd[rows], rows)
        if self._computed is None:
            return self.g_cd[rows]
        left_out = np.ones(len(self.ids), dtype=bool)
        left_out[self._computed] = False
        numbers = np.arange(len(self.ids))[rows]
        self.g_cd[to_device(numbers[left_out[numbers]], self.device)] = 0.0
        computed = numbers[~left_out[numbers]]
        for run in [] if self.several_steps else runs(computed.tolist(), step=1):
            own = slice(int(computed[run.start]), int(computed[run.stop - 1]) + 1)
            self.g_cd[own] = self.optimizer.direction(self.g_cd[own], own)
        return self.g_cd[rows]

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
        self._open_source()
        self._validation = {}

    def _row_buffers(self, row: int) -> Buffers:
        return {name: buffer[row] for name, buffer in self.buffers.views().items()}
