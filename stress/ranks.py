"""Ranks as processes of their own that start fast: forked from a server that has torch loaded already.

They go through `cobo_dist.train.main` with torchrun's environment variables, so that everything but the
launcher is as in a real run.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).resolve()
LAUNCHED_BY = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC", "SLURM",
               "PMI", "OMPI", "MPI_")  # fmt: skip
PRELOADED = ["cobo_dist.train", "stress.ranks", "sklearn.datasets", "torch._inductor.config"]

Plant = tuple[Callable[..., None], tuple[Any, ...]]
"""Something to be put into a rank before it starts: a function of a module, and its arguments."""


def server() -> ForkServerContext:
    """Return the context whose processes are forked from one that has everything loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def load() -> None:
    """Let the server load everything now, so that the next start is as fast as those after it."""
    with environment():
        process = server().Process(target=os.getpid)
        process.start()
        process.join()


@contextmanager
def environment() -> Iterator[None]:
    """Be without a launcher's variables, on one thread, and let new interpreters find these modules."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(LAUNCHED_BY):
            del os.environ[name]
    paths = [str(HERE.parents[1]), str(HERE.parents[2]), *before.get("PYTHONPATH", "").split(":")]
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(filter(None, paths))}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@dataclass(frozen=True)
class Ended:
    """How one rank ended."""

    code: int | None  # negative: by that signal; None: it did not
    seconds: float  # since `Run.mark`, or since the start
    out: str
    err: str

    @property
    def said(self) -> list[str]:
        """Its own lines of complaint."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


class Run:
    """Ranks that were started together."""

    def __init__(self, processes: dict[int, Any], logs: Path) -> None:
        self.processes, self.logs = processes, logs
        self.began = time.monotonic()
        self.seconds: dict[int, float] = {}  # until a rank was seen to have ended

    def mark(self) -> None:
        """Count seconds from now on."""
        self.began = time.monotonic()

    def since(self) -> float:
        """Return the seconds since `mark`, or the start."""
        return time.monotonic() - self.began

    @property
    def lives(self) -> bool:
        """Whether any rank has not ended."""
        return any(process.is_alive() for process in self.processes.values())

    def signal(self, rank: int, number: int) -> None:
        """Send a signal to one rank, if it has not ended."""
        process = self.processes[rank]
        if process.is_alive():
            os.kill(process.pid, number)

    def wait(self, patience: float, which: Sequence[int] | None = None) -> None:
        """Wait until some ranks (by default all) have ended, at most `patience` seconds from `mark`."""
        waited = self.processes.keys() if which is None else which
        while not self.seconds.keys() >= set(waited) and self.since() < patience:
            for rank, process in self.processes.items():
                if rank not in self.seconds and not process.is_alive():
                    self.seconds[rank] = self.since()
            time.sleep(0.005)

    def end(self, patience: float) -> dict[int, Ended]:
        """Wait as `wait` for all ranks, end the rest, and return how each ended."""
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
    plant: Plant | None = None,
    alone: bool = True,
) -> Run:
    """Start ranks of one training.

    Args:
        ranks: how many, or which of them.
        arguments: of `cobo_dist.train`.
        logs: folder for what they print.
        sizes: the WORLD_SIZE that a rank is told, where it is not the number of ranks.
        port: rank 0's; a free one by default.
        plant: put into every rank before it starts.
        alone: no launcher ends the others when one leaves, so none waits for rank 0 to speak first.
    """
    which = list(range(ranks)) if isinstance(ranks, int) else list(ranks)
    port = port or free_port()
    logs.mkdir(parents=True, exist_ok=True)
    processes = {}
    with environment():
        for rank in which:
            size = (sizes or {}).get(rank, len(which))
            told = {
                "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size,
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            }  # fmt: skip
            process = server().Process(
                target=_rank, args=(told, list(arguments), str(logs / str(rank)), plant, alone)
            )
            process.start()
            processes[rank] = process
    return Run(processes, logs)


def _rank(
    told: dict[str, object], arguments: list[str], log: str, plant: Plant | None, alone: bool
) -> None:
    """Be one rank."""
    for number, name in ((1, "out"), (2, "err")):
        handle = os.open(f"{log}.{name}", os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
        os.dup2(handle, number)
        os.close(handle)
    # Buffered like a process of its own, not like the server's terminal.
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    os.environ |= {name: str(value) for name, value in told.items()}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from cobo_dist.cli import train

    if alone:
        train.time = SimpleNamespace(sleep=lambda seconds: None)  # type: ignore[assignment]
    if plant is not None:
        function, given = plant
        function(*given)
    code = train.main(arguments)
    sys.stdout.flush()
    sys.exit(code)


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
    """Return a port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(true: Callable[[], object], run: Run, patience: float) -> bool:
    """Look every few milliseconds until something is true; False if the ranks ended first, or too late."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        if true():
            return True
        if not run.lives:
            return bool(true())
        time.sleep(0.002)
    return False
