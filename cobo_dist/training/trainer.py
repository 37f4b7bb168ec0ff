"""Training over connected ranks: build, go round, leave the run folder complete."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import torch

from cobo_dist.algorithms.base import RunContext
from cobo_dist.algorithms.registry import build_algorithm
from cobo_dist.checkpoint import resume
from cobo_dist.checkpoint.writer import CheckpointWriter
from cobo_dist.clients.client_batch import ClientBatch
from cobo_dist.comm.exchange import Exchange
from cobo_dist.comm.placement import Placement
from cobo_dist.comm.session import Session
from cobo_dist.comm.transports.torch_transport import LostContact
from cobo_dist.config import Config
from cobo_dist.errors import EXIT_DONE, EXIT_STOPPED, ConfigError, RunFailure
from cobo_dist.phase_timer import PhaseTimer
from cobo_dist.storage.checkpoint_format import Damaged, Manifest
from cobo_dist.storage.disk import writing
from cobo_dist.storage.run_dir import RunDir, describe_environment
from cobo_dist.tasks.base import Task
from cobo_dist.tracking.health_checks import HealthMonitor
from cobo_dist.tracking.metrics_buffer import MetricsBuffer
from cobo_dist.tracking.progress import open_display
from cobo_dist.tracking.run_logger import RunLogger
from cobo_dist.training.migration import ClientMigrator
from cobo_dist.training.profiler import Profiler
from cobo_dist.training.shutdown import finish, peak_memory
from cobo_dist.training.signals import Signals, name_of


class Trainer:
    """One rank's run, from the first message after all agreed to the last file."""

    def __init__(
        self,
        config: Config,
        session: Session,
        task: Task,
        placement: Placement,
        data: str,
        found: resume.Resumption | None,
        signals: Signals,
    ) -> None:
        """Build clients, exchange and algorithm, to start or to go on from the checkpoint `found`."""
        self.session, self.task, self.found, self.signals = session, task, found, signals
        self.folder = RunDir(config.run_dir)
        dtype, device = getattr(torch, config.run.dtype), session.device
        profiles, traces = config.log.profile, bool(config.log.trace)
        self.timer = PhaseTimer(device, traces) if profiles or traces else PhaseTimer.off()
        self.clients = ClientBatch(
            placement.by_rank[session.transport.rank],
            task,
            config.optimizer,
            dtype=dtype,
            device=device,
            autocast=None if config.run.autocast == "none" else getattr(torch, config.run.autocast),
            own_starts=config.run.start == "own",
            rounds=config.run.rounds,
            skips_bad=config.run.on_nan == "skip_client",
            timer=self.timer,
        )
        self.exchange = Exchange(
            session.transport, placement, dtype, device,
            deterministic=config.comm.deterministic, timer=self.timer,
            wire=None if config.comm.dtype == "model" else getattr(torch, config.comm.dtype),
        )  # fmt: skip
        context = RunContext(task.clients, task.clusters, config.run.seed, config.run.rounds)
        self._build = partial(
            build_algorithm, config.algorithm, self.clients, self.exchange, context
        )
        self.algorithm = self._build()
        engine, self.engine_choice = self._choose_engine(config)
        self.clients.use_engine(engine)
        settled = {"engine": engine, "dir": str(self.folder.path), "resume": "never"}
        self.config = config.model_copy(update={"run": config.run.model_copy(update=settled)})
        self.environment = describe_environment()
        self.about = Manifest(
            0, task.clients, session.transport.world_size, data, self.environment["versions"], {}
        )
        self.run_logger: RunLogger | None = None
        self.round = 0 if found is None else found.round  # that it is in

    def _choose_engine(self, config: Config) -> tuple[str, str]:
        """Return the engine and why; all ranks take the coordinator's choice, so that they stay alike."""
        engines, transport = self.task.engines, self.session.transport
        if len(engines) == 1:
            return engines[0], f"task {self.task.name} has no other"
        if config.comm.deterministic:
            return "one_by_one", "comm.deterministic"
        if config.run.engine != "auto":
            return config.run.engine, "run.engine"
        if self.found is not None and self.found.engine in engines:
            return self.found.engine, "as before"
        choice, why = "", ""
        if transport.rank == 0:
            choice, seconds = self.clients.time_engines()
            why = ", ".join(f"{name} {1000 * took:.2f} ms" for name, took in seconds.items())
        choice, why = transport.broadcast(f"{choice}|{why}".encode()).decode().split("|")
        return choice, why

    def run(self) -> int:
        """Train and leave the run folder complete; return the exit code."""
        hosts = self.session.transport.gather(
            f"{socket.gethostname()} {self.session.device}".encode()
        )
        first = 0
        if self.found is not None:
            first = self.found.round
            self._restore(self.found)  # before anything in the run folder is touched
        self._claim()
        if self.exchange.is_coordinator:
            self._write_head([host.decode() for host in hosts])
            self.run_logger = self._open_run_logger()
            if self.found is not None:
                resume.restore_run_logger(self.found, self.run_logger)
        self.migrator = ClientMigrator(
            self.config, self.clients, self.exchange, self._build, self.run_logger
        )
        try:
            self._introduce(first)
            checkpoint_writer = CheckpointWriter(
                self.folder.checkpoints, self.config.run, self.config.to_yaml(), self.about,
                self.clients, self.exchange, self.algorithm, self.run_logger,
            )  # fmt: skip
            started = time.monotonic()
            last, signal = self._go_round(first, checkpoint_writer, started)
            if signal:
                return self._stop(last, signal)
            self._finish(time.monotonic() - started)
        finally:
            if self.run_logger is not None:
                self.run_logger.close()
        return EXIT_DONE

    # -- before -----------------------------------------------------------------------------------

    def _restore(self, found: resume.Resumption) -> None:
        """Take up models, memories and W, or refuse on all ranks what fits no run of this config."""
        refusal = None
        try:
            resume.restore(found, self.clients, self.algorithm)
        except Damaged as error:
            refusal = f"{error}; remove {found.folder} to go on from the checkpoint before it"
        self.session.agree(refusal)

    def _claim(self) -> None:
        """Make the run folder; from here on a failure is written into it."""
        refusal = None
        if self.session.transport.rank == 0:
            try:
                own = (
                    self.found is not None
                    and self.found.run.resolve() == self.folder.path.resolve()
                )
                if not own:
                    self.folder.create()
                if self.found is not None:
                    resume.reopen(self.folder, self.found)
            except ConfigError as error:
                refusal = str(error)
        self.session.agree(refusal)
        self.folder.claimed = True

    def _write_head(self, hosts: list[str]) -> None:
        self.folder.write_text("config.yaml", self.config.to_yaml())
        environment = self.environment | {
            "launcher": self.session.launch.launcher,
            "job": self.session.launch.job,
            "backend": self.session.backend,
            "ranks": hosts,
            "threads_per_rank": torch.get_num_threads(),
            "engine": self.config.run.engine,
            "engine_choice": self.engine_choice,
        }
        if self.found is not None:
            earlier = self.folder.read_json("env.json").get("resumed", [])
            now = {
                "round": self.found.round,
                "from": str(self.found.folder),
                "ranks_before": self.found.manifest.ranks,
                "warnings": list(self.found.warnings),
            }
            environment["resumed"] = [*earlier, now]
        self.folder.write_json("env.json", environment)

    def _open_run_logger(self) -> RunLogger:
        config, task = self.config, self.task
        algorithm = config.algorithm.model_dump()
        moving: Mapping[str, Any] = algorithm if "gamma" in algorithm else {}
        health = HealthMonitor(moving, task.clients, config.run.rounds, config.optimizer.lr)
        first = 0 if self.found is None else self.found.round
        display = open_display(config.log, config.run.rounds, first)
        share = config.algorithm.equal_share(task.clients)
        run_logger = RunLogger(
            self.folder, display, health, task.clusters, task.metrics, share, task.names
        )
        if config.log.tensorboard:
            run_logger.open_board(first)
        return run_logger

    def _introduce(self, first: int) -> None:
        """Say what runs, and from where."""
        if self.run_logger is None:
            return
        if self.found is None:
            self.run_logger.notice(self.algorithm.user_notice)
        else:
            for warning in self.found.warnings:
                self.run_logger.display.say(f"warning: {warning}")
            before, now = self.found.manifest.versions, self.environment["versions"]
            other = [f"{k} {v} -> {now.get(k)}" for k, v in before.items() if now.get(k) != v]
            if other:
                self.run_logger.display.say(
                    f"warning: other versions than before ({', '.join(other)}): the last digits of "
                    "the numbers may differ from a run that was never stopped"
                )
            self.run_logger.display.say(f"goes on after round {first}, from {self.found.folder}")
        self.run_logger.display.say(
            f"{self.config.algorithm.name} on {self.config.task.name}: {self.task.clients} clients on "
            f"{self.session.transport.world_size} rank(s), {self.session.device}, "
            f"{_size_in_words(self.clients)}, engine {self.config.run.engine} ({self.engine_choice})"
        )

    # -- the loop ---------------------------------------------------------------------------------

    def _go_round(
        self, first: int, checkpoint_writer: CheckpointWriter, started: float
    ) -> tuple[int, int]:
        """Go from round `first` to the last, or to a signal; return the round and the signal, or 0.

        Round r turns x^(r-1) into x^r; what is logged at r is the state after it.
        """
        run = self.config.run
        metrics = MetricsBuffer(
            self.exchange, self.clients, self.task, self.algorithm, self.run_logger,
            self.config.log.flush_every, first, self.config.log.profile,
        )  # fmt: skip
        profiler = Profiler(self.config.log.trace, first, run.rounds, self.folder, self.session)
        # Before and while training a part of the data may do; what the summary reports is on all of it.
        part = self.config.data.eval_examples > 0
        if self.found is None:
            metrics.weights(0)
            if self.run_logger is not None:
                self.run_logger.begin()
            metrics.evaluate(0, run.eval_splits, whole=not part)
        self.timer.take()  # what came before belongs to no round
        for r in range(first + 1, run.rounds + 1):
            self.round = r
            with self.timer.span("logging"):
                profiler.begin(r)
            began = time.monotonic()
            outcome = self.algorithm.round(r - 1)
            metrics.round(r, outcome, time.monotonic() - began)
            with self.timer.span("logging"):
                profiler.end(r)
            last = r == run.rounds
            evaluates = last or (run.eval_every and r % run.eval_every == 0)
            logs_weights = last or (run.log_weights_every and r % run.log_weights_every == 0)
            saves, looks = checkpoint_writer.is_due(r), self.migrator.is_due(r)
            if not (evaluates or logs_weights or saves or looks or metrics.is_due(r)):
                continue
            with self.timer.span("logging"):
                order = metrics.flush(self.signals.caught, checkpoint_writer.is_written())
                if order.seal:
                    checkpoint_writer.wait()
                if evaluates:
                    metrics.evaluate(r, run.eval_splits, whole=last or not part)
                if logs_weights:
                    metrics.weights(r)
                if saves or order.signal:
                    metrics.check_models(r, last)
                    checkpoint_writer.begin(r, time.monotonic() - started)
                if looks and not order.signal:
                    self.algorithm = self.migrator.look(r, self.algorithm)
                    metrics.algorithm = checkpoint_writer.algorithm = self.algorithm
            if order.signal and not last:
                if missing := checkpoint_writer.wait():
                    raise RunFailure(f"stopped by {name_of(order.signal)} with {missing}")
                return r, order.signal
        checkpoint_writer.wait()
        return run.rounds, 0

    # -- after ------------------------------------------------------------------------------------

    def _stop(self, r: int, signal: int) -> int:
        """Say that the run stopped after round r and how it goes on."""
        if self.run_logger is not None:
            line = (
                f"stopped by {name_of(signal)} after round {r} of "
                f"{self.config.run.rounds}, with a checkpoint; the same command with run.resume=auto "
                "goes on"
            )
            self.run_logger.flush()
            self.folder.status(EXIT_STOPPED, "stopped", line)
            self.run_logger.display.say(line)
        # Launchers end all ranks when one leaves: nobody leaves before status.json is written. Whoever
        # is lost by now has saved what it had.
        with suppress(LostContact):
            self.session.agree(None)
        return EXIT_STOPPED

    def _finish(self, seconds: float) -> None:
        """Leave models, ledger and summary."""
        for row, client in enumerate(self.clients.ids):
            path = self.folder.model_path(client)
            state = self.clients.state_dict(row)
            with writing(path, sum(one.nbytes for one in state.values())):
                # On this host too, where no disk is shared.
                path.parent.mkdir(exist_ok=True, parents=True)
                self.task.save(state, path)
        saved = self.migrator.summary(self.algorithm)
        # All models are there before the summary says so; and what logging sent is known at last.
        mine = f"{self.exchange.traffic.bytes['logging']} {peak_memory(self.session.device)}"
        totals = [one.decode().split() for one in self.session.transport.gather(mine.encode())]
        if self.run_logger is not None:
            self.run_logger.bytes["logging"] += sum(int(logged) for logged, _ in totals)
            peaks = [int(peak) for _, peak in totals]
            seconds += self.run_logger.seconds_before
            finish(self.config, peaks, self.task.metrics, self.run_logger, seconds, saved)


def _size_in_words(clients: ClientBatch) -> str:
    """Return how many parameters a client trains, and of how many where a base is frozen."""
    own, frozen = clients.layout.size, clients.frozen
    share = f" ({own / (own + frozen):.2%} of {own + frozen:,})" if frozen else ""
    return f"{own:,} parameters each{share}"
