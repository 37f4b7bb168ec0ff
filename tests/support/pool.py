"""Ranks that are started once and reused by every test: four processes that connect as needed.

`RankPool` connects them by gloo; `VirtualCudaPool` gives them virtual GPUs; the ranks of `MpiPool` are
started by a real mpirun and use MPI.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import secrets
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virtual_cuda import virtual_cuda

if TYPE_CHECKING:
    from cobo_dist.comm.session import Session
    from cobo_dist.comm.startup.launch_env import Launch

TIMEOUT = 120.0
Connect = Callable[["Launch", float], Any]


class RankPool:
    """Long-lived worker processes; `run` makes the first R of them ranks of one process group."""

    device = "cpu"

    def __init__(self, size: int = 4) -> None:
        self.pipes: list[Connection] = []
        self.jobs = 0
        self.start(size)

    def start(self, size: int) -> None:
        """Start the workers and open a pipe to each."""
        context = multiprocessing.get_context("spawn")
        self.workers = []
        for _ in range(size):
            ours, theirs = context.Pipe()
            worker = context.Process(target=_serve_torch, args=(theirs, self.device), daemon=True)
            worker.start()
            self.pipes.append(ours)
            self.workers.append(worker)

    def run(
        self, ranks: int, function: Callable[..., Any], *args: Any, timeout: float = 60.0
    ) -> list[Any]:
        """Call `function(session, *args)` on every rank; return the results by rank.

        What the ranks post is recorded, and checked against NCCL's rules if none of them raised: so every
        test that uses the pool tests those rules too. `timeout` is comm.timeout, in seconds.

        Raises:
            AssertionError: with the tracebacks of all ranks that raised.
            NcclRuleBroken: gloo carried what NCCL would not.
        """
        from cobo_dist.comm.transports.nccl_rules import check_schedule

        answers = self._run(ranks, function, args, timeout)
        check_schedule({rank: batches for rank, (_, batches) in enumerate(answers)})
        return [value for value, _ in answers]

    def run_broken(
        self, ranks: int, function: Callable[..., Any], *args: Any, timeout: float = 60.0
    ) -> list[Any]:
        """As `run`, without the check of NCCL's rules."""
        return [value for value, _ in self._run(ranks, function, args, timeout)]

    def _run(
        self, ranks: int, function: Callable[..., Any], args: tuple[Any, ...], timeout: float
    ) -> list[Any]:
        port = free_port()
        self.jobs += 1
        for rank, pipe in enumerate(self.pipes[:ranks]):
            pipe.send((self.jobs, rank, ranks, port, timeout, function, args))
        results, failures = [], []
        for rank, pipe in enumerate(self.pipes[:ranks]):
            job = -1
            while job != self.jobs:  # a late answer to an earlier job
                if not pipe.poll(TIMEOUT):
                    break
                job, fine, value = pipe.recv()
            if job != self.jobs:
                failures.append(f"rank {rank} did not answer within {TIMEOUT} s")
                continue
            results.append(value)
            if not fine:
                failures.append(f"rank {rank}:\n{value}")
        assert not failures, "\n".join(failures)
        return results

    def close(self) -> None:
        """End the workers."""
        for pipe in self.pipes:
            pipe.send(None)
        for worker in self.workers:
            worker.join(10)
            if worker.is_alive():
                worker.kill()


class VirtualCudaPool(RankPool):
    """The same on virtual GPUs: models travel under NCCL's rules."""

    device = "cuda:0"


class MpiPool(RankPool):
    """The same over MPI: one mpirun; the first R of its ranks use their own communicator."""

    def __init__(self, mpirun: list[str], env: dict[str, str], size: int = 4) -> None:
        self.command, self.env = mpirun, env
        super().__init__(size)

    def start(self, size: int) -> None:
        """Start the workers by mpirun; each connects back and sends its rank."""
        key = secrets.token_hex()
        with Listener(None, "AF_UNIX", backlog=size, authkey=key.encode()) as listener:
            self.mpirun = subprocess.Popen(
                [*self.command, str(Path(__file__)), str(listener.address)],
                # The workers unpickle functions of test modules, so they need pytest's sys.path.
                env={**self.env, "POOL_KEY": key, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
            listener._listener._socket.settimeout(TIMEOUT)  # type: ignore[attr-defined]  # not for ever
            pipes = {}
            for _ in range(size):
                pipe = listener.accept()
                pipes[pipe.recv()] = pipe
        self.pipes = [pipes[rank] for rank in range(size)]

    def close(self) -> None:
        """End the workers; if tests left messages in flight, they end by MPI_Abort."""
        for pipe in self.pipes:
            pipe.send(None)
        try:
            self.mpirun.wait(20)
        except subprocess.TimeoutExpired:
            self.mpirun.kill()


def _serve(pipe: Connection, launcher: str, connect: Connect) -> None:
    import torch
    from recording import RecordingTransport

    from cobo_dist.comm.startup.launch_env import Launch

    torch.set_num_threads(1)
    while (job := pipe.recv()) is not None:
        number, rank, ranks, port, timeout, function, args = job
        launch = Launch(launcher, rank, ranks, rank, ranks, "127.0.0.1", port)
        try:
            with connect(launch, timeout) as session:
                recorder = RecordingTransport(session.transport)
                value = function(dataclasses.replace(session, transport=recorder), *args)
                answer = (number, True, (value, recorder.batches))
            pipe.send(answer)
        except BaseException:
            pipe.send((number, False, traceback.format_exc()))


def _serve_torch(pipe: Connection, device: str) -> None:
    import torch
    import torch.distributed as dist

    from cobo_dist.comm.config import CommConfig
    from cobo_dist.comm.session import open_session

    @contextmanager
    def connect(launch: Launch, timeout: float) -> Any:
        config = CommConfig(timeout=timeout)
        try:
            with open_session(launch, config, torch.device(device)) as session:
                yield session
        finally:  # with NCCL, a run that fails leaves its group to the end of the process
            if dist.is_initialized():
                dist.destroy_process_group()

    with nullcontext() if device == "cpu" else virtual_cuda():
        _serve(pipe, "python", connect)


def _serve_mpi(address: str) -> None:
    import torch

    from cobo_dist.comm.session import Session
    from cobo_dist.comm.transports.mpi_transport import open_mpi
    from cobo_dist.comm.transports.mpi_world import exit_barrier, start_mpi

    world = start_mpi("the tests use MPI")

    @contextmanager
    def connect(launch: Launch, timeout: float) -> Iterator[Session]:
        comm = world.comm.Create_group(world.comm.group.Incl(range(launch.world_size)))
        before = len(world.unfinished)
        with open_mpi(launch, timeout, comm) as transport:
            yield Session(launch, torch.device("cpu"), transport)
        if len(world.unfinished) == before:
            comm.Free()

    with Client(address, "AF_UNIX", authkey=os.environ["POOL_KEY"].encode()) as pipe:
        pipe.send(world.comm.rank)
        _serve(pipe, "mpirun", connect)
    exit_barrier(0)


def free_port() -> int:
    """Return a free port of this host."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    _serve_mpi(sys.argv[1])
