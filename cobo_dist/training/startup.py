"""The start of a run: choose the engine, restore a checkpoint, claim the run folder, say what runs."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from cobo_dist.checkpoint import resume
from cobo_dist.checkpoint.resume import Resumption
from cobo_dist.clients.client_batch import ClientBatch
from cobo_dist.comm.session import Session
from cobo_dist.errors import ConfigError
from cobo_dist.plugins import Plugin
from cobo_dist.run_config import RunConfig
from cobo_dist.storage.array_schema import PARTITION, check_arrays
from cobo_dist.storage.checkpoint_format import Damaged
from cobo_dist.storage.disk import SMALL_FILE_BYTES, explain_start
from cobo_dist.storage.owner import Ownership
from cobo_dist.storage.reading import parse_record
from cobo_dist.storage.run_dir import RunDir
from cobo_dist.storage.schema import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    FORMAT,
    MODEL_FILE,
    PARTITION_FILE,
    PLUGINS_DIR,
    Environment,
    ModelRecord,
    Owner,
    Resumed,
)
from cobo_dist.tasks.base import Task
from cobo_dist.tracking.run_logger import RunLogger
from cobo_dist.training.learner import Learner


def choose_engine(
    run: RunConfig,
    deterministic: bool,
    learner: Learner,
    session: Session,
    found: Resumption | None,
) -> tuple[str, str]:
    """Return the engine and why. All ranks take the coordinator's choice, so that they compute alike."""
    task, transport = learner.task, session.transport
    if len(task.engines) == 1:
        return task.engines[0], f"task {task.name} has no other"
    if deterministic:
        return "one_by_one", "comm.deterministic"
    if run.engine != "auto":
        return run.engine, "run.engine"
    if found is not None and found.engine in task.engines:
        return found.engine, "as before"
    choice, why = "", ""
    if transport.rank == 0:
        choice, seconds, failures = learner.clients.time_engines()
        why = ", ".join(
            f"{name} fails: {failures[name]}"
            if name in failures
            else f"{name} {1000 * took:.2f} ms"
            for name, took in seconds.items()
        )
    choice, why = transport.broadcast(f"{choice}|{why}".encode()).decode().split("|", 1)
    return choice, why


def restore(found: Resumption, learner: Learner, session: Session) -> None:
    """Fill models, optimizers, W and the algorithm's state from the checkpoint.

    Raises:
        ConfigError: the same on all ranks: a file is damaged, or is of another run.
    """
    refusal = None
    try:
        resume.restore(found, learner.clients, learner.algorithm)
    except Damaged as error:
        refusal = f"{error}; remove {found.folder} to go on from the checkpoint before it"
    session.agree(refusal)


def claim(
    folder: RunDir, session: Session, found: Resumption | None, epoch: int
) -> Resumption | None:
    """Take the run folder and make it ready; from here on, failures are reported in it.

    `epoch`: on rank 0, that of the folder's last owner. Returns `found` with what there is to warn of.

    Raises:
        ConfigError: the same on all ranks: rank 0 cannot write it, or another run took it meanwhile.
    """
    session.guard.close()
    refusal, record = None, b""
    if session.transport.rank == 0:
        try:
            folder.owner = Ownership.acquire(folder.path, epoch, session.launch.batch_job)
            record = folder.owner.owner.to_json().encode()
            if found is None or found.run.resolve() != folder.path.resolve():
                folder.create()
            if found is not None:
                warnings = resume.reopen(folder, found)
                found = replace(found, warnings=(*found.warnings, *warnings))
        except ConfigError as error:
            refusal = str(error)
        except OSError as error:
            refusal = explain_start(error, folder.path, SMALL_FILE_BYTES, "name another run.dir")
    session.agree(refusal)
    record = session.transport.broadcast(record)
    if session.transport.rank:
        folder.owner = Ownership(folder.path, parse_record(record, Owner), is_rank_0=False)
        folder.owner.check()  # looks whether this rank sees the record
    return found


def write_head(
    folder: RunDir,
    session: Session,
    config_yaml: str,
    environment: Environment,
    task: Task,
    found: Resumption | None,
    plugins: Iterable[Plugin],
) -> None:
    """Write config.yaml, env.json, model.json and copies of plug-ins on rank 0; all ranks call this."""
    me = f"{socket.gethostname()} {session.device}"
    ranks = [record.decode() for record in session.transport.gather(me.encode())]
    if session.transport.rank:
        return
    environment.launcher = session.launch.launcher
    environment.job = session.launch.job
    environment.backend = session.backend
    environment.ranks = ranks
    environment.threads_per_rank = torch.get_num_threads()
    if found is not None:
        now = Resumed(
            round=found.round,
            checkpoint=str(found.folder),
            ranks_before=found.manifest.ranks,
            warnings=list(found.warnings),
        )
        before = folder.environment()
        environment.resumed = [*before.resumed, now]
        environment.init_from = before.init_from
    for plugin in plugins:
        for name, content in plugin.copies.items():
            copy = f"{PLUGINS_DIR}/{name}"
            (folder.path / copy).parent.mkdir(parents=True, exist_ok=True)
            with folder.replacing(copy, len(content)) as draft:
                draft.write_bytes(content)
    folder.write_text(CONFIG_FILE, config_yaml)
    folder.write_record(ENVIRONMENT_FILE, environment)
    folder.write_record(MODEL_FILE, ModelRecord(format=FORMAT, **task.model_facts()))
    partition: Mapping[str, Any] = task.partition()
    if partition:
        check_arrays(PARTITION, partition)
        nbytes = sum(one.nbytes for one in partition.values())
        with folder.replacing(PARTITION_FILE, nbytes) as draft, draft.open("wb") as file:
            np.savez_compressed(file, **partition)


def announce(
    run_logger: RunLogger,
    learner: Learner,
    session: Session,
    algorithm: str,
    environment: Environment,
    found: Resumption | None,
    notice: str = "",
) -> None:
    """Print what runs, and what a resumed run goes on from; first, the notice of the device."""
    show = run_logger.display.print
    if notice:
        show(notice)
    if found is None:
        run_logger.start((*learner.task.notices, learner.algorithm.user_notice))
    else:
        for warning in found.warnings:
            show(f"warning: {warning}")
        before, now = found.manifest.versions, environment.versions
        other = [f"{k} {v} -> {now.get(k)}" for k, v in before.items() if now.get(k) != v]
        if other:
            show(
                f"warning: other versions than before ({', '.join(other)}): the last digits of "
                "the numbers may differ from a run that was never stopped"
            )
        show(f"goes on after round {found.round}, from {found.folder}")
    show(
        f"{algorithm} on {learner.task.name}: {learner.task.clients} clients on "
        f"{session.transport.world_size} rank(s), {session.device}, "
        f"{_model_size(learner.clients)}, engine {environment.engine} "
        f"({environment.engine_choice})"
    )


def _model_size(clients: ClientBatch) -> str:
    """Return how many parameters a client trains, and of how many where a base is frozen."""
    own, frozen = clients.layout.size, clients.frozen
    share = f" ({own / (own + frozen):.2%} of {own + frozen:,})" if frozen else ""
    return f"{own:,} parameters each{share}"
