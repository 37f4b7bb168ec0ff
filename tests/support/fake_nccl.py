"""NCCL as a run sees it that fails: a batch whose peer is gone never completes.

Gloo carries the messages, and the CPU computes. To wait for such a batch, or to destroy the group meanwhile,
blocks for ever, as kernels on a GPU would.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

FOR_EVER = 600.0


class BatchWork:
    """The one Work of a batch."""

    in_flight: list[BatchWork]

    def __init__(self, works: Sequence[Any]) -> None:
        self._done = threading.Event()
        self._works = works
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        try:
            for work in self._works:
                work.wait()
        except RuntimeError:  # gloo notices that a peer is gone; NCCL would not
            return
        self._done.set()

    def is_completed(self) -> bool:
        """Return whether the batch is done."""
        return self._done.is_set()

    def wait(self) -> None:
        """Block until it is done."""
        if not self._done.wait(FOR_EVER):
            raise AssertionError("nobody aborted the group")


def install(fault: str, rank: int, r: int, place: str) -> None:
    """Let this rank use it, and the rank of that number come to the fault in round r."""
    from cobo_dist.algorithms.cobo import CoBo
    from cobo_dist.comm import nccl_group, session
    from cobo_dist.comm.transports import torch_transport

    batch, destroy = dist.batch_isend_irecv, dist.destroy_process_group
    flying: list[BatchWork] = []

    def batch_isend_irecv(ops: Any) -> list[Any]:
        flying[:] = [work for work in flying if not work.is_completed()]
        flying.append(BatchWork(batch(ops)))
        return flying[-1:]

    def destroy_process_group() -> None:
        if any(not work.is_completed() for work in flying):
            time.sleep(FOR_EVER)
        destroy()

    def start_nccl(launch: Any, seconds: float, device: Any, store: Any) -> None:
        dist.init_process_group("gloo", **session._place(launch, seconds, store))

    dist.batch_isend_irecv = batch_isend_irecv
    dist.destroy_process_group = destroy_process_group
    session.uses_nccl = torch_transport.uses_nccl = lambda device: True
    session._start_nccl = start_nccl
    nccl_group.abort_group = Path(place, f"aborted_{os.environ['RANK']}").touch
    good = CoBo.round

    def bad_round(self: CoBo, t: int) -> Any:
        if t == r - 1 and os.environ["RANK"] == str(rank):
            Path(place, "fault").touch()
            FAULTS[fault]()
        return good(self, t)

    CoBo.round = bad_round  # type: ignore[method-assign]


def _raise() -> None:
    raise ValueError("a bug")


def _run_out_of_memory() -> None:
    """In a wait for messages, where errors otherwise mean that contact was lost."""

    def is_completed(self: BatchWork) -> bool:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    BatchWork.is_completed = is_completed  # type: ignore[method-assign]


def _break_gpu() -> None:
    def is_completed(self: BatchWork) -> bool:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    BatchWork.is_completed = is_completed  # type: ignore[method-assign]


def _block() -> None:
    """Be in a call that no signal and no Python handler interrupts."""
    signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1}
    )  # another thread gets them
    ctypes.CDLL(None).usleep(int(1e6 * 100))


FAULTS: dict[str, Callable[[], None]] = {
    "raises": _raise,
    "memory": _run_out_of_memory,
    "gpu": _break_gpu,
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "late": lambda: time.sleep(6.0),
    "blocked": _block,
    "none": lambda: None,
}
