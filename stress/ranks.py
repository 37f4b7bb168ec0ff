"""Ranks as processes that start fast: they are forked from a server that has already imported torch.

They call `cobo_dist.train.main` with torchrun's environment variables, so only the launcher differs from a
real run.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
LAUNCHED_BY = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC", "SLURM",
               "PMI", "OMPI", "MPI_")  # fmt: skip
PRELOADED = ["cobo_dist.train", "stress.ranks", "torch._inductor.config"]

Fault = tuple[Callable[..., None], tuple[Any, ...]]
"""A function of a module that injects a fault into a rank before it starts, and its arguments."""


def server() -> ForkServerContext:
    """Return the context whose processes are forked from a server that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def load() -> None:
    """Start the server, so that the next start of a rank is as fast as the later ones."""
    with environment():
        process = server().Process(target=os.getpid)
        process.start()
        process.join()


@contextmanager
def environment() -> Iterator[None]:
    """Remove a launcher's variables, use one thread, and let new interpreters import this package."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(LAUNCHED_BY):
            del os.environ[name]
    paths = [str(REPOSITORY), *before.get("PYTHONPATH", "").split(":")]
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(filter(None, paths))}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@dataclass(frozen=True)
class Ended:
    """How one rank ended."""

    code: int | None  # negative: the signal that ended it; None: it was still running
    seconds: float  # since `Run.restart_clock`, or since the start
    out: str
    err: str

    @property
    def said(self) -> list[str]:
        """Its error lines."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


class Run:
    """Ranks that were started together."""

    def __init__(self, processes: dict[int, Any], logs: Path) -> None:
        self.processes, self.logs = processes, logs
        self.began = time.monotonic()
        self.seconds: dict[int, float] = {}  # until a rank was seen to have ended

    def restart_clock(self) -> None:
        """Measure seconds from now on."""
        self.began = time.monotonic()

    def since(self) -> float:
        """Return the seconds since `restart_clock`, or the start."""
        return time.monotonic() - self.began

    @property
    def is_alive(self) -> bool:
        """Whether any rank has not ended."""
        return any(process.is_alive() for process in self.processes.values())

    def signal(self, rank: int, number: int) -> None:
        """Send a signal to one rank, if it has not ended."""
        process = self.processes[rank]
        if process.is_alive():
            os.kill(process.pid, number)

    def wait(self, patience: float, which: Sequence[int] | None = None) -> None:
        """Wait until all ranks, or `which`, have ended, at most `patience` seconds from `restart_clock`."""
        waited = self.processes.keys() if which is None else which
        while not self.seconds.keys() >= set(waited) and self.since() < patience:
            for rank, process in self.processes.items():
                if rank not in self.seconds and not process.is_alive():
                    self.seconds[rank] = self.since()
            time.sleep(0.005)

    def end(self, patience: float) -> dict[int, Ended]:
        """Wait for all ranks as `wait` does, kill the rest, and return how each ended."""
        self.wait(patience)
        ended = {}
        for rank, process in self.processes.items():
            code = process.exitcode
            if code is None:
                process.kill()
                process.join()
            out, err = (
                (self.logs / f"{rank}.{name}").read_text(errors="replace")
                for name in ("out", "err")
            )
            ended[rank] = Ended(code, self.seconds.get(rank, patience), out, err)
            process.close()
        return ended


def start(
    ranks: Sequence[int] | int,
    arguments: Sequence[str],
    logs: Path,
    *,
    sizes: dict[int, int] | None = None,
    port: int | None = None,
    fault: Fault | None = None,
    alone: bool = True,
    variables: Callable[[int], Mapping[str, object]] = lambda rank: {},
) -> Run:
    """Start ranks of one training.

    Args:
        ranks: how many, or which of them.
        arguments: of `cobo_dist.train`.
        logs: folder for what they print.
        sizes: the WORLD_SIZE of a rank, where it is not the number of ranks.
        port: rank 0's; a free one by default.
        fault: injected into every rank before it starts.
        alone: no launcher kills the others when one rank exits, so no rank waits for rank 0's message.
        variables: of a rank's environment, where they are not those of ranks on one host.
    """
    which = list(range(ranks)) if isinstance(ranks, int) else list(ranks)
    port = port or free_port()
    logs.mkdir(parents=True, exist_ok=True)
    processes = {}
    with environment():
        for rank in which:
            size = (sizes or {}).get(rank, len(which))
            env = {
                "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size,
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **variables(rank),
            }  # fmt: skip
            process = server().Process(
                target=_rank, args=(env, list(arguments), str(logs / str(rank)), fault, alone)
            )
            process.start()
            processes[rank] = process
    return Run(processes, logs)


def _rank(
    variables: dict[str, object], arguments: list[str], log: str, fault: Fault | None, alone: bool
) -> None:
    """Run one rank."""
    for number, name in ((1, "out"), (2, "err")):
        handle = os.open(f"{log}.{name}", os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
        os.dup2(handle, number)
        os.close(handle)
    # Buffered like a process of its own, not like the server's terminal.
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    os.environ |= {name: str(value) for name, value in variables.items()}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from cobo_dist import train
    from cobo_dist.cli import parser
    from cobo_dist.comm.startup import start_guard
    from cobo_dist.comm.transports.mpi_world import exit_barrier

    if alone:
        parser.RANK_0_FIRST_SECONDS = start_guard.RANK_0_FIRST_SECONDS = 0.0
    if fault is not None:
        function, given = fault
        function(*given)
    code = train.main(arguments)
    sys.stdout.flush()
    exit_barrier(code)


def finished(ranks: int, arguments: Sequence[str], logs: Path, patience: float = 900.0) -> None:
    """Run a training to its end.

    Raises:
        RuntimeError: it did not end well.
    """
    ended = start(ranks, arguments, logs).end(patience)
    if any(one.code != 0 for one in ended.values()):
        words = [f"rank {k}: {one.code} {one.err[-500:]}" for k, one in ended.items()]
        raise RuntimeError(f"{' '.join(arguments)} ended badly: {'; '.join(words)}")


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(true: Callable[[], object], run: Run, patience: float) -> bool:
    """Poll a condition every 2 ms; return False if all ranks ended first, or after `patience` seconds."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        if true():
            return True
        if not run.is_alive:
            return bool(true())
        time.sleep(0.002)
    return False
