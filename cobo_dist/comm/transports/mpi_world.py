"""MPI's life in one process: when it starts, and how all ranks leave it together.

MPI starts only where a launcher or `comm.backend=mpi` asks for it. MPI_Finalize blocks until every rank calls
it, and a rank that waits for a message never does: one failed rank would hang the job. So every process
enters a barrier as it exits. If all ranks arrive, they finalize, whatever their exit codes. If a rank failed
and the others do not arrive within `EXIT_BARRIER_SECONDS`, it calls MPI_Abort, which ends them. Only the main
thread calls MPI.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from cobo_dist import terminal
from cobo_dist.comm import nccl_group
from cobo_dist.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, ConfigError

EXIT_BARRIER_SECONDS = 5.0
"""How long a failed rank waits for the others. Other ranks let rank 0 print its error first, for 3 s."""
EXIT_POLL_SECONDS = 0.002


@dataclass
class MpiWorld:
    """What this process knows of MPI."""

    mpi: Any  # mpi4py.MPI
    comm: Any  # for models and records
    exit_comm: Any  # for the exit barrier alone, so that no other call can match it
    code: int = EXIT_FAILED  # a process that ends without `exit_barrier` has failed
    unfinished: set[object] = field(default_factory=set)
    """Messages in flight. Their buffers must stay alive, and MPI_Finalize may wait for them."""
    is_cuda_aware: bool = False  # it sends from and receives into memory of a GPU

    @property
    def library(self) -> str:
        """The name and versions of the MPI library."""
        name = " ".join(self.mpi.Get_library_version().splitlines()[0].split(",")[0].split())
        standard = ".".join(map(str, self.mpi.Get_version()))
        return f"mpi: {name} (MPI {standard}, mpi4py {sys.modules['mpi4py'].__version__})"


_world: MpiWorld | None = None


def start_mpi(reason: str) -> MpiWorld:
    """Return this process's MPI; the first call starts it, and all ranks must make that call.

    mpi4py starts MPI with MPI_THREAD_MULTIPLE. One thread needs less, but the progress threads of some
    libraries (MPICH_ASYNC_PROGRESS) need that much.

    Args:
        reason: what asks for MPI, for the error message.

    Raises:
        ConfigError: there is no mpi4py, it is older than 4 and cannot count more than 2 GiB, or there is
            no MPI library.
    """
    global _world
    if _world is None:
        try:
            import mpi4py
            from mpi4py import MPI as mpi
        except (ImportError, RuntimeError) as error:  # RuntimeError: there is no MPI library
            cause = (str(error).splitlines() or [repr(error)])[0]
            raise ConfigError(
                f"{reason}, but mpi4py cannot be loaded ({cause}); pip install 'cobo_dist[mpi]' (and "
                "mpich, where there is no MPI), or start with torchrun and comm.backend=gloo"
            ) from error
        if int(mpi4py.__version__.partition(".")[0]) < 4:
            raise ConfigError(
                f"{reason}, but mpi4py {mpi4py.__version__} cannot send messages of 2 GiB and more; "
                "pip install 'cobo_dist[mpi]', which brings mpi4py 4"
            )
        everyone: Any = mpi.COMM_WORLD
        aware = any(map(is_cuda_aware, loaded_libraries("libmpi")))
        _world = MpiWorld(mpi, everyone.Dup(), everyone.Dup(), is_cuda_aware=aware)
        atexit.register(_wait_for_all_ranks, _world)
    return _world


def is_cuda_aware(library: Any) -> bool:
    """Return whether an MPI library says that it can use memory of a GPU; one that does not say cannot.

    mpi4py has no name for this extension of Open MPI and MPICH.
    """
    query = getattr(library, "MPIX_Query_cuda_support", None)
    if query is None:
        return False
    query.argtypes, query.restype = [], ctypes.c_int
    return bool(query())


def loaded_libraries(prefix: str) -> list[ctypes.CDLL]:
    """Return the shared libraries of this process whose file names begin so (Linux; none elsewhere)."""
    paths: list[str] = []
    with suppress(OSError):
        lines = Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines()
        paths = sorted({line.split(maxsplit=5)[5] for line in lines if "/" in line})
    found = []
    for path in paths:
        if Path(path).name.startswith(prefix):
            with suppress(OSError):  # RTLD_NOLOAD: only what is loaded already
                found.append(ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW))
    return found


def set_exit_code(code: int) -> None:
    """Say with which code this process is to end, where it goes on after a run."""
    if _world is not None:
        _world.code = code


def exit_barrier(code: int) -> NoReturn:
    """End this process with an exit code; if MPI is started, all ranks wait for one another first.

    After a failure with NCCL this process waits for nobody (`nccl_group`).
    """
    nccl_group.end_process(code)
    set_exit_code(code)
    sys.exit(code)


def _wait_for_all_ranks(world: MpiWorld) -> None:
    """Enter the exit barrier; end all ranks if they do not arrive in time, or leave messages behind.

    Runs as Python exits, after it prints tracebacks and before mpi4py calls MPI_Finalize.
    """
    terminal.flush()
    # All ranks reach these two codes together, so all will arrive, however long the last files take.
    in_order = world.code in (EXIT_DONE, EXIT_STOPPED)
    # MPI_Finalize would wait as well, but with one core at full load.
    arrived = _all_arrive(world, float("inf") if in_order else EXIT_BARRIER_SECONDS)
    if not arrived or world.unfinished:
        world.mpi.COMM_WORLD.Abort(world.code or EXIT_FAILED)


def _all_arrive(world: MpiWorld, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    try:
        barrier = world.exit_comm.Ibarrier()
        while not barrier.Test():
            if time.monotonic() > deadline:
                return False
            time.sleep(EXIT_POLL_SECONDS)
    except world.mpi.Exception:  # a rank has died
        return False
    return True
