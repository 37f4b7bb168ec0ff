"""The train loop of one rank."""

from __future__ import annotations

import time

from torch import Tensor
from torch.profiler import profile

from cobo_dist.algorithms.base import RoundResult
from cobo_dist.checkpoint.writer import CheckpointWriter
from cobo_dist.errors import RunFailure
from cobo_dist.phase_timer import RoundClock
from cobo_dist.run_config import RunConfig
from cobo_dist.tracking.metrics_buffer import MetricsBuffer
from cobo_dist.training.callback_runner import CallbackRunner
from cobo_dist.training.learner import Learner
from cobo_dist.training.migration import ClientMigrator
from cobo_dist.training.model_keeper import ModelKeeper
from cobo_dist.training.newcomers import MembershipKeeper
from cobo_dist.training.signals import Signals, name_of


class Trainer:
    """Runs the rounds, and after each round what is due: evaluation, logs, checkpoints, migration."""

    def __init__(
        self,
        schedule: RunConfig,
        first: int,
        learner: Learner,
        metrics: MetricsBuffer,
        checkpoint_writer: CheckpointWriter,
        migrator: ClientMigrator,
        profiler: profile | None,
        callbacks: CallbackRunner,
        keeper: ModelKeeper,
        members: MembershipKeeper,
        evaluates_part: bool,
        stopped_early: str = "",
    ) -> None:
        """Train from the state after round `first` to the end of the schedule.

        Args:
            schedule: the rounds, and when what is due.
            first: the round after which training begins.
            learner: is trained.
            metrics: collects metrics.
            checkpoint_writer: writes checkpoints.
            migrator: moves clients.
            profiler: traces rounds, if asked for.
            callbacks: see every round, and may stop the run.
            keeper: keeps the models that the run leaves.
            members: lets clients join and leave.
            evaluates_part: evaluations before the last one use a fixed part of each client's data.
            stopped_early: why a callback ended the run after round `first`; empty: none did.
        """
        self.schedule, self.learner, self.metrics = schedule, learner, metrics
        self.checkpoint_writer, self.migrator, self.profiler = checkpoint_writer, migrator, profiler
        self.callbacks, self.keeper, self.members = callbacks, keeper, members
        self.evaluates_part = evaluates_part
        self.stopped_early = stopped_early
        self.last = first if stopped_early else schedule.rounds
        self.first = self.round = first  # round: the one under way, or the last
        self.seconds = 0.0  # of training, since this process began
        self._began = 0.0

    def fit(self, signals: Signals) -> int:
        """Run rounds first + 1 to `last`; return 0, or the signal that stopped the run on all ranks.

        A callback may make an earlier round the last one. It then is like the last of a shorter run.

        Round r turns x^(r-1) into x^r; what is logged at r is the state after it.

        Raises:
            RunFailure: a model diverged, the disk is full, or a stopped run could not be saved.
        """
        timer, stopped_by = self.metrics.timer, 0
        clock = RoundClock(self.learner.clients.device)
        self._began = time.monotonic()
        self.learner.task.begin_round(self.first)
        if not self.first:
            self._log_start()
        timer.take()  # what came before belongs to no round
        r, exchange = self.first, self.learner.exchange
        while r < self.last:
            r = self.round = exchange.next_round(r, self._next_due(r))
            clock.start()
            self.learner.task.begin_round(r)
            exchange.begin_round(r)
            result = self._round(r - 1)
            self.metrics.round(r, result, clock.stop())
            self.keeper.after_round(r)
            with timer.span("logging"):
                if self.profiler is not None:
                    self.profiler.step()
                stopped_by = self._after_round(r, signals.caught)
            if stopped_by or self.stopped_early:
                break
        self._wait_for_checkpoint(stopped_by)
        self.seconds = time.monotonic() - self._began
        return stopped_by

    def _round(self, t: int) -> RoundResult:
        """Let the algorithm take round t."""
        with self.members.round(t):
            result: object = self.learner.algorithm.round(t)
        if not isinstance(result, RoundResult):
            name, given = type(self.learner.algorithm).__name__, type(result).__name__
            raise RunFailure(f"{name}.round returned a {given}; return RoundResult(losses)")
        count = len(self.learner.clients.ids)
        losses: object = result.losses_c
        if not isinstance(losses, Tensor) or losses.shape != (count,):
            given = (
                f"shape {tuple(losses.shape)}"
                if isinstance(losses, Tensor)
                else type(losses).__name__
            )
            raise RunFailure(
                f"{type(self.learner.algorithm).__name__}.round returned losses of {given}; return a tensor "
                f"with one loss for each of this rank's {count} clients"
            )
        return result

    def _log_start(self) -> None:
        """Log W^0 and evaluate x^0."""
        self.metrics.weights(0)
        self._evaluate(0, whole=not self.evaluates_part)

    def _evaluate(self, r: int, whole: bool) -> None:
        """Evaluate the models after round r, and keep them where they are the best so far."""
        results = self.metrics.evaluate(r, self.schedule.eval_splits, whole=whole)
        self.keeper.after_evaluation(r, results)

    def _after_round(self, r: int, caught: int) -> int:
        """Do what is due after round r; return a signal that stops all ranks here, or 0.

        `caught`: the signal that this rank caught, or 0.
        """
        run, last = self.schedule, r == self.last
        asked = self.learner.exchange.asked_to_stop(caught)
        if (asked or last or self.checkpoint_writer.is_due(r)) and self.learner.exchange.meet(r):
            caught = caught or asked
            if self.learner.exchange.is_asynchronous:
                self.learner.algorithm.settle(r - 1)
        else:
            asked = 0  # others are further: all stop there
        evaluates = last or _is_multiple(r, run.eval_every)
        logs_weights = last or _is_multiple(r, run.log_weights_every)
        saves, migrates = self.checkpoint_writer.is_due(r), self.migrator.is_due(r)
        gathers = self.metrics.is_due(r) or self.callbacks.every_round or self.members.is_due(r)
        if not (evaluates or logs_weights or saves or migrates or gathers or asked):
            return 0
        decision = self.metrics.flush(caught, self.checkpoint_writer.is_written())
        if decision.commit:
            self.checkpoint_writer.wait()
        whole = last or not self.evaluates_part
        if evaluates:
            self._evaluate(r, whole)
        reason = self.callbacks.after_rounds()
        if reason and not last:
            self.stopped_early, self.last, last = reason, r, True
            if not (evaluates and whole):
                self._evaluate(r, whole=True)
        if logs_weights or last:
            self.metrics.weights(r)
        if saves or last or decision.signal:
            self.metrics.check_models(r, last)
            if self.metrics.run_logger is not None:
                self.metrics.run_logger.stopped = self.stopped_early
            self.checkpoint_writer.begin(r, time.monotonic() - self._began)
        if migrates and not last and not decision.signal:
            self.migrator.migrate(r)
            self.metrics.algorithm = self.checkpoint_writer.algorithm = self.learner.algorithm
        return 0 if last else decision.signal

    def _next_due(self, r: int) -> int:
        """Return the first round after r in which something is due on all ranks."""
        run = self.schedule
        every = (
            self.metrics.flush_every,
            run.eval_every,
            run.log_weights_every,
            run.checkpoint_every,
        )
        return min([self.last, *(r + one - r % one for one in every if one)])

    def _wait_for_checkpoint(self, signal: int) -> None:
        """Wait until the last checkpoint is written; a run that a signal stopped needs it."""
        missing = self.checkpoint_writer.wait()
        if missing and signal:
            raise RunFailure(f"stopped by {name_of(signal)} with {missing}")


def _is_multiple(r: int, every: int) -> bool:
    """Return whether round r is due; `every` 0: never."""
    return bool(every and r % every == 0)
