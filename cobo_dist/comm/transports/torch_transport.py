"""The transport over torch.distributed: NCCL for CUDA tensors, gloo for CPU tensors."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from cobo_dist.comm.liveness import Liveness
from cobo_dist.comm.nccl_group import uses_nccl
from cobo_dist.comm.transports.base import (
    NothingPending,
    Pending,
    as_lost_contact,
    check_message,
    how_lost,
    posting_order,
)

SPIN_SECONDS = 0.002
"""How long `Poll` asks without a pause. Most messages arrive by then."""
MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 5e-5, 1e-3
RECORD_TAG = 1  # of records; models have 0
LENGTH_BYTES, HEAD_BYTES = 8, 4088
"""Each record begins with a message of its length and as many of its bytes: most records need no other."""

_Post = Callable[..., dist.Work | None]


class Poll:
    """Waits on the host until NCCL has carried a batch, where `Work.wait` would only order the stream.

    So no later wait for the GPU waits for a peer: those cannot be interrupted, and signals, the news that a
    rank has died, and comm.timeout would do nothing meanwhile. Kernels that do not need the messages run on.
    """

    def __init__(self, liveness: Liveness, timeout: float) -> None:
        """Wait for `timeout` seconds, unless `liveness` knows that a rank has ended."""
        self.liveness, self.timeout = liveness, timeout

    def wait(self, work: dist.Work, loss: as_lost_contact) -> None:
        """Return when the work is done; `loss` gets the rank that has ended.

        Raises:
            RuntimeError: a rank has ended, or the peers kept silent.
        """
        began, pause = time.monotonic(), MIN_PAUSE_SECONDS
        while not work.is_completed():
            waited = time.monotonic() - began
            if waited < SPIN_SECONDS:
                os.sched_yield()
                continue
            if (failure := self.liveness.failure()) is not None:
                loss.peers = [failure.rank]
                raise RuntimeError(str(failure))
            if waited > self.timeout:
                raise RuntimeError(f"no answer within comm.timeout={self.timeout:g} s")
            time.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE_SECONDS)


class TorchTransport:
    """Messages over the default process group; see `Transport`."""

    def __init__(self, poll: Poll | None = None) -> None:
        """`poll` waits for NCCL's messages; gloo's are waited for by gloo."""
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self._poll = poll

    def exchange(
        self, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor], purpose: str
    ) -> Pending:
        """Post one `batch_isend_irecv`, ordered by peer."""
        post = {"send": dist.isend, "recv": dist.irecv}
        ops = []
        for kind, peer, tensor in posting_order(sends, receives):
            check_message(tensor, self.rank, peer, self.world_size)
            ops.append(dist.P2POp(post[kind], tensor, peer))
        if not ops:  # torch refuses an empty batch
            return NothingPending()
        names = ", ".join(map(str, sorted({op.peer for op in ops})))
        activity = f"exchanging {purpose} with rank(s) {names}"
        pending = _TorchPending(self.rank, activity, [op.peer for op in ops])
        pending.buffers = [op.tensor for op in ops]
        if uses_nccl(
            ops[0].tensor.device
        ):  # gloo carries those of the CPU, and waits for them itself
            pending.poll = self._poll
        elif self._poll is not None:
            pending.limit = timedelta(seconds=self._poll.timeout)
        with as_lost_contact(self.rank, activity, pending.peers):
            pending.works = dist.batch_isend_irecv(ops)
        return pending

    def gather(self, record: bytes) -> list[bytes]:
        """Receive every other rank's record on rank 0."""
        activity = "gathering records"
        if self.rank != 0:
            self._send_record(record, [0], activity)
            return []
        received = self._receive_records(range(1, self.world_size), activity)
        return [record, *received]

    def broadcast(self, record: bytes) -> bytes:
        """Send rank 0's record to every other rank."""
        activity = "broadcasting a record"
        if self.rank != 0:
            return self._receive_records([0], activity)[0]
        self._send_record(record, range(1, self.world_size), activity)
        return record

    def _send_record(self, record: bytes, peers: Sequence[int], activity: str) -> None:
        """Send the length and the first bytes in one message, and what is left in a second one."""
        length = len(record).to_bytes(LENGTH_BYTES, "little")
        messages = [_bytes(length + record[:HEAD_BYTES].ljust(HEAD_BYTES, b"\0"))]
        if len(record) > HEAD_BYTES:
            messages.append(_bytes(record[HEAD_BYTES:]))
        self._post(
            [(dist.isend, peer, message) for peer in peers for message in messages], activity
        )

    def _receive_records(self, peers: Sequence[int], activity: str) -> list[bytes]:
        """Return the records that these peers send."""
        heads = {peer: _buffer(LENGTH_BYTES + HEAD_BYTES) for peer in peers}
        self._post([(dist.irecv, peer, head) for peer, head in heads.items()], activity)
        sizes = {
            peer: int.from_bytes(_tobytes(head[:LENGTH_BYTES]), "little")
            for peer, head in heads.items()
        }
        rests = {
            peer: _buffer(size - HEAD_BYTES) for peer, size in sizes.items() if size > HEAD_BYTES
        }
        self._post([(dist.irecv, peer, rest) for peer, rest in rests.items()], activity)
        return [
            _tobytes(head[LENGTH_BYTES:][: sizes[peer]])
            + (_tobytes(rests[peer]) if peer in rests else b"")
            for peer, head in heads.items()
        ]

    def _post(self, operations: Sequence[tuple[_Post, int, Tensor]], activity: str) -> None:
        """Post operations on CPU tensors, with a tag that keeps them apart from models, and wait."""
        pending = _TorchPending(self.rank, activity, [peer for _, peer, _ in operations])
        if self._poll is not None:
            pending.limit = timedelta(seconds=self._poll.timeout)
        with as_lost_contact(self.rank, activity, pending.peers):
            for post, peer, tensor in operations:
                pending.buffers.append(tensor)
                if (work := post(tensor, peer, tag=RECORD_TAG)) is not None:
                    pending.works.append(work)
        pending.wait()


class _TorchPending:
    """The operations of one batch, and their buffers, which must live until they are done."""

    def __init__(self, rank: int, activity: str, peers: Sequence[int]) -> None:
        """`peers` has the peer of each operation."""
        self.rank, self.activity, self.peers = rank, activity, peers
        self.buffers: list[Tensor] = []
        self.works: list[dist.Work] = []
        self.poll: Poll | None = None
        self.limit: timedelta | None = None  # where gloo has that of NCCL's watchdog

    def wait(self) -> None:
        with as_lost_contact(self.rank, self.activity, self.peers) as loss:
            # NCCL returns one work for the batch, gloo one for each operation. Wait on all of them. Only
            # where each operation has its own does the failed one tell the peer.
            one_each = len(self.works) == len(self.peers)
            try:
                for index in range(len(self.works)):
                    if self.poll is not None:
                        self.poll.wait(self.works[index], loss)
                    if self.limit is not None:
                        self.works[index].wait(self.limit)
                    else:
                        self.works[index].wait()
            except RuntimeError as error:
                if one_each:
                    loss.peers = self._lost_with(index, error)
                raise
            finally:
                # Also after a failure: gloo keeps connections open for as long as there is a work.
                self.works, self.buffers = [], []

    def _lost_with(self, index: int, error: RuntimeError) -> set[int]:
        """Return the peers whose operations are not done, now that the one of this index has failed.

        After a time-out gloo closes all connections of this rank. So the others that are not done fail at
        once, and they were as late. After another error they may still be on their way.
        """
        lost = {self.peers[index]}
        if how_lost(error) == "silent":
            for peer, work in zip(self.peers[index + 1 :], self.works[index + 1 :], strict=True):
                try:
                    work.wait()
                except RuntimeError:
                    lost.add(peer)
        return lost


def _buffer(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8)


def _bytes(record: bytes) -> Tensor:
    return torch.frombuffer(bytearray(record), dtype=torch.uint8)


def _tobytes(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()
