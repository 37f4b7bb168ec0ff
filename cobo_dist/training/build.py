"""The parts of a run, built from its config: clients, exchange, algorithm, logs, and the trainer over them.

Only this module, `run` and `preparation` see the whole config. Every part gets its own section of it, or
plain values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import partial

import torch

from cobo_dist.algorithms.base import RunContext
from cobo_dist.algorithms.registry import build_algorithm, shown_as
from cobo_dist.checkpoint import resume
from cobo_dist.checkpoint.writer import CheckpointWriter
from cobo_dist.clients.client_batch import ClientBatch
from cobo_dist.comm.asynchronous.exchange import AsynchronousExchange
from cobo_dist.comm.asynchronous.mailbox import Mailbox
from cobo_dist.comm.exchange import Exchange
from cobo_dist.comm.session import Session
from cobo_dist.comm.startup.devices import why_cpu
from cobo_dist.config import Config
from cobo_dist.maths.compression import message_bytes
from cobo_dist.maths.graph import link_threshold
from cobo_dist.phase_timer import PhaseTimer
from cobo_dist.results.run import Run
from cobo_dist.storage.environment import describe_environment
from cobo_dist.storage.run_dir import RunDir
from cobo_dist.storage.schema import Environment, Manifest, Method
from cobo_dist.tasks.base import Task
from cobo_dist.tracking.health_checks import HealthMonitor
from cobo_dist.tracking.metrics_buffer import MetricsBuffer
from cobo_dist.tracking.progress import open_display
from cobo_dist.tracking.run_logger import RunLogger
from cobo_dist.training import startup
from cobo_dist.training.callback_runner import CallbackRunner
from cobo_dist.training.init_from import start_from
from cobo_dist.training.learner import Learner
from cobo_dist.training.migration import ClientMigrator
from cobo_dist.training.model_keeper import ModelKeeper
from cobo_dist.training.newcomers import MembershipKeeper
from cobo_dist.training.preparation import (
    Problem,
    membership_of,
    participation_of,
    raised_pairs,
)
from cobo_dist.training.profiler import open_profiler
from cobo_dist.training.trainer import Trainer


def build_learner(
    config: Config,
    session: Session,
    problem: Problem,
    timer: PhaseTimer,
    on_clients: Callable[[ClientBatch], None] = lambda clients: None,
    mailbox: Mailbox | None = None,
) -> Learner:
    """Return clients, exchange and algorithm of this rank.

    `on_clients`: called with the clients before the algorithm is built, which may copy their models.
    `mailbox`: of ranks that go at their own pace; None: they take every round together.
    """
    task, run, comm = problem.task, config.run, config.comm
    dtype = getattr(torch, run.dtype)
    participation = participation_of(config, task.clients)
    clients = ClientBatch(
        problem.placement.by_rank[session.transport.rank],
        task,
        config.optimizer,
        dtype=dtype,
        device=session.device,
        autocast=None if run.autocast == "none" else getattr(torch, run.autocast),
        own_starts=run.start == "own",
        rounds=run.rounds,
        skips_bad=run.on_nan == "skip_client",
        graphs=run.cuda_graphs == "auto" and not comm.deterministic,
        local=config.local,
        participation=participation,
        timer=timer,
    )
    on_clients(clients)
    exchange = _build_exchange(config, session, problem, timer, mailbox)
    if participation.timing is not None:
        participation.timing.set_message_bytes(
            message_bytes(comm.compresses, clients.layout.size, wire_type(config).itemsize)
        )
    context = RunContext(
        task.clients, task.clusters, run.seed, run.rounds, participation, task.train_sizes(),
        task.batch_size, task.truth, *raised_pairs(config, task.clients), comm.compresses,
    )  # fmt: skip
    new_algorithm = partial(build_algorithm, config.algorithm, clients, exchange, context)
    return Learner(task, clients, exchange, new_algorithm)


def _build_exchange(
    config: Config,
    session: Session,
    problem: Problem,
    timer: PhaseTimer,
    mailbox: Mailbox | None,
) -> Exchange:
    """Return the exchange of this rank, which reads mail where ranks go at their own pace."""
    comm = config.comm
    placed = session.transport, problem.placement, getattr(torch, config.run.dtype), session.device
    wire = wire_type(config)
    if mailbox is not None:
        return AsynchronousExchange(
            *placed, mailbox=mailbox, max_lag=comm.max_lag, seconds=comm.timeout, timer=timer, wire=wire
        )  # fmt: skip
    return Exchange(
        *placed, deterministic=comm.deterministic, timer=timer, wire=wire, compression=comm.compresses
    )  # fmt: skip


def wire_type(config: Config) -> torch.dtype:
    """Return the type in which models travel."""
    of_models = config.run.dtype if config.comm.dtype == "model" else config.comm.dtype
    found: torch.dtype = getattr(torch, of_models)
    return found


@contextmanager
def open_trainer(
    config: Config,
    session: Session,
    problem: Problem,
    found: resume.Resumption | None,
    folder: RunDir,
    epoch: int,
    mailbox: Mailbox | None = None,
) -> Iterator[Trainer]:
    """Build all parts of a run that starts, or goes on from the checkpoint `found`; close the logs after.

    `epoch`: on rank 0, that of the run folder's last owner, which is gone. `mailbox`: see `build_learner`.
    """
    log = config.log
    first = 0 if found is None else found.round
    on = log.profile or log.trace
    timer = PhaseTimer(session.device, bool(log.trace)) if on else PhaseTimer.off()
    environment = describe_environment(session.device)

    def start(clients: ClientBatch) -> None:
        if config.run.init_from and found is None:
            environment.init_from = start_from(config.run.init_from, problem.task, clients, session)

    learner = build_learner(config, session, problem, timer, start, mailbox)
    keeper = ModelKeeper(config.run, learner.clients)
    config_yaml = _settle(config, session, folder, learner, environment, found)
    if found is not None:
        startup.restore(found, learner, session)  # before anything in the run folder is changed
    found = startup.claim(folder, session, found, epoch)
    startup.write_head(
        folder, session, config_yaml, environment, problem.task, found, config.used_plugins
    )

    with (
        _open_run_logger(config, session, problem.task, folder, first) as run_logger,
        open_profiler(log.trace, config.run.rounds - first, folder, session) as profiler,
    ):
        if run_logger is not None:
            if found is not None:
                symmetric = learner.algorithm.weights.symmetric
                resume.restore_run_logger(found, run_logger, symmetric)
            notice = why_cpu(config.run.device, config.comm.backend, session.launch)
            startup.announce(
                run_logger, learner, session, config.algorithm.name, environment, found, notice
            )
        threshold = link_threshold(config.algorithm.equal_share(problem.task.clients))
        metrics = MetricsBuffer(
            learner.exchange, learner.clients, learner.task, learner.algorithm, run_logger,
            log.flush_every, first, log.profile,
        )  # fmt: skip
        checkpoint_writer = _checkpoint_writer(
            config, session, problem, folder, learner, run_logger, config_yaml, environment.versions
        )
        callbacks = CallbackRunner(
            problem.callbacks, session.transport, run_logger, Run(folder.path)
        )
        try:
            callbacks.begin()
            yield Trainer(
                config.run, first, learner, metrics, checkpoint_writer,
                ClientMigrator(config.comm, config.run.rounds, threshold, learner, run_logger),
                profiler, callbacks, keeper,
                MembershipKeeper(
                    config.membership, membership_of(config, problem.task.clients), learner, metrics,
                    threshold,
                ),
                evaluates_part=config.data.eval_examples > 0,
                stopped_early="" if found is None else found.stopped,
            )  # fmt: skip
        except BaseException:
            callbacks.abandon()
            raise


def _settle(
    config: Config,
    session: Session,
    folder: RunDir,
    learner: Learner,
    environment: Environment,
    found: resume.Resumption | None,
) -> str:
    """Choose the engine and say it in `environment`; return config.yaml with what `auto` became."""
    run = config.run
    engine, why = startup.choose_engine(run, config.comm.deterministic, learner, session, found)
    why = "; ".join(filter(None, (why, learner.clients.use_engine(engine))))
    environment.engine, environment.engine_choice = engine, why
    environment.method = Method.model_validate(shown_as(config.algorithm, learner.task.clients))
    settled = {"engine": engine, "dir": str(folder.path), "resume": "never"}
    return config.model_copy(update={"run": run.model_copy(update=settled)}).to_yaml()


def _checkpoint_writer(
    config: Config,
    session: Session,
    problem: Problem,
    folder: RunDir,
    learner: Learner,
    run_logger: RunLogger | None,
    config_yaml: str,
    versions: dict[str, str],
) -> CheckpointWriter:
    about = Manifest(
        round=0,
        clients=problem.task.clients,
        ranks=session.transport.world_size,
        data=problem.data,
        plugins=dict(problem.plugins),
        versions=versions,
    )
    return CheckpointWriter(
        folder, config.run, config_yaml, about,
        learner.clients, learner.exchange, learner.algorithm, run_logger,
        session.launch.local_world_size,
    )  # fmt: skip


def _open_run_logger(
    config: Config, session: Session, task: Task, folder: RunDir, first: int
) -> AbstractContextManager[RunLogger | None]:
    """Return the coordinator's logger, to be closed; None on other ranks."""
    if session.transport.rank:
        return nullcontext()
    health = HealthMonitor(
        config.algorithm, task.clients, config.run.rounds, config.optimizer.lr,
        config.participation.of(task.clients),
    )  # fmt: skip
    display = open_display(config.log, config.run.rounds, first)
    share = config.algorithm.equal_share(task.clients)
    run_logger = RunLogger(
        folder,
        display,
        health,
        task.truth,
        task.metrics,
        share,
        task.names,
        dtype=config.run.dtype,
        members=membership_of(config, task.clients),
    )
    if config.log.tensorboard:
        run_logger.open_board(first)
    return closing(run_logger)
