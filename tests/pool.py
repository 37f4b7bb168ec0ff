"""Ranks that are started once and reused by every test: four processes that connect as needed."""

from __future__ import annotations

import multiprocessing
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

TIMEOUT = 120.0


class RankPool:
    """Long-lived worker processes; `run` makes the first R of them ranks of one process group."""

    def __init__(self, size: int = 4) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        self.workers = []
        self.jobs = 0
        for _ in range(size):
            ours, theirs = context.Pipe()
            worker = context.Process(target=_serve, args=(theirs,), daemon=True)
            worker.start()
            self.pipes.append(ours)
            self.workers.append(worker)

    def run(self, ranks: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Call `function(session, *args)` on every rank; return the results by rank.

        Raises:
            AssertionError: with the tracebacks of all ranks that raised.
        """
        port = _free_port()
        self.jobs += 1
        for rank, pipe in enumerate(self.pipes[:ranks]):
            pipe.send((self.jobs, rank, ranks, port, function, args))
        results, failures = [], []
        for rank, pipe in enumerate(self.pipes[:ranks]):
            job = -1
            while job != self.jobs:  # an answer to an earlier job came too late to count
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


def _serve(pipe: Connection) -> None:
    import torch

    from cobo_dist.comm.launch import Launch
    from cobo_dist.comm.session import CommConfig, open_session

    torch.set_num_threads(1)
    while (job := pipe.recv()) is not None:
        number, rank, ranks, port, function, args = job
        launch = Launch("python", rank, ranks, rank, ranks, "127.0.0.1", port)
        try:
            config = CommConfig(timeout=60.0)
            with open_session(launch, config, torch.device("cpu")) as session:
                answer = (number, True, function(session, *args))
            pipe.send(answer)
        except BaseException:
            pipe.send((number, False, traceback.format_exc()))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
