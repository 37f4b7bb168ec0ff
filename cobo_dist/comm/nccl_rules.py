"""NCCL's rules, checked without NCCL: record what every rank posts, then replay it against the rules.

gloo forgives much that hangs or corrupts on NCCL: batches that do not mirror, short messages, other
dtypes, tags, strides. A schedule that passes here keeps these rules:

- no batch is empty; no message is empty, to oneself, tagged, non-contiguous or of a dtype that does
  not travel;
- the k-th batch that joins two ranks is the same on both: every send meets a receive of the same
  element count and dtype, in the same order;
- a rank goes on only when its batch is done, so no ring of ranks waits for one another;
- nothing is left over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .transport import SENDABLE, Pending, Transport, posting_order


class NcclRuleBroken(ValueError):
    """A schedule that gloo may carry and NCCL would not."""


@dataclass(frozen=True)
class Operation:
    """One posted operation."""

    kind: str  # "send" or "recv"
    peer: int
    count: int
    dtype: torch.dtype
    contiguous: bool = True
    tag: int = 0


Batch = Sequence[Operation]


class RecordingTransport:
    """Passes everything on to another transport and keeps a record of its batches."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.rank, self.world_size = inner.rank, inner.world_size
        self.batches: list[list[Operation]] = []

    def exchange(
        self, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor], purpose: str
    ) -> Pending:
        """Record the batch and pass it on. Nothing to send or receive posts no batch."""
        batch = [
            Operation(kind, peer, tensor.numel(), tensor.dtype, tensor.is_contiguous())
            for kind, peer, tensor in posting_order(sends, receives)
        ]
        if batch:
            self.batches.append(batch)
        return self.inner.exchange(sends, receives, purpose)

    def gather(self, record: bytes) -> list[bytes]:
        """Pass on: small records are gloo's, on the CPU."""
        return self.inner.gather(record)

    def broadcast(self, record: bytes) -> bytes:
        """Pass on: small records are gloo's, on the CPU."""
        return self.inner.broadcast(record)


def check_schedule(schedule: Mapping[int, Sequence[Batch]]) -> None:
    """Replay the batches of all ranks, {rank: batches in order}, against the rules.

    Raises:
        NcclRuleBroken: naming the rank, its batch and the rule.
    """
    for rank, batches in schedule.items():
        for number, batch in enumerate(batches):
            _check_batch(rank, number, batch, schedule)
    at = dict.fromkeys(schedule, 0)  # the batch each rank is in
    met: dict[int, set[int]] = {rank: set() for rank in schedule}  # peers done within that batch
    moved = True
    while moved:
        moved = False
        for rank in schedule:
            while at[rank] < len(schedule[rank]):
                if not _advance(rank, at, met, schedule):
                    break
                moved = True
    stuck = {rank: number for rank, number in at.items() if number < len(schedule[rank])}
    if stuck:
        raise NcclRuleBroken(_describe_stuck(stuck, met, schedule))


def _check_batch(
    rank: int, number: int, batch: Batch, schedule: Mapping[int, Sequence[Batch]]
) -> None:
    where = f"rank {rank}, batch {number}"
    if not batch:
        raise NcclRuleBroken(f"{where}: an empty batch")
    for op in batch:
        what = f"{where}: {op.kind} with rank {op.peer}"
        if op.peer == rank:
            raise NcclRuleBroken(f"{what}: a message to oneself")
        if op.peer not in schedule:
            raise NcclRuleBroken(f"{what}: there is no such rank")
        if op.count == 0:
            raise NcclRuleBroken(f"{what}: an empty message")
        if op.dtype not in SENDABLE:
            raise NcclRuleBroken(f"{what}: {op.dtype} does not travel")
        if not op.contiguous:
            raise NcclRuleBroken(f"{what}: the tensor is not contiguous")
        if op.tag:
            raise NcclRuleBroken(f"{what}: tag {op.tag}, but NCCL ignores tags")


def _advance(
    rank: int,
    at: dict[int, int],
    met: dict[int, set[int]],
    schedule: Mapping[int, Sequence[Batch]],
) -> bool:
    """Let `rank` meet the peers that stand in their half of its batch; leave the batch when all have."""
    batch = schedule[rank][at[rank]]
    peers = {op.peer for op in batch}
    progress = False
    for peer in sorted(peers - met[rank]):
        if at[peer] == len(schedule[peer]):
            raise NcclRuleBroken(
                f"rank {rank}, batch {at[rank]}: rank {peer} has no batch left to match it"
            )
        other = schedule[peer][at[peer]]
        if rank not in {op.peer for op in other} or rank in met[peer]:
            continue  # the peer is busy with others first
        _check_mirror(rank, at[rank], batch, peer, at[peer], other)
        met[rank].add(peer)
        met[peer].add(rank)
        progress = True
    for who in (rank, *sorted(peers)):
        if at[who] < len(schedule[who]):
            present = {op.peer for op in schedule[who][at[who]]}
            if present <= met[who]:
                at[who] += 1
                met[who] = set()
                progress = True
    return progress


def _check_mirror(
    rank: int, number: int, batch: Batch, peer: int, peer_number: int, other: Batch
) -> None:
    """Compare two ranks' sides of one batch, both ways."""
    for kind, mirrored in (("send", "recv"), ("recv", "send")):
        mine = [(op.count, op.dtype) for op in batch if op.peer == peer and op.kind == kind]
        theirs = [(op.count, op.dtype) for op in other if op.peer == rank and op.kind == mirrored]
        if mine != theirs:
            raise NcclRuleBroken(
                f"rank {rank}, batch {number} has {kind} {mine} with rank {peer}, whose batch "
                f"{peer_number} has {mirrored} {theirs}: the two do not mirror"
            )


def _describe_stuck(
    stuck: Mapping[int, int],
    met: Mapping[int, set[int]],
    schedule: Mapping[int, Sequence[Batch]],
) -> str:
    waits = []
    for rank, number in stuck.items():
        peers = {op.peer for op in schedule[rank][number]} - met[rank]
        waits.append(f"rank {rank} in batch {number} waits for {sorted(peers)}")
    return "ranks wait for one another: " + "; ".join(waits)
