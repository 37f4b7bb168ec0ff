"""The clients of one rank: their models as rows, and what they compute on their own data.

Shapes: c clients on this rank, d parameters, b floating-point buffers, e points with a client each (such as
midpoints), k models.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cobo_dist.clients.client_gradients import ClientGradients
from cobo_dist.clients.engine_choice import build_engine, fastest
from cobo_dist.clients.engines import Batch, Engine, OneByOne, with_autocast
from cobo_dist.clients.evaluation import Evaluator
from cobo_dist.clients.graphs import GraphedPasses
from cobo_dist.clients.kept_models import KeptModels
from cobo_dist.clients.learning_task import BatchSource, LearningTask
from cobo_dist.clients.local_config import LocalWorkConfig
from cobo_dist.clients.local_steps import LocalSteps
from cobo_dist.clients.local_work import Batches, Rows
from cobo_dist.clients.optimizer_config import OptimizerConfig
from cobo_dist.clients.signatures import InputSignatures, PredictionLayout, PredictionSignatures
from cobo_dist.clients.vectorized import Vectorized
from cobo_dist.maths.flat import to_device
from cobo_dist.maths.participation import Participation
from cobo_dist.maths.subspaces import Angle
from cobo_dist.phase_timer import PhaseTimer


class ClientBatch(ClientGradients):
    """The clients `ids` of one rank in the rows of `x_cd`: gradients, evaluation, and what is saved."""

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
        self._graphs = graphs and device.type == "cuda" and task.loss_is_pure
        super().__init__(
            ids, task, optimizer, dtype, device, own_starts, rounds, skips_bad,
            local or LocalWorkConfig(), participation, timer or PhaseTimer.off(),
        )  # fmt: skip
        self.kept: KeptModels | None = None  # models that the run leaves, where not the last ones
        self.loss = with_autocast(task.loss, device, autocast)
        self._validation: dict[int, BatchSource] = {}  # by batch size, opened when first needed
        self.engine = self._build_engine(OneByOne.name)
        self._loader = OneByOne(self.model, self.loss)
        self._evaluator = Evaluator(
            task,
            self._loader,
            with_autocast(task.score, device, autocast),
            with_autocast(task.predict, device, autocast),
            device,
        )

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

    def time_engines(self) -> tuple[str, dict[str, float], dict[str, str]]:
        """Return the fastest engine for this rank's models, the seconds of each, and why others fail."""
        engines = [self._build_engine(name) for name in self.task.engines]
        return fastest(engines, self.x_cd, self.buffers, self.source.batch(0, "local"))

    # -- steps that a method takes itself ------------------------------------------------------------

    def local_steps(self, t: int) -> LocalSteps:
        """Return round t's local steps of the clients that take part."""
        rows_e = np.flatnonzero(self.participation(t)[list(self.ids)])
        batches = self._schedule.steps(t, rows_e)
        return LocalSteps(self, rows_e, batches, self.eta(t), self._step_gradients)

    def data_steps(self, t: int, share: float, rows_e: Rows) -> LocalSteps:
        """Return steps on the first `share` of epoch t of each client in some rows, in whole batches.

        Equal calls read the same batches.
        """
        batches = self._schedule.share_of_epoch(t, share, rows_e)
        return LocalSteps(self, rows_e, batches, self.eta(t), self._step_gradients)

    def _step_gradients(
        self, models_cd: Tensor, rows_k: Rows, batches: Batches, stream: str, trains: bool
    ) -> tuple[Tensor, Tensor]:
        """Return gradients [k, d] in scratch rows, and losses [k], at the clients' rows of a matrix."""
        with self.timer.span("gradients"):
            every = len(rows_k) == len(self.ids)
            points_kd = models_cd if every else self._some(models_cd, rows_k)
            gradients_kd = self._scratch.rows("gradients", *points_kd.shape)
            losses_k = self._pass(points_kd, gradients_kd, rows_k, batches, trains, None, stream)
            return gradients_kd, losses_k

    # -- losses -----------------------------------------------------------------------------------

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

    # -- what clients show in place of models ----------------------------------------------------------

    def input_signatures(self, vectors: int, by_class: bool, angle: Angle) -> InputSignatures:
        """Return `vectors` principal directions of each client's training inputs, of each class or of all."""
        return InputSignatures(self.task, vectors, by_class, angle, self.ids, self.x_cd)

    @torch.no_grad()
    def prediction_signatures(self, examples: int, top: int) -> PredictionSignatures:
        """Return the `top` largest numbers of what each model predicts for so many shared examples."""
        inputs = self.task.shared_inputs(examples, self.device)
        layout = PredictionLayout(*self.task.prediction_shape(examples), top)
        predict = [partial(self._evaluator.predictions, self.x_cd[row], self._row_buffers(row), inputs)
                   for row in range(len(self.ids))]  # fmt: skip
        return PredictionSignatures(layout, predict, self.x_cd)

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

    def client_state(self, row: int) -> dict[str, Tensor]:
        """Return all that one client keeps between rounds, by name: views, to save or to overwrite."""
        kept = {"model": self.layout.views(self.x_cd[row]), "buffer": self._row_buffers(row)}
        kept["optimizer"] = {name: rows[row] for name, rows in self.optimizer.state().items()}
        if self.kept is not None:
            kept["kept"] = self.kept.views(row)
        return {f"{kind}.{name}": v for kind, views in kept.items() for name, v in views.items()}

    def keep_models(self) -> None:
        """Begin to keep a model of each client beside the one in training; now the start."""
        self.kept = KeptModels(self.layout, self.x_cd, self.buffers)

    def replace(self, ids: Iterable[int]) -> None:
        """Replace the clients of this rank by as many others.

        Clients that stay keep their state; the caller writes the others' state (`client_state`).
        """
        row_of = {client: row for row, client in enumerate(self.ids)}
        self.ids = tuple(int(client) for client in ids)
        rows = torch.tensor([row_of.get(client, 0) for client in self.ids], device=self.device)
        more = [] if self.kept is None else self.kept.tensors()
        for tensor in (self.x_cd, *self.buffers.rows, *self.optimizer.state().values(), *more):
            tensor.copy_(tensor[rows.to(tensor.device)])
        self._open_source()
        self._validation = {}
