"""The run from outside: check alone, connect, agree, train."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

import torch

from cobo_dist.checkpoint import resume
from cobo_dist.comm.placement import Placement
from cobo_dist.comm.session import Session, check_backend, choose_device, open_session
from cobo_dist.comm.startup.launch_env import Launch
from cobo_dist.config import Config
from cobo_dist.errors import EXIT_DONE, ConfigError
from cobo_dist.storage.run_dir import RunDir
from cobo_dist.tasks.base import Task
from cobo_dist.tasks.registry import build_task
from cobo_dist.training.shutdown import failure, one_line
from cobo_dist.training.signals import Signals
from cobo_dist.training.trainer import Trainer


def run(config: Config, launch: Launch) -> int:
    """Train as the config says on the launched ranks; return the exit code.

    Raises:
        ConfigError: nothing was started or written.
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
    folder = RunDir(config.run_dir)
    training: Trainer | None = None
    # Also while a failure is written down: launchers end all ranks, by SIGTERM, when one has died.
    with Signals() as signals:
        try:
            session.agree(prepared.refusal, prepared.fingerprint)
            assert prepared.task is not None
            assert prepared.placement is not None
            found = resume.find(config, session, prepared.placement, prepared.data)
            if isinstance(found, resume.Done):
                if session.transport.rank == 0:
                    print(
                        f"run.dir={folder.path} holds this run, finished: nothing to do", flush=True
                    )
                return EXIT_DONE
            training = Trainer(
                config, session, prepared.task, prepared.placement, prepared.data, found, signals
            )
            folder = training.folder  # knows whether it was claimed
            return training.run()
        except ConfigError:
            raise
        except BaseException as error:
            r = 0 if training is None else training.round
            raise failure(error, session, folder, r) from error


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
    data: str = ""  # the fingerprint of the task's data
    fingerprint: str = ""  # of config and data
    refusal: str | None = None


def prepare(config: Config, launch: Launch, with_folder: bool = True) -> Prepared:
    """Read the data and check all that can be checked alone. Never raises: refusals are agreed on.

    Rank 0 also looks whether the run folder can be used, unless `with_folder` is false.
    """
    try:
        dtype = getattr(torch, config.run.dtype)
        task = build_task(config.task, config.model, config.data, config.run.seed, dtype)
        placement = Placement.contiguous(task.clients, launch.world_size)
        refuse_unfit(config, task)
        if launch.rank == 0 and with_folder:
            resume.refuse_unusable(config, launch)
        data = hashlib.sha256(task.fingerprint().encode()).hexdigest()
        seen = hashlib.sha256((config.to_yaml() + data).encode()).hexdigest()
        return Prepared(task, placement, data, seen)
    except ConfigError as error:
        return Prepared(refusal=str(error))
    except Exception as error:  # whatever it is, all ranks must hear of it
        return Prepared(refusal=one_line(error))


def refuse_unfit(config: Config, task: Task) -> None:
    """Check what algorithm, engine and evaluation need of the task.

    Raises:
        ConfigError: the task does not have it.
    """
    if config.algorithm.needs_clusters and task.clusters is None:
        why = (
            "in task.file no two clients share a centre; add the array clusters [n] to the file"
            if task.name == "quadratic"
            else f"task.name={task.name} knows none; choose another algorithm"
        )
        raise ConfigError(
            f"algorithm.name={config.algorithm.name} needs a task with known clusters, and {why}"
        )
    if config.run.engine not in ("auto", *task.engines):
        raise ConfigError(
            f"run.engine={config.run.engine} does not serve task.name={task.name}, which has "
            f"{', '.join(task.engines)}; leave run.engine at auto"
        )
    if config.algorithm.needs_validation and "validation" not in task.splits:
        raise ConfigError(
            f"algorithm.name={config.algorithm.name} scores models on validation data, and this "
            f"task has only {', '.join(task.splits)}; set task.validation_fraction above 0"
        )
    for split in config.run.eval_splits:
        if split not in task.splits:
            raise ConfigError(
                f"run.eval_splits: this task has no {split} data; it has {', '.join(task.splits)}"
            )
