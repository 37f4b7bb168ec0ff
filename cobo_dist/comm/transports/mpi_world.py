"""MPI as a process sees it: started only where a launcher or `comm.backend=mpi` asks, left by one door.

MPI_Finalize waits for every rank, and a rank that waits for a message never gets there: a run with one
bad rank would hang for ever. So every process meets the others at a door as it ends. Where all come,
whatever their exit codes, they end in order; where one that failed waits in vain, it ends all (Abort).
Only the main thread calls MPI.
"""

from __future__ import annotations

import atexit
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

from cobo_dist.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, ConfigError

EXIT_BARRIER_SECONDS = 5.0
"""Seconds that a failed rank waits at the door; more than the pause in which rank 0 speaks first."""
NAP = 0.002


@dataclass
class MpiWorld:
    """What this process knows of MPI."""

    mpi: Any  # mpi4py.MPI
    comm: Any  # for models and records
    door: Any  # for nothing but leaving, so that no other call can be mistaken for it
    code: int = EXIT_FAILED  # whoever ends without a word has failed
    unfinished: set[object] = field(default_factory=set)
    """Messages that MPI still has hold of: their buffers must live on, and MPI_Finalize may wait."""

    @property
    def library(self) -> str:
        """What carries models and records, in words, with versions."""
        name = " ".join(self.mpi.Get_library_version().splitlines()[0].split(",")[0].split())
        standard = ".".join(map(str, self.mpi.Get_version()))
        return f"mpi: {name} (MPI {standard}, mpi4py {sys.modules['mpi4py'].__version__})"


_world: MpiWorld | None = None


def start_mpi(why: str) -> MpiWorld:
    """Return MPI's world; the first call starts MPI, and all ranks must make it.

    mpi4py's own start asks for MPI_THREAD_MULTIPLE. One thread needs less, but the progress threads
    that some libraries offer (MPICH_ASYNC_PROGRESS) need that much.

    Args:
        why: what asks for MPI, for the refusal.

    Raises:
        ConfigError: no mpi4py, or one that cannot count more than 2 GiB, or no MPI library.
    """
    global _world
    if _world is None:
        try:
            import mpi4py
            from mpi4py import MPI as mpi
        except (ImportError, RuntimeError) as error:  # without a library, mpi4py says RuntimeError
            reason = (str(error).splitlines() or [repr(error)])[0]
            raise ConfigError(
                f"{why}, but mpi4py cannot be loaded ({reason}); pip install 'cobo_dist[mpi]' (and "
                "mpich, where there is no MPI), or start with torchrun and comm.backend=gloo"
            ) from error
        if int(mpi4py.__version__.partition(".")[0]) < 4:
            raise ConfigError(
                f"{why}, but mpi4py {mpi4py.__version__} cannot send messages of 2 GiB and more; "
                "pip install 'cobo_dist[mpi]', which brings mpi4py 4"
            )
        everyone: Any = mpi.COMM_WORLD
        _world = MpiWorld(mpi, everyone.Dup(), everyone.Dup())
        atexit.register(_wait_for_all_ranks, _world)
    return _world


def exit_barrier(code: int) -> NoReturn:
    """End this process with an exit code, under MPI through the door."""
    if _world is not None:
        _world.code = code
    sys.exit(code)


def _wait_for_all_ranks(world: MpiWorld) -> None:
    """Wait until all ranks end; a rank that failed ends them after `EXIT_BARRIER_SECONDS` seconds.

    Runs as Python exits, after tracebacks are printed and before mpi4py calls MPI_Finalize.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # whoever read along may have left
            stream.flush()
    # Of these two all ranks know, so all will come, however long the last files take.
    patience = float("inf") if world.code in (EXIT_DONE, EXIT_STOPPED) else EXIT_BARRIER_SECONDS
    # MPI_Finalize would wait too, but with a core at full speed.
    if not _everyone_comes(world, patience) or world.unfinished:
        world.mpi.COMM_WORLD.Abort(world.code or EXIT_FAILED)


def _everyone_comes(world: MpiWorld, patience: float) -> bool:
    until = time.monotonic() + patience
    try:
        arrived = world.door.Ibarrier()
        while not arrived.Test():
            if time.monotonic() > until:
                return False
            time.sleep(NAP)
    except world.mpi.Exception:  # a rank has died
        return False
    return True
