"""The launch environment: torchrun, srun, mpirun and plain python are all read into one `Launch` record."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cobo_dist.comm.transports.mpi_world import start_mpi
from cobo_dist.errors import ConfigError, HostConfigError
from cobo_dist.host import open_files_limit

TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SLURM = ("SLURM_PROCID", "SLURM_NTASKS")
SLURM_STEP_TASKS = "SLURM_STEP_NUM_TASKS"
"""The tasks that one srun started. In an interactive shell of a job SLURM_NTASKS is that of the job."""
BATCH_JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")


@dataclass(frozen=True)
class Launch:
    """This process's place among all that were started together."""

    launcher: str  # torchrun, srun, mpirun or python
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    address: str  # where rank 0's store listens; unused by one rank
    port: int
    cores: int = 1  # CPU cores for this rank
    restarts: int = 0  # how often the launcher has started this run again
    job: str = ""  # torchrun's name of the run, the same at all its starts; empty: it has none
    batch_job: str = ""  # the batch system's id of the job, else `job`: names the run for people
    notice: str = ""  # what the user may not expect of this launch, and what to type instead

    @property
    def place(self) -> str:
        """Where rank 0's store listens: `node1:29500`."""
        return f"{self.address}:{self.port}"


def guess_rank(env: Mapping[str, str]) -> int:
    """Return the rank as far as it is known before the launch environment is checked."""
    for name in ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"):
        if env.get(name, "").isdigit():
            return int(env[name])
    return 0


def read_launch(env: Mapping[str, str]) -> Launch:
    """Read the launch record from the environment. torchrun's variables win over MPI's and SLURM's.

    torchrun counts its restarts after a failure, SLURM those of a requeued job. Where nodes join or leave,
    torchrun starts ranks again without counting: then only its run id (`job`) is the same.

    Raises:
        ConfigError: the launch environment is set only in part, or contradicts itself.
    """
    counts = [
        _number(env, name, 0) for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    ]
    job = env.get("TORCHELASTIC_RUN_ID", "")
    if job == "none":  # its default without --rdzv-id
        job = ""
    batch_job = next((env[name] for name in BATCH_JOBS if env.get(name)), job)
    return replace(_read_launch(env), restarts=sum(counts), job=job, batch_job=batch_job)


def needed_open_files(ranks: int) -> int:
    """Return how many files and connections a rank has open at most; measured on 4 and 8 ranks."""
    return 24 + 3 * ranks


def check_open_files(launch: Launch) -> None:
    """Check that this rank may open a connection to every other one.

    Raises:
        ConfigError: `ulimit -n` allows too few; libraries that run into it often do not say so. A
            HostConfigError on one rank of a host, which speaks for all of its ranks.
    """
    limit, needed = open_files_limit(), needed_open_files(launch.world_size)
    if limit < needed:
        kind = ConfigError if launch.local_rank else HostConfigError
        raise kind(
            f"`ulimit -n` lets a process open {limit:,} files and connections, and each of "
            f"{launch.world_size:,} rank(s) needs up to {needed:,}; raise the hard limit "
            "(`ulimit -Hn`), or start fewer ranks"
        )


def _read_launch(env: Mapping[str, str]) -> Launch:
    """Return the record without restarts.

    An mpirun inside a SLURM job passes its own SLURM variables on to every rank, so its variables are
    looked for first. PMI_RANK alone may come from srun, so it is looked for last.
    """
    if any(name in env for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")):
        return _from_torchrun(env)
    if "OMPI_COMM_WORLD_RANK" in env or "MPI_LOCALRANKID" in env:
        return _from_mpirun()
    # A batch script has a task (SLURM_TASK_PID) but no step: there python runs once, not once a task.
    in_step = "SLURM_STEP_ID" in env or "SLURM_TASK_PID" not in env
    if "SLURM_PROCID" in env and in_step:
        return _from_srun(env)
    if "PMI_RANK" in env or "PMIX_RANK" in env:
        return _from_mpirun()
    if "SLURM_PROCID" in env:
        if _number(env, "SLURM_NTASKS", 1) > 1:
            raise ConfigError(
                f"SLURM gave this job {env['SLURM_NTASKS']} tasks but python was started only once; "
                "start it with `srun python -m cobo_dist.train ...` or with torchrun"
            )
    elif "MASTER_ADDR" in env or "MASTER_PORT" in env:
        raise _half_set(env, TORCHRUN)
    alone = Launch("python", 0, 1, 0, 1, "127.0.0.1", 0, _cores(1))
    tasks = _number(env, "SLURM_NTASKS", 1) if "SLURM_JOB_ID" in env else 1
    if tasks > 1:  # the shell of salloc, which is outside any step
        notice = (
            f"this shell is in a SLURM allocation of {tasks} tasks, but outside srun, so this is one rank; "
            f"for {tasks} ranks type: srun --ntasks={tasks} python -m cobo_dist.train ..."
        )
        return replace(alone, notice=notice)
    return alone


def _cores(local_world_size: int) -> int:
    """Return this rank's share of the cores that the process may use."""
    return max(1, len(os.sched_getaffinity(0)) // local_world_size)


def _from_torchrun(env: Mapping[str, str]) -> Launch:
    if any(name not in env for name in TORCHRUN):
        raise _half_set(env, (*TORCHRUN, "LOCAL_RANK"))
    rank, world_size = _number(env, "RANK"), _number(env, "WORLD_SIZE")
    local_world_size = _number(env, "LOCAL_WORLD_SIZE", world_size)
    return _checked(
        Launch(
            "torchrun",
            rank,
            world_size,
            _number(env, "LOCAL_RANK", rank),
            local_world_size,
            env["MASTER_ADDR"],
            _number(env, "MASTER_PORT"),
            _cores(max(1, local_world_size)),
        ),
        "RANK",
        "WORLD_SIZE",
    )


def _from_srun(env: Mapping[str, str]) -> Launch:
    size_name = SLURM_STEP_TASKS if env.get(SLURM_STEP_TASKS) else "SLURM_NTASKS"
    if "SLURM_PROCID" not in env or size_name not in env:
        raise _half_set(env, SLURM)
    size, of_job = _number(env, size_name), _number(env, "SLURM_NTASKS", 1)
    notice = ""
    if size == 1 < of_job:
        notice = (
            f"this step of the SLURM job has 1 of the job's {of_job} tasks, as an interactive shell has, so "
            f"this is one rank; for {of_job} ranks type: srun --overlap --ntasks={of_job} python -m "
            "cobo_dist.train ..."
        )
    job = _number(env, "SLURM_JOB_ID", 0)
    # Below 32768 the kernel hands out no ephemeral ports; the job id keeps two jobs of a node apart.
    port = _number(env, "MASTER_PORT", 20000 + job % 10000)
    tasks = env.get("SLURM_STEP_TASKS_PER_NODE", env.get("SLURM_NTASKS_PER_NODE", ""))
    on_node = _tasks_on_node(tasks, _number(env, "SLURM_NODEID", 0))
    return _checked(
        Launch(
            "srun",
            _number(env, "SLURM_PROCID"),
            size,
            _number(env, "SLURM_LOCALID", 0),
            on_node,
            env.get("MASTER_ADDR") or _first_host(env.get("SLURM_JOB_NODELIST", "")),
            port,
            _number(env, "SLURM_CPUS_PER_TASK", _cores(on_node)),
            notice=notice,
        ),
        "SLURM_PROCID",
        size_name,
    )


def _from_mpirun() -> Launch:
    mpi = start_mpi("started by mpirun").mpi
    world: Any = mpi.COMM_WORLD
    node = world.Split_type(mpi.COMM_TYPE_SHARED)
    address, port = world.bcast((socket.gethostname(), _free_port()) if world.rank == 0 else None)
    if world.size == node.size:
        address = "127.0.0.1"
    cores = _cores(node.size)
    return Launch("mpirun", world.rank, world.size, node.rank, node.size, address, port, cores)


def _checked(launch: Launch, rank_name: str, size_name: str) -> Launch:
    if not 0 <= launch.rank < launch.world_size:
        raise ConfigError(
            f"{rank_name}={launch.rank} is outside 0..{size_name}-1 = {launch.world_size - 1}; "
            "let the launcher set both"
        )
    return launch


def _half_set(env: Mapping[str, str], names: tuple[str, ...]) -> ConfigError:
    given = ", ".join(f"{name}={env[name]}" for name in names if name in env)
    missing = ", ".join(name for name in names if name not in env and name != "LOCAL_RANK")
    return ConfigError(
        f"the launch environment is only half set: {given} but no {missing}; "
        "start with torchrun, srun or mpirun, or unset them to run one process"
    )


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    if default is not None and not env.get(name):
        return default
    try:
        return int(env[name])
    except ValueError:
        raise ConfigError(
            f"{name}={env[name]!r} is not a whole number; let the launcher set it"
        ) from None


def _tasks_on_node(spec: str, node: int) -> int:
    """Read SLURM's per-node list, for example `2(x3),1`: 2 tasks on nodes 0 to 2, 1 on node 3."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", spec):
        counts += [int(count)] * int(times or 1)
    return max(1, counts[min(node, len(counts) - 1)]) if counts else 1


def _first_host(nodelist: str) -> str:
    if shutil.which("scontrol") and nodelist:
        answer = subprocess.run(
            ["scontrol", "show", "hostnames", nodelist], capture_output=True, text=True, check=False
        )
        if answer.returncode == 0 and answer.stdout.strip():
            return answer.stdout.split()[0]
    if not nodelist:
        raise ConfigError(
            "SLURM_JOB_NODELIST is not set, so rank 0's host is unknown; set MASTER_ADDR to it"
        )
    # Without scontrol (a container): the first name of `gpu[03-05,9]_a[1-2],cpu1` is gpu03_a1.
    shortest = re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", nodelist)
    return shortest.split(",")[0]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
