"""The transport over torch.distributed: NCCL for CUDA tensors, gloo for CPU tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from cobo_dist.comm.transports.base import (
    NothingPending,
    Pending,
    as_lost_contact,
    check_message,
    posting_order,
)


class TorchTransport:
    """Messages over the default process group; see `Transport`."""

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
        if not ops:  # torch refuses an empty batch
            return NothingPending()
        pending = _TorchPending(self.rank, ops, purpose)
        with pending.as_lost_contact(pending.peers):
            pending.works = dist.batch_isend_irecv(ops)
        return pending

    def gather(self, record: bytes) -> list[bytes]:
        """Gather lengths, then records padded to the longest (collectives need equal sizes)."""
        with as_lost_contact(self.rank, "gathering records"):
            length = torch.tensor([len(record)])
            lengths = [torch.empty_like(length) for _ in range(self.world_size)]
            dist.all_gather(lengths, length)
            padded = _padded(record, max(1, int(torch.cat(lengths).max())))
            received = [torch.empty_like(padded) for _ in range(self.world_size)]
            dist.gather(padded, received if self.rank == 0 else None, dst=0)
        if self.rank != 0:
            return []
        return [
            one[: int(length)].numpy().tobytes()
            for one, length in zip(received, lengths, strict=True)
        ]

    def broadcast(self, record: bytes) -> bytes:
        """Broadcast the length, then the record."""
        with as_lost_contact(self.rank, "broadcasting a record"):
            length = torch.tensor([len(record)])
            dist.broadcast(length, src=0)
            sent = record if self.rank == 0 else b""
            padded = _padded(sent, max(1, int(length)))
            dist.broadcast(padded, src=0)
        return padded[: int(length)].numpy().tobytes()


class _TorchPending:
    """The operations of one batch, and their buffers, which must live until they are done."""

    def __init__(self, rank: int, ops: list[dist.P2POp], purpose: str) -> None:
        self.rank, self.purpose = rank, purpose
        self.peers = [op.peer for op in ops]  # of each operation
        self.buffers = [op.tensor for op in ops]
        self.works: list[dist.Work] = []

    def as_lost_contact(self, lost: Iterable[int]) -> as_lost_contact:
        names = ", ".join(map(str, sorted(set(self.peers))))
        return as_lost_contact(self.rank, f"exchanging {self.purpose} with rank(s) {names}", lost)

    def wait(self) -> None:
        # NCCL returns one work for the batch, gloo one for each operation. Wait on all of them. Only
        # where each operation has its own does the index of the failed one tell the peer.
        one_each = len(self.works) == len(self.peers)
        for index, work in enumerate(self.works):
            with self.as_lost_contact(self.peers[index : index + 1] if one_each else self.peers):
                work.wait()
        self.works, self.buffers = [], []


def _padded(record: bytes, size: int) -> Tensor:
    """Return the record as uint8 [size], with zeros behind it."""
    return torch.frombuffer(bytearray(record.ljust(size, b"\0")), dtype=torch.uint8)
