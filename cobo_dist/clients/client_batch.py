"""This rank's clients.

Shapes: c clients here, d parameters, e models at points that are not the clients' own (midpoints).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cobo_dist.clients.engines import (
    ENGINES,
    Batch,
    Engine,
    OneByOne,
    fastest,
    parts_of,
    state_buffers,
    trained,
)
from cobo_dist.clients.optimizers import Optimizer, OptimizerConfig, build_optimizer, step_size
from cobo_dist.maths.flat import Layout, Scratch, empty_rows
from cobo_dist.phase_timer import PhaseTimer

Result = TypeVar("Result")


class BatchSource(Protocol):
    """Training batches of this rank's clients."""

    def batch(self, t: int, stream: str, rows: Tensor | None = None) -> Batch:
        """Return the batch of round t for all clients [c, ...] or for `rows` [e, ...] of them.

        `stream` names an independent reading of the data: "local" or "midpoint"; of validation data
        there is one, "validation".
        """


class LearningTask(Protocol):
    """What the clients need to know of a task."""

    engines: tuple[str, ...]  # which engines can compute its gradients
    accumulation: int  # parts that a training batch is taken in, to need less memory

    def model(self) -> nn.Module:
        """Return the module that serves all clients. Parameters that need no gradient are their base.

        A task may return the same module again: its trained parameters are then views of some row.
        """

    def start(self, variant: int = 0) -> dict[str, Tensor]:
        """Return the trained parameters of x^0, or of another start (variant 1, 2, ...).

        They are computed anew and come from no module in use.
        """

    def loss(self, model: nn.Module, *batch: Tensor) -> Tensor:
        """Return the mean loss of one client's batch."""

    def score(self, model: nn.Module, *batch: Tensor) -> dict[str, Tensor]:
        """Return sums over one evaluation batch, from which `means` makes the metrics."""

    def means(self, sums: Mapping[str, float], examples: int) -> dict[str, float]:
        """Return one client's metrics from the sums over so many examples."""

    def training(self, clients: Sequence[int], device: torch.device) -> BatchSource:
        """Return the training batches of these clients."""

    def validation(
        self, clients: Sequence[int], device: torch.device, batch_size: int
    ) -> BatchSource:
        """Return batches of these clients' validation data, stream "validation", for training to use.

        Only asked for where `splits` has validation.
        """

    def evaluation(
        self, client: int, split: str, device: torch.device, whole: bool = True
    ) -> Iterable[tuple[int, Batch]]:
        """Return (number of examples, batch) over one client's split, or over a fixed part of it."""


class ClientBatch:
    """Models as rows, and what they do on their own data."""

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
        timer: PhaseTimer | None = None,
    ) -> None:
        """Start the clients `ids` at x^0, or each at a start of its own.

        `rounds`: how long the run is, for the schedule of the step size.
        `skips_bad`: a gradient with NaN or infinities, or of such a loss, counts as 0, BatchNorm's
        statistics stay as they were before it, and its loss is NaN.
        `autocast`: the type that PyTorch's autocast computes matrix products and convolutions in;
        models, gradients and sums stay in `dtype`.
        """
        self.ids = tuple(int(client) for client in ids)
        self.task, self.device = task, device
        self.model = task.model().to(device=device, dtype=dtype)
        self.layout = Layout.of(trained(self.model))
        frozen = [one.numel() for one in self.model.parameters() if not one.requires_grad]
        self.frozen = sum(frozen)  # parameters of the base, the same for all clients
        floating = [(n, b) for n, b in state_buffers(self.model) if b.is_floating_point()]
        self.buffer_layout = Layout.of(floating)
        count = len(self.ids)
        self.x_cd = empty_rows(count, self.layout.size, dtype=dtype, device=device)
        self.g_cd = empty_rows(count, self.layout.size, dtype=dtype, device=device)
        self.b_cd = empty_rows(count, self.buffer_layout.size, dtype=dtype, device=device)
        self.skips_bad = skips_bad
        self.timer = timer or PhaseTimer.off()
        self.loss = _autocast(task.loss, device, autocast)
        self.score = _autocast(task.score, device, autocast)
        self._start_all(floating, own_starts)
        self.optimizer: Optimizer = build_optimizer(optimizer, self.x_cd)
        self.lr, self._optimizer, self._rounds = optimizer.lr, optimizer, rounds
        self.source = task.training(self.ids, device)
        self._validation: dict[int, BatchSource] = {}  # by batch size, opened when first needed
        self.engine: Engine = OneByOne(self.model, self.loss, task.accumulation)
        self._loader = OneByOne(self.model, self.loss)
        self._scratch = Scratch(dtype, device)

    def _start_all(self, floating: Iterable[tuple[str, Tensor]], own_starts: bool) -> None:
        """Give every client the common start x^0, or one of its own, and the module's buffers."""
        if own_starts:
            for row, client in enumerate(self.ids):
                self._write_start(client + 1, self.x_cd[row])
        else:
            self.x_cd.copy_(self.start_rows(1))
        # A copy: the module's own buffers become views of whichever client is loaded.
        self._start_1b = empty_rows(
            1, self.buffer_layout.size, dtype=self.x_cd.dtype, device=self.device
        )
        views = self.buffer_layout.views(self._start_1b[0])
        for name, buffer in floating:
            views[name].copy_(buffer)
        self.b_cd.copy_(self._start_1b)
        self.g_cd.zero_()
        # Counters (BatchNorm's num_batches_tracked) are whole numbers and never leave their client.
        self.counters = {
            name: buffer.expand(len(self.ids), *buffer.shape).clone()
            for name, buffer in state_buffers(self.model)
            if not buffer.is_floating_point()
        }

    # -- engines ----------------------------------------------------------------------------------

    def use_engine(self, name: str) -> None:
        """Compute gradients with the engine `name` from now on."""
        self.engine = ENGINES[name](self.model, self.loss, self.task.accumulation)

    def time_engines(self) -> tuple[str, dict[str, float]]:
        """Return the fastest engine on this rank's models, and the seconds of each."""
        parts = self.task.accumulation
        engines = [ENGINES[name](self.model, self.loss, parts) for name in self.task.engines]
        return fastest(engines, self.x_cd, self._buffers(), self.source.batch(0, "local"))

    # -- gradients --------------------------------------------------------------------------------

    def gradients(
        self,
        t: int,
        rows_e: NDArray[np.int64] | None = None,
        on_rows_ready: Callable[[slice], None] | None = None,
    ) -> Tensor:
        """Compute g_i(x_i) on every client's batch of round t into `g_cd`; return the losses [c].

        With `rows_e` only for the clients in these rows: the losses are theirs [e], and the other rows
        of `g_cd` stay as they are. Without, `then` is called for rows whose gradients are there, while
        both they and the models are near; it may change them.
        """
        with self.timer.span("gradients"):
            return self._gradients(t, rows_e, on_rows_ready)

    def _gradients(
        self,
        t: int,
        rows_e: NDArray[np.int64] | None,
        on_rows_ready: Callable[[slice], None] | None,
    ) -> Tensor:
        if rows_e is None:
            batch = self.source.batch(t, "local")
            return self._compute(self.x_cd, self.g_cd, self._buffers(), batch, on_rows_ready)
        rows, held = torch.from_numpy(rows_e).to(self.device), self._buffers()
        gradients_ed = self._scratch.rows("gradients", len(rows), self.x_cd.shape[1])
        buffers = {name: buffer[rows] for name, buffer in held.items()}
        batch = self.source.batch(t, "local", rows)
        losses_e = self._compute(self.x_cd[rows], gradients_ed, buffers, batch)
        self.g_cd[rows] = gradients_ed
        for name, buffer in held.items():
            buffer[rows] = buffers[name]
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
        """Return g_i at foreign points [e, d]: point k on the data of the client in row `rows_e[k]`.

        They lie in scratch rows or, `in_place`, where the points were. BatchNorm normalises with the
        batch, and the client's own statistics stay as they are: a visit to a midpoint is no training step.
        """
        with self.timer.span("midpoints"):
            rows = torch.from_numpy(rows_e).to(self.device)
            gradients_ed = points_ed
            if not in_place:
                gradients_ed = self._scratch.rows("gradients", *points_ed.shape)
            buffers = {name: held[rows] for name, held in self._buffers().items()}  # copies
            self._compute(points_ed, gradients_ed, buffers, self.source.batch(t, stream, rows))
            return gradients_ed

    def _compute(
        self,
        points_ed: Tensor,
        gradients_ed: Tensor,
        buffers: dict[str, Tensor],
        batch: Batch,
        on_rows_ready: Callable[[slice], None] | None = None,
    ) -> Tensor:
        """Let the engine write gradients; return the losses [e]."""
        before = {name: held.clone() for name, held in buffers.items() if self.skips_bad}

        def done(rows: slice, losses_e: Tensor) -> None:
            if self.skips_bad:
                bad_k = ~(losses_e[rows].isfinite() & gradients_ed[rows].isfinite().all(dim=1))
                if bad_k.any():
                    gradients_ed[rows][bad_k] = 0.0
                    for name, held in buffers.items():
                        held[rows][bad_k] = before[name][rows][bad_k]
                    losses_e[rows][bad_k] = float("nan")
            if on_rows_ready is not None:
                with self.timer.span("other"):
                    on_rows_ready(rows)

        return self.engine.gradients(points_ed, gradients_ed, buffers, batch, done)

    @torch.no_grad()
    def losses_at(
        self, points_kd: Tensor, buffers_kd: Tensor, rows_e: NDArray[np.int64], t: int
    ) -> NDArray[np.float64]:
        """Return the losses [e, k] of k models on round t's local batches of the clients in `rows_e`.

        In evaluation mode, with the models' own buffers [k, b]; nothing moves.
        """
        batch = self.source.batch(t, "local", torch.from_numpy(rows_e).to(self.device))
        return self._losses(points_kd, buffers_kd, rows_e, batch)

    @torch.no_grad()
    def validation_losses_at(
        self, points_kd: Tensor, buffers_kd: Tensor, t: int, batch_size: int
    ) -> NDArray[np.float64]:
        """Return the losses [c, k] of k models on round t's `batch_size` validation examples.

        As `losses_at`, for all clients, each on its own validation data.
        """
        if batch_size not in self._validation:
            source = self.task.validation(self.ids, self.device, batch_size)
            self._validation = {batch_size: source}
        batch = self._validation[batch_size].batch(t, "validation")
        return self._losses(points_kd, buffers_kd, np.arange(len(self.ids)), batch)

    def _losses(
        self, points_kd: Tensor, buffers_kd: Tensor, rows_e: NDArray[np.int64], batch: Batch
    ) -> NDArray[np.float64]:
        """Return the losses [e, k] of models on the batch [e, ...] of the clients in `rows_e`."""
        losses_ek = torch.empty(len(rows_e), len(points_kd), dtype=torch.float64)
        for k, point_d in enumerate(points_kd):
            for end, row in enumerate(rows_e):
                counters = {name: held[row] for name, held in self.counters.items()}
                buffers = {**self.buffer_layout.views(buffers_kd[k]), **counters}
                model = self._loader.load(point_d, buffers).eval()
                own = tuple(tensor[end] for tensor in batch)
                parts = parts_of(own, self.task.accumulation)
                losses = [self.loss(model, *part) for part in parts]
                losses_ek[end, k] = sum(losses) / len(losses)
        return losses_ek.numpy()

    def start_rows(self, count: int) -> Tensor:
        """Return starting models [count, d]: the first is x^0, the others have seeds of their own."""
        rows_kd = empty_rows(count, self.layout.size, dtype=self.x_cd.dtype, device=self.device)
        for variant, row_d in enumerate(rows_kd):
            self._write_start(variant, row_d)
        return rows_kd

    def _write_start(self, variant: int, row_d: Tensor) -> None:
        start = self.task.start(variant)
        for name, view in self.layout.views(row_d).items():
            view.copy_(start[name])

    def start_buffers(self, count: int) -> Tensor:
        """Return the floating buffers [count, b] of starting models."""
        rows_kb = empty_rows(
            count, self.buffer_layout.size, dtype=self.x_cd.dtype, device=self.device
        )
        return rows_kb.copy_(self._start_1b)

    def new_optimizer(self, rows_kd: Tensor) -> Optimizer:
        """Return an optimizer as the clients', for the models in other rows."""
        return build_optimizer(self._optimizer, rows_kd)

    def eta(self, t: int) -> float:
        """Return the step size of round t."""
        return step_size(self._optimizer, t, self._rounds)

    def direction(self, rows: slice = slice(None)) -> Tensor:
        """Return the local optimizer's direction [c, d] for the gradients in (some rows of) `g_cd`."""
        return self.optimizer.direction(self.g_cd[rows], rows)

    # -- evaluation and what is kept ----------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, split: str, whole: bool = True) -> list[dict[str, float]]:
        """Return each client's mean metrics in evaluation mode, and on how many `examples`.

        On all its data of `split`, or on the task's fixed part of it.
        """
        results = []
        for row, client in enumerate(self.ids):
            model = self._loader.load(self.x_cd[row], self._row_buffers(row)).eval()
            sums: dict[str, Tensor] = {}
            count = 0
            for examples, batch in self.task.evaluation(client, split, self.device, whole):
                count += examples
                for name, value in self.score(model, *batch).items():
                    sums[name] = sums[name] + value if name in sums else value
            means = self.task.means({name: float(value) for name, value in sums.items()}, count)
            results.append(means | {"examples": count})
        return results

    def state_dict(self, row: int) -> dict[str, Tensor]:
        """Return one client's model by name, buffers included, on the CPU."""
        named = {**self.layout.views(self.x_cd[row]), **self._row_buffers(row)}
        # A fresh copy of each in the plain order, which is how files keep tensors.
        return {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in named.items()
        }

    def client_state(self, row: int) -> dict[str, Tensor]:
        """Return all that one client keeps between rounds, by name: views, to save or to fill in place."""
        kept = {"model": self.layout.views(self.x_cd[row]), "buffer": self._row_buffers(row)}
        kept["optimizer"] = {name: held[row] for name, held in self.optimizer.state().items()}
        return {f"{kind}.{name}": v for kind, views in kept.items() for name, v in views.items()}

    def replace(self, ids: Iterable[int]) -> None:
        """Be other clients from now on, as many as before.

        Who was here before keeps all that it has; the rows of the others are to be filled (`memory`).
        """
        row_of = {client: row for row, client in enumerate(self.ids)}
        self.ids = tuple(int(client) for client in ids)
        rows = torch.tensor([row_of.get(client, 0) for client in self.ids], device=self.device)
        kept = (*self.counters.values(), *self.optimizer.state().values())
        for held in (self.x_cd, self.b_cd, *kept):
            held.copy_(held[rows.to(held.device)])
        self.source = self.task.training(self.ids, self.device)
        self._validation = {}

    def _buffers(self) -> dict[str, Tensor]:
        return {**self.buffer_layout.batched_views(self.b_cd), **self.counters}

    def _row_buffers(self, row: int) -> dict[str, Tensor]:
        return {name: held[row] for name, held in self._buffers().items()}


def _autocast(
    function: Callable[..., Result], device: torch.device, dtype: torch.dtype | None
) -> Callable[..., Result]:
    """Return the function, computed under autocast if a type is given.

    Autocast is entered anew for every call: it caches parameters it has cast, and between calls the
    same parameter becomes a view of another client's row.
    """
    if dtype is None:
        return function

    @wraps(function)
    def cast(*args: object) -> Result:
        with torch.autocast(device.type, dtype):
            return function(*args)

    return cast
