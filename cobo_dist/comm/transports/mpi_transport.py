"""The transport over MPI: Isend and Irecv on the tensors' own memory, without a copy.

That may be memory of a GPU where the MPI library says that it can use it.

All messages travel as bytes, since MPI has no name for bfloat16. mpi4py 4 counts in 64 bits, so a message may
be longer than 2 GiB. No call of MPI ever blocks: `wait` polls, so that `comm.timeout` holds and a rank that
fails can tell the others.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
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

MESSAGE_TAG, FAILURE_TAG = 0, 1  # a notice of failure must never match a receive of a model

SPIN_SECONDS = 0.002
"""How long `wait` polls without a pause. Most messages arrive by then, and a pause costs 0.05 ms."""
MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 5e-5, 2e-4


class MpiTransport:
    """Messages over one MPI communicator that no other code uses; see `Transport`.

    Args:
        world: MPI.
        comm: the communicator.
        timeout: seconds after which a silent rank counts as lost.
    """

    def __init__(self, world: MpiWorld, comm: Any, timeout: float) -> None:
        self.world, self.comm, self.timeout = world, comm, timeout
        self.rank: int = comm.rank
        self.world_size: int = comm.size
        self._has_announced = False

    def exchange(
        self, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor], purpose: str
    ) -> Pending:
        """Post all sends and receives, ordered by peer.

        Waits until the GPU has computed what is sent, and has read what was received before.
        """
        operations = posting_order(sends, receives)
        for _, peer, tensor in operations:  # all of them, before the first is posted
            check_message(tensor, self.rank, peer, self.world_size)
            if tensor.device.type != "cpu" and not self.world.is_cuda_aware:
                raise ValueError(f"this MPI moves CPU tensors, not one on {tensor.device}")
        if not operations:
            return NothingPending()
        for device in {tensor.device for _, _, tensor in operations if tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        peers = ", ".join(map(str, sorted({*sends, *receives})))
        pending = _MpiPending(self, f"exchanging {purpose} with rank(s) {peers}")
        with as_lost_contact(self.rank, pending.activity):
            for kind, peer, tensor in operations:
                size = tensor.numel() * tensor.element_size()
                memory = self.world.mpi.buffer.fromaddress(tensor.data_ptr(), size)
                post = self.comm.Isend if kind == "send" else self.comm.Irecv
                request = post([memory, self.world.mpi.BYTE], peer, MESSAGE_TAG)
                pending.add(request, tensor, peer, size if kind == "recv" else None)
        return pending

    def gather(self, record: bytes) -> list[bytes]:
        """Gather the lengths, then the records, each with its own length."""
        length, lengths, received = np.array([len(record)]), None, None
        if self.rank == 0:
            lengths = np.empty(self.world_size, length.dtype)
        self._collective("gathering records", "Igather", length, lengths)
        if lengths is not None:
            received = [np.empty(lengths.sum(), np.uint8), lengths.tolist(), self.world.mpi.BYTE]
        sent = [record, self.world.mpi.BYTE]
        self._collective("gathering records", "Igatherv", sent, received)
        if lengths is None or received is None:
            return []
        return [part.tobytes() for part in np.split(received[0], np.cumsum(lengths)[:-1])]

    def broadcast(self, record: bytes) -> bytes:
        """Broadcast the length, then the record."""
        length = np.array([len(record)])
        self._collective("broadcasting a record", "Ibcast", length)
        buffer = bytearray(record) if self.rank == 0 else bytearray(int(length[0]))
        if buffer:
            self._collective("broadcasting a record", "Ibcast", [buffer, self.world.mpi.BYTE])
        return bytes(buffer)

    def _collective(self, activity: str, operation: str, *buffers: Any) -> None:
        """Run one collective operation with rank 0 as its root."""
        pending = _MpiPending(self, activity)
        with as_lost_contact(self.rank, activity):
            pending.add(getattr(self.comm, operation)(*buffers), buffers)
        pending.wait()

    def announce_failure(self) -> None:
        """Tell all ranks, once, that this one cannot go on, so that none waits for it."""
        if self._has_announced:
            return
        self._has_announced = True
        for peer in range(self.world_size):
            with suppress(self.world.mpi.Exception):
                if peer != self.rank:
                    self.comm.Isend([b"", self.world.mpi.BYTE], peer, FAILURE_TAG)

    def announced_failure(self) -> int | None:
        """Return a rank that has announced that it failed; None if none has."""
        status = self.world.mpi.Status()
        if self.comm.Iprobe(self.world.mpi.ANY_SOURCE, FAILURE_TAG, status):
            return int(status.Get_source())
        return None


class _MpiPending:
    """The requests of one batch, and their buffers, which must live until the requests are done."""

    def __init__(self, transport: MpiTransport, activity: str) -> None:
        self.transport, self.activity = transport, activity
        self.requests: list[Any] = []
        self.buffers: list[object] = []
        self.peers: list[int | None] = []
        self.expected: list[int | None] = []  # bytes of a message to receive

    def add(
        self, request: Any, buffer: object, peer: int | None = None, expected: int | None = None
    ) -> None:
        self.requests.append(request)
        self.buffers.append(buffer)
        self.peers.append(peer)
        self.expected.append(expected)
        self.transport.world.unfinished.add(self)

    def wait(self) -> None:
        """Poll until all are done: first without a pause, then with short pauses."""
        transport = self.transport
        statuses = [transport.world.mpi.Status() for _ in self.requests]
        started, pause = time.monotonic(), MIN_PAUSE_SECONDS
        with as_lost_contact(transport.rank, self.activity) as loss:
            while not transport.world.mpi.Request.Testall(self.requests, statuses):
                waited = time.monotonic() - started
                if waited < SPIN_SECONDS:
                    # Where ranks outnumber cores, the sender may need this core.
                    os.sched_yield()
                    continue
                if (failed := transport.announced_failure()) is not None:
                    loss.peers = [failed]
                    raise RuntimeError(f"rank {failed} has failed")
                if waited > transport.timeout:
                    loss.peers = self._silent()
                    raise RuntimeError(self._describe_timeout(loss.peers))
                time.sleep(pause)
                pause = min(2 * pause, MAX_PAUSE_SECONDS)
        self._check_sizes(statuses)
        transport.world.unfinished.discard(self)
        self.requests, self.buffers, self.peers, self.expected = [], [], [], []

    def _silent(self) -> list[int]:
        """Return the peers whose requests are not done; none in a collective operation."""
        pairs = zip(self.peers, self.requests, strict=True)
        return sorted({peer for peer, one in pairs if peer is not None and not one.Test()})

    def _describe_timeout(self, silent: Sequence[int]) -> str:
        peers = f" from rank(s) {', '.join(map(str, silent))}" if silent else ""
        return f"no answer{peers} within comm.timeout={self.transport.timeout:g} s"

    def _check_sizes(self, statuses: Sequence[Any]) -> None:
        """Refuse a message shorter than its buffer, which MPI accepts (it refuses a longer one)."""
        byte = self.transport.world.mpi.BYTE
        for peer, expected, status in zip(self.peers, self.expected, statuses, strict=True):
            if expected is not None and (got := status.Get_count(byte)) != expected:
                raise ValueError(
                    f"rank {self.transport.rank}, {self.activity}: {got} bytes came from rank {peer} "
                    f"where {expected} were due"
                )


@contextmanager
def open_mpi(launch: Launch, timeout: float, comm: Any = None) -> Iterator[MpiTransport]:
    """Yield this rank's transport; if the body fails on this rank alone, tell the other ranks.

    Args:
        launch: this process's rank and the world size, which MPI must confirm.
        timeout: seconds after which a silent rank counts as lost.
        comm: the communicator; by default one of all ranks.

    Raises:
        ConfigError: MPI counts ranks differently, for example where srun started processes that MPI
            takes for runs of one rank.
    """
    world = start_mpi("comm.backend=mpi")
    comm = comm or world.comm
    if (comm.rank, comm.size) != (launch.rank, launch.world_size):
        # All ranks see a wrong size, so rank 0 can report it for them.
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
        transport.announce_failure()
        raise
