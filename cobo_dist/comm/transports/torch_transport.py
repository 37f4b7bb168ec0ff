"""Transports: how tensors and small records get from rank to rank.

All tensors move through `exchange`, one batch of point-to-point operations that mirrors on both
sides, because that is the one pattern that NCCL, gloo and MPI all carry safely: at most one message
each way between two ranks, tag 0, contiguous, never empty, never to oneself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from cobo_dist.errors import RunFailure

SENDABLE = frozenset(
    {
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int32,
        torch.int64,
        torch.uint8,
    }
)


class Pending(Protocol):
    """Messages under way."""

    def wait(self) -> None:
        """Return when all have arrived and all send buffers may be changed again."""


class Transport(Protocol):
    """The contract that every transport keeps (one test function runs against all of them)."""

    rank: int
    world_size: int

    def exchange(
        self, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor], purpose: str
    ) -> Pending:
        """Start one message to each peer of `sends` and from each of `receives`; wait on the result.

        The peer must post the mirror image: same element count and dtype, in the same order of
        exchanges. No buffer may be touched before `wait` returns.
        """

    def gather(self, record: bytes) -> list[bytes]:
        """Bring every rank's record, of any length, to rank 0 (in rank order; elsewhere: [])."""

    def broadcast(self, record: bytes) -> bytes:
        """Return rank 0's record on every rank."""


class Arrived:
    """Nothing under way."""

    def wait(self) -> None:
        """Return at once."""


def check_message(tensor: Tensor, rank: int, peer: int, world_size: int) -> None:
    """Refuse what NCCL would hang on, corrupt or reject, although gloo may let it pass.

    Raises:
        ValueError: a message to oneself or to no rank, empty, not contiguous, or of a dtype that does
            not travel.
    """
    if peer == rank or not 0 <= peer < world_size:
        raise ValueError(f"rank {rank} of {world_size} cannot exchange a message with rank {peer}")
    if tensor.numel() == 0:
        raise ValueError(f"empty message between rank {rank} and rank {peer}")
    if not tensor.is_contiguous():
        raise ValueError(f"message between rank {rank} and rank {peer} is not contiguous")
    if tensor.dtype not in SENDABLE:
        raise ValueError(f"{tensor.dtype} does not travel between rank {rank} and rank {peer}")


def posting_order(
    sends: Mapping[int, Tensor], receives: Mapping[int, Tensor]
) -> list[tuple[str, int, Tensor]]:
    """Return the operations ("send" or "recv", peer, tensor) of a batch in the order of posting."""
    return [
        (kind, peer, box[peer])
        for peer in sorted({*sends, *receives})
        for kind, box in (("send", sends), ("recv", receives))
        if peer in box
    ]


class SoloTransport:
    """One rank, no process group."""

    rank = 0
    world_size = 1

    def exchange(
        self, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor], purpose: str
    ) -> Pending:
        """Have nothing to do; a message to anyone is an error."""
        for peer, tensor in (*sends.items(), *receives.items()):
            check_message(tensor, self.rank, peer, self.world_size)
        return Arrived()

    def gather(self, record: bytes) -> list[bytes]:
        """Return the one record."""
        return [record]

    def broadcast(self, record: bytes) -> bytes:
        """Return the record."""
        return record


class TorchTransport:
    """torch.distributed's default process group: NCCL for CUDA tensors, gloo for CPU tensors."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def exchange(
        self, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor], purpose: str
    ) -> Pending:
        """Post one `batch_isend_irecv`, ordered by peer."""
        post = {"send": dist.isend, "recv": dist.irecv}
        ops = []
        for kind, peer, tensor in posting_order(sends, receives):
            check_message(tensor, self.rank, peer, self.world_size)
            ops.append(dist.P2POp(post[kind], tensor, peer))
        if not ops:  # an empty batch is an error to torch
            return Arrived()
        pending = _TorchPending(self.rank, [op.peer for op in ops], purpose)
        with pending.explained(pending.ends):
            pending.works = dist.batch_isend_irecv(ops)
        pending.buffers = [op.tensor for op in ops]
        return pending

    def gather(self, record: bytes) -> list[bytes]:
        """Gather lengths, then records padded to the longest (collectives want equal sizes)."""
        with explained(self.rank, "gathering records"):
            length = torch.tensor([len(record)])
            lengths = [torch.empty_like(length) for _ in range(self.world_size)]
            dist.all_gather(lengths, length)
            longest = max(1, int(torch.cat(lengths).max()))
            padded = torch.zeros(longest, dtype=torch.uint8)
            padded[: len(record)] = _bytes_tensor(record)
            boxes = [torch.empty_like(padded) for _ in range(self.world_size)]
            dist.gather(padded, boxes if self.rank == 0 else None, dst=0)
        if self.rank != 0:
            return []
        return [
            box[: int(length)].numpy().tobytes() for box, length in zip(boxes, lengths, strict=True)
        ]

    def broadcast(self, record: bytes) -> bytes:
        """Broadcast the length, then the record."""
        with explained(self.rank, "broadcasting a record"):
            length = torch.tensor([len(record)])
            dist.broadcast(length, src=0)
            box = torch.zeros(max(1, int(length)), dtype=torch.uint8)
            if self.rank == 0:
                box[: len(record)] = _bytes_tensor(record)
            dist.broadcast(box, src=0)
        return box[: int(length)].numpy().tobytes()


class _TorchPending:
    """Works of one batch, and the buffers they use (kept alive until they are done)."""

    def __init__(self, rank: int, ends: list[int], purpose: str) -> None:
        self.rank, self.purpose = rank, purpose
        self.ends = ends  # the other rank of each operation
        self.works: list[dist.Work] = []
        self.buffers: list[Tensor] = []

    def explained(self, lost: Iterable[int]) -> explained:
        names = ", ".join(map(str, sorted(set(self.ends))))
        return explained(self.rank, f"exchanging {self.purpose} with rank(s) {names}", lost)

    def wait(self) -> None:
        # NCCL returns one work for the batch, gloo one for each operation: wait on all, and let the number
        # of one only say whom it was with.
        each = len(self.works) == len(self.ends)
        for number, work in enumerate(self.works):
            with self.explained(self.ends[number : number + 1] if each else self.ends):
                work.wait()
        self.works, self.buffers = [], []


class explained:
    """Turns a library's errors of a broken or late exchange into one line that says where."""

    def __init__(self, rank: int, doing: str, peers: Iterable[int] = ()) -> None:
        self.rank, self.doing, self.peers = rank, doing, peers

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RuntimeError):
            raise LostContact(
                f"rank {self.rank} lost contact while {self.doing}: {_reason(error)}", self.peers
            ) from error


def _reason(error: RuntimeError) -> str:
    """Return torch's first line without gloo's source file before it and its good wishes after it."""
    first = str(error).strip().partition("\n")[0] or repr(error)
    return re.sub(r"^\[\S*\.cc:\d+\] ", "", first).partition(". This is typically")[0]


class LostContact(RunFailure):
    """A peer died, hung past comm.timeout or left; the cause is on that peer, not here.

    `peers` are the ranks it can be, as far as the message tells; empty: any.
    """

    def __init__(self, message: str, peers: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.peers = frozenset(peers)


def _bytes_tensor(record: bytes) -> Tensor:
    if not record:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(bytearray(record), dtype=torch.uint8)
