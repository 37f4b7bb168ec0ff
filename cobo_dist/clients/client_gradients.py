"""Gradients of a rank's clients: on their own data, at their models or at other points, in local steps.

Shapes: c clients on this rank, d parameters, e points with a client each (such as midpoints), k of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from cobo_dist.clients.buffers import BufferRows
from cobo_dist.clients.client_rows import ClientRows
from cobo_dist.clients.engines import Batch, Engine
from cobo_dist.clients.learning_task import BatchSource, GraphedBatches, LearningTask
from cobo_dist.clients.local_config import LocalWorkConfig
from cobo_dist.clients.local_work import ALL, Batches, LocalSchedule, Rows, clip_rows
from cobo_dist.clients.optimizer_config import OptimizerConfig
from cobo_dist.clients.optimizers import Optimizer, build_optimizer, runs, step_size
from cobo_dist.clients.part_optimizers import Part, PartOptimizers
from cobo_dist.maths.flat import Scratch, to_device
from cobo_dist.maths.participation import Participation
from cobo_dist.phase_timer import PhaseTimer

Adjust = Callable[[Tensor, Tensor, Rows], None]
"""Changes gradients [k, d] at points [k, d] of the clients in some rows [k] of X, in place."""


class ClientGradients(ClientRows):
    """The clients of one rank, what they compute on their own data, and their optimizers."""

    engine: Engine
    _graphs: bool  # whether to record CUDA graphs

    def __init__(
        self,
        ids: Iterable[int],
        task: LearningTask,
        optimizer: OptimizerConfig,
        dtype: torch.dtype,
        device: torch.device,
        own_starts: bool,
        rounds: int,
        skips_bad: bool,
        local: LocalWorkConfig,
        participation: Participation | None,
        timer: PhaseTimer,
    ) -> None:
        """See `ClientBatch`."""
        super().__init__(ids, task, dtype, device, own_starts)
        self.skips_bad, self.timer = skips_bad, timer
        self.optimizer: Optimizer = build_optimizer(optimizer, self.x_cd)
        self.lr, self._optimizer, self._rounds = optimizer.lr, optimizer, rounds
        self.local, self.several_steps = local, local.several_steps
        every = len(task.train_sizes())
        self.participation = participation or Participation(0, every, every)
        self._computed: Rows | None = None  # rows of the last `gradients`; None: all
        self._resting: tuple[Part, ...] = ()  # parts of X that are not trained now
        self._scratch, self._copies = Scratch(dtype, device), self.buffers.empty(0)
        self._open_source()

    def _open_source(self) -> None:
        self.source: BatchSource = self._graphed(self.task.training(self.ids, self.device))
        sizes_n = self.task.train_sizes()
        sizes_c = [sizes_n[client] for client in self.ids]
        self._schedule = LocalSchedule(self.local, sizes_c, self.task.batch_size)

    def _graphed(self, source: BatchSource) -> BatchSource:
        if self._graphs and isinstance(source, GraphedBatches):
            source.use_graphs()
        return source

    def separate(self, *parts: Part) -> None:
        """Give parts that are all of X together an optimizer each, so that one may train while others rest.

        Parts that are separate already keep their state: an algorithm is built anew where clients move.
        """
        if not isinstance(self.optimizer, PartOptimizers) or self.optimizer.parts != parts:
            self.optimizer = PartOptimizers(self._optimizer, self.x_cd, parts)

    def new_optimizer(self, rows_kd: Tensor) -> Optimizer:
        """Return an optimizer like the clients', for the models in other rows."""
        return build_optimizer(self._optimizer, rows_kd)

    @property
    def local_steps_c(self) -> Rows:
        """Local steps of each client in a round in which it takes part."""
        return self._schedule.counts_c

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

    # -- gradients --------------------------------------------------------------------------------

    def gradients(
        self,
        t: int,
        rows_e: Rows | None = None,
        on_rows_ready: Callable[[slice], None] | None = None,
        adjust: Adjust | None = None,
        *,
        only: Part | None = None,
        work: slice = ALL,
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
        `only`: train this one of the parts that `separate` named; the others rest. `work`: which of the local
        steps, or epochs, to do; the others are left to further calls in the round.
        """
        with self.timer.span("gradients"):
            self._let_rest(only)
            taking_part_c = None
            if rows_e is None and self.participation.is_partial:
                taking_part_c = self.participation(t)[list(self.ids)]
                rows_e = np.flatnonzero(taking_part_c)
            self._computed = rows_e
            if rows_e is None and not self.several_steps:
                batch = self.source.batch(t, "local")
                return self._compute(
                    self.x_cd, self.g_cd, self.buffers, batch, None, on_rows_ready, adjust
                ).clone()  # which the engine's next losses may overwrite
            rows_e = np.arange(len(self.ids)) if rows_e is None else rows_e
            rows = to_device(rows_e, self.device)
            points_ed = self._scratch.rows("points", len(rows), self.x_cd.shape[1])
            torch.index_select(self.x_cd, 0, rows, out=points_ed)
            if self.several_steps:
                gradients_ed = self._scratch.rows("sums", *points_ed.shape)
                losses_e = self._work(t, rows_e, points_ed, gradients_ed, True, adjust, work)
            else:
                gradients_ed = self._scratch.rows("gradients", *points_ed.shape)
                batches = Batches(t, None, None)
                losses_e = self._pass(
                    points_ed, gradients_ed, rows_e, batches, True, adjust
                ).clone()
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

    def _let_rest(self, only: Part | None) -> None:
        """Let the parts of X rest that are not to be trained; None: none rests."""
        self._resting = ()
        if isinstance(self.optimizer, PartOptimizers):
            self.optimizer.train_only(only)
            self._resting = self.optimizer.resting

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
        self._resting = ()
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
        work: slice = ALL,
    ) -> Tensor:
        """Take round t's local steps from the points, in place, and write the sums of directions.

        `own`: the points are the clients' models, whose optimizer and buffers change; otherwise a direction
        is the gradient. Returns the mean losses [e] over the steps of each client.
        """
        eta = self.eta(t)
        losses_e, steps_e = (points_ed.new_zeros(len(rows_e)) for _ in range(2))
        sums_ed.zero_()
        for batches in self._schedule.steps(t, rows_e, work):
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
        """Compute gradients of the clients in `rows_e` (None: all), skip bad ones, clip and adjust them.

        Returns the losses [e].
        """
        before = [rows.clone() for rows in buffers.rows] if self.skips_bad else []

        def done(rows: slice, losses_e: Tensor) -> None:
            if self.skips_bad:
                # Without asking whether any is bad, for which the host would wait for a GPU.
                bad_k = ~(losses_e[rows].isfinite() & gradients_ed[rows].isfinite().all(dim=1))
                bad_k1 = bad_k[:, None]
                gradients_ed[rows].masked_fill_(bad_k1, 0.0)
                for current, old in zip(buffers.rows, before, strict=True):
                    current[rows] = torch.where(bad_k1, old[rows], current[rows])
                losses_e[rows].masked_fill_(bad_k, float("nan"))
            for part in self._resting:
                part.fill(gradients_ed[rows], 0.0)
            if clips and self.local.clip_norm:
                clip_rows(gradients_ed[rows], self.local.clip_norm)
            if adjust is not None:  # what is added is no gradient of the client's, and not clipped
                own_k = np.arange(len(points_ed)) if rows_e is None else rows_e
                adjust(points_ed[rows], gradients_ed[rows], own_k[rows])
            if on_rows_ready is not None:
                with self.timer.span("other"):
                    on_rows_ready(rows)

        return self.engine.gradients(points_ed, gradients_ed, buffers, batch, done)
