"""The transport over MPI: the tensors' own memory, without a copy, by Isend and Irecv.

Everything travels as bytes, so that bfloat16, which MPI has no name for, is nothing special. mpi4py 4
counts in 64 bits, so a message may be longer than 2 GiB. No call of MPI ever blocks: waiting polls, so
that `comm.timeout` holds and a rank that fails can tell the others.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from torch import Tensor

from cobo_dist.comm.startup.launch_env import Launch
from cobo_dist.comm.transports.base import (
    NothingPending,
    Pending,
    as_lost_contact,
    check_message,
    posting_order,
)
from cobo_dist.comm.transports.mpi_world import MpiWorld, start_mpi
from cobo_dist.errors import ConfigError, HostConfigError

MESSAGE, FAILURE = 0, 1  # tags; a failing rank's word must not be taken for a model

SPIN = 0.002
"""Seconds of polling without a pause. Most messages are there by then, and a pause costs 0.05 ms."""
SHORTEST_NAP, LONGEST_NAP = 5e-5, 2e-4


class MpiTransport:
    """Models and records over one MPI communicator that nobody else uses; see `Transport`.

    Args:
        world: MPI.
        comm: the communicator.
        timeout: seconds after which a silent rank counts as lost.
    """

    def __init__(self, world: MpiWorld, comm: Any, timeout: float) -> None:
        self.world, self.comm, self.timeout = world, comm, timeout
        self.rank: int = comm.rank
        self.world_size: int = comm.size
        self._has_told = False  # that it failed

    def exchange(
        self, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor], purpose: str
    ) -> Pending:
        """Post all sends and receives, ordered by peer."""
        operations = posting_order(sends, receives)
        for _, peer, tensor in operations:  # all of them, before the first is posted
            check_message(tensor, self.rank, peer, self.world_size)
            if tensor.device.type != "cpu":
                raise ValueError(f"MPI moves CPU tensors, not one on {tensor.device}")
        if not operations:
            return NothingPending()
        peers = ", ".join(map(str, sorted({*sends, *receives})))
        pending = _MpiPending(self, f"exchanging {purpose} with rank(s) {peers}")
        with pending.as_lost_contact():
            for kind, peer, tensor in operations:
                size = tensor.numel() * tensor.element_size()
                memory = self.world.mpi.buffer.fromaddress(tensor.data_ptr(), size)
                post = self.comm.Isend if kind == "send" else self.comm.Irecv
                request = post([memory, self.world.mpi.BYTE], peer, MESSAGE)
                pending.add(request, tensor, peer, size if kind == "recv" else None)
        return pending

    def gather(self, record: bytes) -> list[bytes]:
        """Gather lengths, then the records, each as long as it is."""
        length, lengths, box = np.array([len(record)]), None, None
        if self.rank == 0:
            lengths = np.empty(self.world_size, length.dtype)
        self._collect("gathering records", "Igather", length, lengths)
        if lengths is not None:
            box = [np.empty(lengths.sum(), np.uint8), lengths.tolist(), self.world.mpi.BYTE]
        self._collect("gathering records", "Igatherv", [record, self.world.mpi.BYTE], box)
        if lengths is None or box is None:
            return []
        return [part.tobytes() for part in np.split(box[0], np.cumsum(lengths)[:-1])]

    def broadcast(self, record: bytes) -> bytes:
        """Broadcast the length, then the record."""
        length = np.array([len(record)])
        self._collect("broadcasting a record", "Ibcast", length)
        box = bytearray(record) if self.rank == 0 else bytearray(int(length[0]))
        if box:
            self._collect("broadcasting a record", "Ibcast", [box, self.world.mpi.BYTE])
        return bytes(box)

    def _collect(self, doing: str, operation: str, *buffers: Any) -> None:
        """Run one collective operation with rank 0 as its root."""
        pending = _MpiPending(self, doing)
        with pending.as_lost_contact():
            pending.add(getattr(self.comm, operation)(*buffers), buffers)
        pending.wait()

    def tell_failure(self) -> None:
        """Tell all ranks, once, that this one cannot go on, so that none waits for it."""
        if self._has_told:
            return
        self._has_told = True
        for peer in range(self.world_size):
            with suppress(self.world.mpi.Exception):
                if peer != self.rank:
                    self.comm.Isend([b"", self.world.mpi.BYTE], peer, FAILURE)

    def look_for_failure(self) -> None:
        """Raise RuntimeError if a rank has told that it failed."""
        status = self.world.mpi.Status()
        if self.comm.Iprobe(self.world.mpi.ANY_SOURCE, FAILURE, status):
            raise RuntimeError(f"rank {status.Get_source()} has failed")


class _MpiPending:
    """Requests under way, and the buffers they use (kept alive until they are done)."""

    def __init__(self, transport: MpiTransport, doing: str) -> None:
        self.transport, self.doing = transport, doing
        self.requests: list[Any] = []
        self.buffers: list[object] = []
        self.peers: list[int | None] = []
        self.due: list[int | None] = []  # bytes of a message to receive

    def add(
        self, request: Any, buffer: object, peer: int | None = None, due: int | None = None
    ) -> None:
        self.requests.append(request)
        self.buffers.append(buffer)
        self.peers.append(peer)
        self.due.append(due)
        self.transport.world.unfinished.add(self)

    def as_lost_contact(self) -> as_lost_contact:
        return as_lost_contact(self.transport.rank, self.doing)

    def wait(self) -> None:
        """Poll until all are done: at first without pause, but giving way; then with naps."""
        mpi, timeout = self.transport.world.mpi, self.transport.timeout
        statuses = [mpi.Status() for _ in self.requests]
        started, nap = time.monotonic(), SHORTEST_NAP
        with self.as_lost_contact():
            while not mpi.Request.Testall(self.requests, statuses):
                waited = time.monotonic() - started
                if waited < SPIN:
                    # Where ranks outnumber cores, the message may wait for this very core.
                    os.sched_yield()
                    continue
                self.transport.look_for_failure()
                if waited > timeout:
                    raise RuntimeError(self._silence())
                time.sleep(nap)
                nap = min(2 * nap, LONGEST_NAP)
        self._check_sizes(statuses)
        self.transport.world.unfinished.discard(self)
        self.requests, self.buffers, self.peers, self.due = [], [], [], []

    def _silence(self) -> str:
        open_ = zip(self.peers, self.requests, strict=True)
        silent = sorted({peer for peer, one in open_ if peer is not None and not one.Test()})
        who = f" from rank(s) {', '.join(map(str, silent))}" if silent else ""
        return f"no answer{who} within comm.timeout={self.transport.timeout:g} s"

    def _check_sizes(self, statuses: Sequence[Any]) -> None:
        """Refuse a message shorter than its box, which MPI lets pass (a longer one it refuses)."""
        for peer, due, status in zip(self.peers, self.due, statuses, strict=True):
            if due is not None and (got := status.Get_count(self.transport.world.mpi.BYTE)) != due:
                raise ValueError(
                    f"rank {self.transport.rank}, {self.doing}: {got} bytes came from rank {peer} "
                    f"where {due} were due"
                )


@contextmanager
def open_mpi(launch: Launch, timeout: float, comm: Any = None) -> Iterator[MpiTransport]:
    """Yield the transport of this rank; where the body fails on it alone, the other ranks are told.

    Args:
        launch: who this process is; MPI must see it likewise.
        timeout: seconds after which a silent rank counts as lost.
        comm: the communicator, for which all ranks stand by default.

    Raises:
        ConfigError: MPI counts ranks differently, as where srun started what MPI takes for runs of one.
    """
    world = start_mpi("comm.backend=mpi")
    comm = comm or world.comm
    if (comm.rank, comm.size) != (launch.rank, launch.world_size):
        # A wrong size shows on all ranks, so that rank 0 can speak for them.
        kind = ConfigError if comm.size != launch.world_size else HostConfigError
        raise kind(
            f"comm.backend=mpi: MPI counts this process as rank {comm.rank} of {comm.size}, but "
            f"{launch.launcher} as rank {launch.rank} of {launch.world_size}; start with mpirun, or "
            "with an srun that MPI understands (srun --mpi=list), or use comm.backend=gloo"
        )
    transport = MpiTransport(world, comm, timeout)
    try:
        yield transport
    except ConfigError:
        raise  # all ranks have agreed on it
    except BaseException:
        transport.tell_failure()
        raise
