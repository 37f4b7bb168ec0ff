"""What a rank does before it connects: set PyTorch up, read the data, check what can be checked alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from cobo_dist.algorithms.algorithm import RunSettings
from cobo_dist.callbacks.callback import Callback
from cobo_dist.callbacks.registry import build_callbacks
from cobo_dist.checkpoint import resume
from cobo_dist.clients.trials import why_no_single_example, why_not
from cobo_dist.comm.placement import Placement
from cobo_dist.comm.session import Session
from cobo_dist.comm.startup.launch_env import Launch
from cobo_dist.config import Config
from cobo_dist.config.differences import resume_differences
from cobo_dist.errors import ConfigError
from cobo_dist.maths.participation import Mask, Participation
from cobo_dist.plugins import load_plugins
from cobo_dist.run_config import RunConfig
from cobo_dist.scenario.availability import read_availability
from cobo_dist.scenario.membership import Membership
from cobo_dist.scenario.timeline import new_timeline
from cobo_dist.scenario.trace import read_trace
from cobo_dist.storage.owner_record import STALE_SECONDS, await_verdict, refuse_living
from cobo_dist.storage.run_dir import RunDir
from cobo_dist.tasks.base import Task
from cobo_dist.tasks.registry import build_task
from cobo_dist.training.shutdown import one_line


@dataclass(frozen=True)
class Problem:
    """What is learned, and which rank has which clients."""

    task: Task
    placement: Placement
    data: str  # fingerprint of the task's data
    plugins: Mapping[str, str] = field(default_factory=dict)  # digests by name
    callbacks: Sequence[Callback] = ()


@dataclass(frozen=True)
class Prepared:
    """What a rank has before it connects to the others: the problem, or the reason why it refuses to run."""

    problem: Problem | None = None
    read: Mapping[str, str] = field(
        default_factory=dict
    )  # digests of what all ranks must read alike
    epoch: int = 0  # on rank 0, of the run folder's last owner, which is gone
    refusal: str | None = None

    def agree(self, session: Session) -> Problem:
        """Return the problem once all ranks have it, from the same config and data.

        Raises:
            ConfigError: the same on all ranks, with the first rank's reason.
            RunFailure: a rank failed while it read its data.
        """
        session.wait_for_all(rank_0_seconds=STALE_SECONDS)
        session.agree(self.refusal, self.read)
        assert self.problem is not None, "without one, a rank refuses"
        return self.problem


def prepare(
    config: Config,
    launch: Launch,
    with_folder: bool = True,
    callbacks: Sequence[Callback] = (),
) -> Prepared:
    """Read the data and run all checks that need no other rank.

    Never raises: a rank keeps its refusal until `Prepared.agree`, so that all ranks end with one message.
    Rank 0 also checks whether the run folder can be used, unless `with_folder` is false. `callbacks` come
    beside those of the config.
    """
    try:
        load_plugins(config.plugins)  # another config may have been loaded meanwhile
        checks_folder = launch.rank == 0 and with_folder
        epoch = await_verdict(config.run_dir) if checks_folder else 0
        if checks_folder:
            refuse_living(config.run_dir)  # before the data are read
        dtype = getattr(torch, config.run.dtype)
        task = build_task(config.task, config.model, config.data, config.run.seed, dtype)
        placement = Placement.contiguous(task.clients, launch.world_size)
        refuse_unfit(config, task)
        callbacks = [*build_callbacks(config.callbacks), *callbacks]
        if callbacks and config.comm.mode == "asynchronous":
            raise ConfigError(
                "callbacks see every round of all ranks at once, which comm.mode=asynchronous has not; drop "
                "them, or set comm.mode=synchronous"
            )
        for one in callbacks:
            one.check(config.run, task.metrics)
        if checks_folder:
            refuse_unusable_folder(config, launch)
        # Who is in the run may come from files too, whose content all ranks and a resumed run must share.
        read_text = task.fingerprint() + scenario_text(config, task.clients)
        data = hashlib.sha256(read_text.encode()).hexdigest()
        plugins = {plugin.name: plugin.digest for plugin in config.used_plugins}
        read = {
            **{f"another plug-in {name}": digest for name, digest in plugins.items()},
            "another config": hashlib.sha256(config.to_yaml().encode()).hexdigest(),
            "other data": data,
            "other callbacks": ", ".join(one.title for one in callbacks),
        }
        return Prepared(Problem(task, placement, data, plugins, callbacks), read, epoch)
    except ConfigError as error:
        return Prepared(refusal=str(error))
    except Exception as error:  # of any kind: the other ranks wait for this one in `agree`
        return Prepared(refusal=one_line(error))


def refuse_unusable_folder(config: Config, launch: Launch) -> None:
    """Check that the run folder can be used, on rank 0.

    Raises:
        ConfigError: it holds another run, or a checkpoint to resume from is missing or of another run.
    """
    folder = RunDir(config.run_dir)
    resume.refuse_unusable(config.run, folder, partial(resume_differences, config), launch)


def membership_of(config: Config, clients: int) -> Membership | None:
    """Return who of so many clients is in the run in each round; None: all of them in every round.

    Raises:
        ConfigError: the events do not fit the run.
    """
    return config.membership.of(config.run.seed, clients, config.run.rounds)


def raised_pairs(config: Config, clients: int) -> tuple[Mask | None, float]:
    """Return whose pairs are drawn more often in a round, None: nobody's ever, and by which factor."""
    section, members = config.membership, membership_of(config, clients)
    if members is None or section.sampling_factor == 1.0:
        return None, 1.0
    return partial(members.recent, rounds=section.sampling_rounds), section.sampling_factor


def scenario_text(config: Config, clients: int) -> str:
    """Return what files say of who is in the run, available and how fast; empty where there are none."""
    members, trace = membership_of(config, clients), config.participation.trace
    spans = read_availability(trace, clients).spans if trace else ()
    times = read_trace(config.clock.trace, clients).fingerprint if config.clock.trace else ""
    return (members.fingerprint if members else "") + (repr(spans) if trace else "") + times


def participation_of(config: Config, clients: int) -> Participation:
    """Return which of so many clients take part in each round of the run.

    Raises:
        ConfigError: events or traces do not fit the run, or leave a round without enough clients.
    """
    section, members = config.participation, membership_of(config, clients)
    ready = read_availability(section.trace, clients) if section.trace else None
    found = Participation(
        config.run.seed, clients, section.count or clients, members, ready,
        share=section.fraction, dropout=section.dropout,
    )  # fmt: skip
    if members is not None and (r := members.rounds_without(config.run.rounds, section.count)):
        raise ConfigError(
            f"participation.count={section.count}, but in round {r} only {int(members(r - 1).sum())} clients "
            "are in the run; lower it, or let fewer clients leave or join late"
        )
    if ready is not None:
        rounds = {
            1,
            *ready.changes,
            *(event.round for event in (members.events if members else ())),
        }
        for r in sorted(r for r in rounds if r <= config.run.rounds):
            if not (found.members(r - 1) & ready(r - 1)).any():
                raise ConfigError(
                    f"participation.trace={section.trace}: no client of the run is available in round {r}; "
                    "let one be"
                )
    timeline = new_timeline(config.clock, config.run.seed, found.members, found, clients)
    return found if timeline is None else found.timed(timeline)


def refuse_unfit(config: Config, task: Task) -> None:
    """Check that the task has what algorithm, engine, local work and evaluation need.

    Raises:
        ConfigError: it lacks something of these, or they do not go together.
    """
    algorithm, run = config.algorithm, config.run
    config.local.refuse_unfit(task.train_sizes(), task.batch_size)
    config.participation.refuse_unfit(task.clients)
    participation_of(config, task.clients)
    if why := algorithm.unsuited(_settings(config, task)):
        raise ConfigError(why)
    if algorithm.needs_clusters and task.clusters is None:
        raise ConfigError(
            f"algorithm.name={algorithm.name} needs a task with known clusters, and {task.lack_clusters()}"
        )
    if algorithm.weighs_examples:
        sizes_n, groups_n = task.train_sizes(), np.zeros(task.clients, dtype=np.int64)
        if algorithm.needs_clusters:
            groups_n = np.unique(np.asarray(task.clusters), return_inverse=True)[1].reshape(-1)
        if (empty := np.flatnonzero(np.bincount(groups_n, weights=sizes_n) == 0)).size:
            client = int(np.flatnonzero(groups_n == empty[0])[0])
            raise ConfigError(
                f"algorithm.weighting=examples: client {client}, and each that it is averaged with, has no "
                "training examples, so the weights sum to 0; set algorithm.weighting=equal"
            )
    if run.engine not in ("auto", *task.engines):
        raise ConfigError(
            f"run.engine={run.engine} does not serve task.name={task.name}, which has "
            f"{', '.join(task.engines)}; leave run.engine at auto"
        )
    _refuse_unfit_model(config, task)
    if algorithm.needs_validation and "validation" not in task.splits:
        raise ConfigError(
            f"algorithm.name={algorithm.name} scores models on validation data, and "
            f"{task.lack('validation')}"
        )
    if algorithm.needs_inputs and not task.input_size:
        raise ConfigError(
            f"algorithm.name={algorithm.name} compares inputs as vectors, and those of "
            f"task.name={task.name} are none; choose an algorithm that compares models"
        )
    if algorithm.needs_predictions and not task.prediction_shape(1)[0]:
        raise ConfigError(
            f"algorithm.name={algorithm.name} compares predictions, and task.name={task.name} has none; "
            "give its class shared_inputs, predict and prediction_shape, or choose another algorithm"
        )
    for split in run.eval_splits:
        if split not in task.splits:
            raise ConfigError(
                f"run.eval_splits={list(run.eval_splits)} names {split}, and {task.lack(split)}, or "
                "run.eval_splits=[test]"
            )


def _settings(config: Config, task: Task) -> RunSettings:
    """Return what an algorithm may find unsuited."""
    local, optimizer = config.local, config.optimizer
    return RunSettings(
        clients=task.clients,
        lr=optimizer.lr,
        optimizer=optimizer.name,
        momentum=optimizer.momentum,
        work_key="local.epochs" if local.epochs else "local.steps",
        work=local.epochs or local.steps,
        most_steps=max(local.steps_of(task.train_sizes(), task.batch_size)),
        clip_norm=local.clip_norm,
        taking_part=config.participation.of(task.clients),
    )


def _refuse_unfit_model(config: Config, task: Task) -> None:
    """Try what the model may not be able to do: a batch of one example, a pass over several clients.

    Raises:
        ConfigError: it cannot.
    """
    run, dtype = config.run, getattr(torch, config.run.dtype)
    client = config.local.batch_of_one(
        task.train_sizes(), config.data.batch_size, config.data.accumulation
    )
    if client is not None and (why := why_no_single_example(task, client, dtype)):
        size = task.train_sizes()[client]
        remedies = ["choose another data.batch_size"]
        if config.local.whole_batches_help(
            task.train_sizes(), config.data.batch_size, config.data.accumulation
        ):
            remedies.append(
                f"set local.drop_last=true{'' if config.local.epochs else ' with local.epochs'}"
            )
        raise ConfigError(
            f"model.name={config.model.name} cannot train on a batch of one example ({why}), and "
            f"data.batch_size={config.data.batch_size} gives client {client}, which has {size} training "
            f"example{'s' * (size != 1)}, such a batch; {', '.join(remedies)}, or take "
            "a model without BatchNorm"
        )
    # Tried only where it was asked for: by itself run takes an engine that works.
    if run.engine == "vectorised" and (why := why_not(run.engine, task, dtype)):
        raise ConfigError(
            f"run.engine={run.engine} cannot compute gradients of model.name={config.model.name} ({why}); "
            "leave run.engine at auto"
        )


def set_up_torch(run: RunConfig, cores: int, deterministic: bool, device: torch.device) -> None:
    """Set this process's CPU threads, the precision of a GPU, and whether PyTorch is deterministic.

    `cores`: this rank's share of the host's cores, for `run.threads` 0.
    """
    threads = run.threads or cores
    if deterministic:
        # Kernels split their sums by the number of threads, and each rank would have its own number.
        threads = 1
        if device.type == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if torch.are_deterministic_algorithms_enabled() != deterministic:
        # Even switching it off takes over a second: it imports torch's compiler.
        torch.use_deterministic_algorithms(deterministic)
    if device.type == "cuda":
        precision = "tf32" if run.tf32 == "on" else "ieee"
        torch.backends.cuda.matmul.fp32_precision = precision
        convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
        convolutions.fp32_precision = precision  # torch's own default is tf32
        # Shapes stay the same all through a run, so the fastest kernels are worth a search.
        torch.backends.cudnn.benchmark = not deterministic
    # Its kernels for evaluation have no rule for vmap, and round otherwise than those of training.
    torch.backends.mha.set_fastpath_enabled(False)
    torch.set_num_threads(threads)
