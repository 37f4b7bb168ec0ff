"""The run: connect, build, go round, leave the run folder complete."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from cobo_dist.algorithms.base import Algorithm, Setting
from cobo_dist.algorithms.registry import (
    build_algorithm,
    equal_share,
    needs_clusters,
    needs_validation,
)
from cobo_dist.clients.group import Clients
from cobo_dist.comm.exchange import Exchange
from cobo_dist.comm.launch import Launch
from cobo_dist.comm.placement import Placement
from cobo_dist.comm.session import Session, check_backend, choose_device, open_session
from cobo_dist.config import Config
from cobo_dist.errors import EXIT_DONE, Refusal
from cobo_dist.tasks.base import Task
from cobo_dist.tasks.registry import build_task

from .book import Book
from .ending import failure, finish, one_line, peak_memory
from .folder import RunFolder, describe_environment
from .health import Watch
from .progress import open_display
from .recorder import Recorder


def run(config: Config, launch: Launch) -> int:
    """Train as the config says on the launched ranks; return the exit code.

    Raises:
        Refusal: nothing was started or written.
        RunFailure: the run started and could not go on; status.json says why.
    """
    check_backend(config.comm.backend, launch)
    device = choose_device(config.run.device, config.comm.backend, launch)
    prepared = prepare(config, launch)
    with open_session(launch, config.comm, device) as session:
        return run_in_session(config, session, prepared)


def run_in_session(config: Config, session: Session, prepared: Prepared | None = None) -> int:
    """Train over ranks that are connected already; see `run`."""
    set_up_torch(config, session.launch, session.device)
    prepared = prepared or prepare(config, session.launch)
    session.agree(prepared.refusal, prepared.fingerprint)
    assert prepared.task is not None
    assert prepared.placement is not None
    folder = RunFolder(config.run_dir)
    try:
        return _train(config, session, prepared.task, prepared.placement, folder)
    except Refusal:
        raise
    except BaseException as error:
        raise failure(error, session.transport.rank, folder) from error


def set_up_torch(config: Config, launch: Launch, device: torch.device) -> None:
    """Set threads and determinism of this process."""
    threads = config.run.threads or launch.cores
    if config.comm.deterministic:
        # Kernels split their sums by the number of threads, and ranks would each have their own.
        threads = 1
        if device.type == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if torch.are_deterministic_algorithms_enabled() != config.comm.deterministic:
        # Even to say no costs a second and more: it imports torch's compiler.
        torch.use_deterministic_algorithms(config.comm.deterministic)
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Prepared:
    """What a rank has before it meets the others: the task, or why it refuses."""

    task: Task | None = None
    placement: Placement | None = None
    fingerprint: str = ""
    refusal: str | None = None


def prepare(config: Config, launch: Launch) -> Prepared:
    """Read the data and check all that can be checked alone. Never raises: refusals are agreed on."""
    try:
        dtype = getattr(torch, config.run.dtype)
        task = build_task(config.task, config.model, config.data, config.run.seed, dtype)
        placement = Placement.contiguous(task.clients, launch.world_size)
        if needs_clusters(config.algorithm) and task.clusters is None:
            why = (
                "in task.file no two clients share a centre; add the array clusters [n] to the file"
                if task.name == "quadratic"
                else f"task.name={task.name} knows none; choose another algorithm"
            )
            raise Refusal(
                f"algorithm.name={config.algorithm.name} needs a task with known clusters, and {why}"
            )
        if config.run.engine not in ("auto", *task.engines):
            raise Refusal(
                f"run.engine={config.run.engine} does not serve task.name={task.name}, which has "
                f"{', '.join(task.engines)}; leave run.engine at auto"
            )
        if needs_validation(config.algorithm) and "validation" not in task.splits:
            raise Refusal(
                f"algorithm.name={config.algorithm.name} scores models on validation data, and this "
                f"task has only {', '.join(task.splits)}; set task.validation_fraction above 0"
            )
        for split in config.run.eval_splits:
            if split not in task.splits:
                raise Refusal(
                    f"run.eval_splits: this task has no {split} data; it has "
                    f"{', '.join(task.splits)}"
                )
        if launch.rank == 0:
            RunFolder(config.run_dir).refuse_unusable(config.run.overwrite)
        seen = config.to_yaml() + task.fingerprint()
        return Prepared(task, placement, hashlib.sha256(seen.encode()).hexdigest())
    except Refusal as error:
        return Prepared(refusal=str(error))
    except Exception as error:  # whatever it is, all ranks must hear of it
        return Prepared(refusal=one_line(error))


@dataclass
class _Parts:
    clients: Clients
    exchange: Exchange
    algorithm: Algorithm


def _build(config: Config, session: Session, task: Task, placement: Placement) -> _Parts:
    dtype, device = getattr(torch, config.run.dtype), session.device
    clients = Clients(
        placement.by_rank[session.transport.rank],
        task,
        config.optimizer,
        dtype=dtype,
        device=device,
        autocast=None if config.run.autocast == "none" else getattr(torch, config.run.autocast),
        own_starts=config.run.start == "own",
        rounds=config.run.rounds,
    )
    exchange = Exchange(
        session.transport, placement, dtype, device, deterministic=config.comm.deterministic
    )
    setting = Setting(task.clients, task.clusters, config.run.seed, config.run.rounds)
    return _Parts(clients, exchange, build_algorithm(config.algorithm, clients, exchange, setting))


def _choose_engine(
    config: Config, session: Session, task: Task, clients: Clients
) -> tuple[str, str]:
    """Return the engine and why; all ranks take the coordinator's choice, so that they stay alike."""
    if len(task.engines) == 1:
        return task.engines[0], f"task {task.name} has no other"
    if config.comm.deterministic:
        return "one_by_one", "comm.deterministic"
    if config.run.engine != "auto":
        return config.run.engine, "run.engine"
    choice, why = "", ""
    if session.transport.rank == 0:
        choice, seconds = clients.time_engines()
        why = ", ".join(f"{name} {1000 * took:.2f} ms" for name, took in seconds.items())
    choice, why = session.transport.broadcast(f"{choice}|{why}".encode()).decode().split("|")
    return choice, why


def _train(
    config: Config, session: Session, task: Task, placement: Placement, folder: RunFolder
) -> int:
    parts = _build(config, session, task, placement)
    engine, why = _choose_engine(config, session, task, parts.clients)
    parts.clients.use_engine(engine)
    resolved = config.model_copy(
        update={"run": config.run.model_copy(update={"engine": engine, "dir": str(folder.path)})}
    )
    hosts = session.transport.gather(f"{socket.gethostname()} {session.device}".encode())
    _claim(session, folder)
    book = None
    if parts.exchange.is_coordinator:
        folder.write_text("config.yaml", resolved.to_yaml())
        folder.write_json(
            "env.json",
            describe_environment()
            | {
                "launcher": session.launch.launcher,
                "backend": session.backend,
                "ranks": [host.decode() for host in hosts],
                "threads_per_rank": torch.get_num_threads(),
                "engine": engine,
                "engine_choice": why,
            },
        )
        book = _open_book(resolved, task, folder)
        book.notice(parts.algorithm.notice)
        book.display.say(
            f"{config.algorithm.name} on {config.task.name}: {task.clients} clients on "
            f"{session.transport.world_size} rank(s), {session.device}, "
            f"{_size_in_words(parts.clients)}, engine {engine} ({why})"
        )
    try:
        started = time.monotonic()
        recorder = Recorder(parts.exchange, parts.clients, task, parts.algorithm, book)
        _go_round(config, parts.algorithm, recorder)
        seconds = time.monotonic() - started
        _save_models(parts.clients, task, folder)
        # All models are there before the summary says so; and what logging sent is known at last.
        mine = f"{parts.exchange.ledger.bytes['logging']} {peak_memory(session.device)}"
        totals = [one.decode().split() for one in session.transport.gather(mine.encode())]
        if book is not None:
            book.bytes["logging"] = sum(int(logged) for logged, _ in totals)
            finish(resolved, [int(peak) for _, peak in totals], task.metrics, book, seconds)
    finally:
        if book is not None:
            book.close()
    return EXIT_DONE


def _claim(session: Session, folder: RunFolder) -> None:
    """Make the run folder; from here on a failure is written into it."""
    refusal = None
    if session.transport.rank == 0:
        try:
            folder.create()
        except Refusal as error:
            refusal = str(error)
    session.agree(refusal)
    folder.claimed = True


def _open_book(config: Config, task: Task, folder: RunFolder) -> Book:
    algorithm = config.algorithm.model_dump()
    moving: Mapping[str, Any] = algorithm if "gamma" in algorithm else {}
    watch = Watch(moving, task.clients, config.run.rounds, config.optimizer.lr)
    display = open_display(config.log, config.run.rounds)
    share = equal_share(config.algorithm, task.clients)
    return Book(folder, display, watch, task.clusters, task.metrics, config.log.tensorboard, share)


def _go_round(config: Config, algorithm: Algorithm, recorder: Recorder) -> None:
    """The loop. Round r turns x^(r-1) into x^r; what is logged at r is the state after it."""
    run, flush_every = config.run, config.log.flush_every
    recorder.weights(0)
    if recorder.book is not None:
        recorder.book.begin()
    # Before and while training a part of the data may do; what the summary reports is on all of it.
    part = config.data.eval_examples > 0
    recorder.evaluate(0, run.eval_splits, whole=not part)
    for r in range(1, run.rounds + 1):
        started = time.monotonic()
        outcome = algorithm.round(r - 1)
        recorder.round(r, outcome, time.monotonic() - started)
        last = r == run.rounds
        evaluates = last or (run.eval_every and r % run.eval_every == 0)
        logs_weights = last or (run.log_weights_every and r % run.log_weights_every == 0)
        if evaluates or logs_weights or r % flush_every == 0:
            recorder.flush()
        if evaluates:
            recorder.evaluate(r, run.eval_splits, whole=last or not part)
        if logs_weights:
            recorder.weights(r)
    recorder.check_models(run.rounds)


def _save_models(clients: Clients, task: Task, folder: RunFolder) -> None:
    for row, client in enumerate(clients.ids):
        path = folder.model_path(client)
        path.parent.mkdir(exist_ok=True, parents=True)  # on this host too, where no disk is shared
        task.save(clients.state_dict(row), path)


def _size_in_words(clients: Clients) -> str:
    """Return how many parameters a client trains, and of how many where a base is frozen."""
    own, frozen = clients.layout.size, clients.frozen
    share = f" ({own / (own + frozen):.2%} of {own + frozen:,})" if frozen else ""
    return f"{own:,} parameters each{share}"
