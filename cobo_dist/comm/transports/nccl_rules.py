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
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cobo_dist.comm.transports.base import SENDABLE, posting_order


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
    purpose: str = field(default="", compare=False)  # what the batch is for, in messages to people


Batch = Sequence[Operation]


def describe_batch(
    sends: Mapping[int, Tensor], receives: Mapping[int, Tensor], purpose: str
) -> list[Operation]:
    """Return the operations that a transport will post for `exchange`; none if there is nothing to do."""
    return [
        Operation(kind, peer, one.numel(), one.dtype, one.is_contiguous(), purpose=purpose)
        for kind, peer, one in posting_order(sends, receives)
    ]


class Schedule:
    """The batches of all ranks, or the last of them, with the numbers that they have in the run."""

    def __init__(
        self, batches: Mapping[int, Sequence[Batch]], first: Mapping[int, int] | None = None
    ) -> None:
        """Take {rank: batches in order}; `first` is the number of each rank's first batch here."""
        self.batches = batches
        self.first = first or {}

    def name(self, rank: int, number: int) -> str:
        """Return `rank 1, batch 17 (mixing)`."""
        return f"rank {rank}, {self.batch_name(rank, number)}"

    def batch_name(self, rank: int, number: int) -> str:
        """Return `batch 17 (mixing)`."""
        batch = self.batches[rank][number]
        purpose = f" ({batch[0].purpose})" if batch and batch[0].purpose else ""
        return f"batch {number + self.first.get(rank, 0)}{purpose}"


def check_schedule(
    batches: Mapping[int, Sequence[Batch]], first: Mapping[int, int] | None = None
) -> None:
    """Replay the batches of all ranks, {rank: batches in order}, against the rules.

    `first` says which numbers the ranks' first batches have, where earlier ones were checked before.

    Raises:
        NcclRuleBroken: naming the rank, its batch and the rule.
    """
    schedule = Schedule(batches, first)
    for rank in batches:
        for number in range(len(batches[rank])):
            _check_batch(rank, number, schedule)
    at = dict.fromkeys(batches, 0)  # the batch each rank is in
    met: dict[int, set[int]] = {rank: set() for rank in batches}  # peers done within that batch
    moved = True
    while moved:
        moved = False
        for rank in batches:
            while at[rank] < len(batches[rank]):
                if not _advance(rank, at, met, schedule):
                    break
                moved = True
    stuck = {rank: number for rank, number in at.items() if number < len(batches[rank])}
    if stuck:
        raise NcclRuleBroken(_describe_stuck(stuck, met, schedule))


def check_mirrors(
    batches: Mapping[int, Sequence[Batch]], first: Mapping[int, int] | None = None
) -> None:
    """Check what can be said where some ranks are missing, or have not posted all their batches yet.

    That is: each batch by itself, and for every two ranks the batches that both have posted.

    Raises:
        NcclRuleBroken: naming the rank, its batch and the rule.
    """
    schedule = Schedule(batches, first)
    ranks = sorted(batches)
    for rank in ranks:
        for number in range(len(batches[rank])):
            _check_batch(rank, number, schedule, all_known=False)
        for peer in (other for other in ranks if other > rank):
            mine, theirs = (
                [k for k, batch in enumerate(batches[a]) if any(op.peer == b for op in batch)]
                for a, b in ((rank, peer), (peer, rank))
            )
            for one, other in zip(mine, theirs, strict=False):
                _check_mirror(rank, one, peer, other, schedule)


def _check_batch(rank: int, number: int, schedule: Schedule, all_known: bool = True) -> None:
    where, batch = schedule.name(rank, number), schedule.batches[rank][number]
    if not batch:
        raise NcclRuleBroken(f"{where}: an empty batch")
    for op in batch:
        what = f"{where}: {op.kind} with rank {op.peer}"
        if op.peer == rank:
            raise NcclRuleBroken(f"{what}: a message to oneself")
        if all_known and op.peer not in schedule.batches:
            raise NcclRuleBroken(f"{what}: there is no such rank")
        if op.count == 0:
            raise NcclRuleBroken(f"{what}: an empty message")
        if op.dtype not in SENDABLE:
            raise NcclRuleBroken(f"{what}: {op.dtype} does not travel")
        if not op.contiguous:
            raise NcclRuleBroken(f"{what}: the tensor is not contiguous")
        if op.tag:
            raise NcclRuleBroken(f"{what}: tag {op.tag}, but NCCL ignores tags")


def _advance(rank: int, at: dict[int, int], met: dict[int, set[int]], schedule: Schedule) -> bool:
    """Let `rank` meet the peers that stand in their half of its batch; leave the batch when all have."""
    batches = schedule.batches
    batch = batches[rank][at[rank]]
    peers = {op.peer for op in batch}
    progress = False
    for peer in sorted(peers - met[rank]):
        if at[peer] == len(batches[peer]):
            raise NcclRuleBroken(
                f"{schedule.name(rank, at[rank])}: rank {peer} has no batch left to match it"
            )
        other = batches[peer][at[peer]]
        if rank not in {op.peer for op in other} or rank in met[peer]:
            continue  # the peer is busy with others first
        _check_mirror(rank, at[rank], peer, at[peer], schedule)
        met[rank].add(peer)
        met[peer].add(rank)
        progress = True
    for who in (rank, *sorted(peers)):
        if at[who] < len(batches[who]):
            present = {op.peer for op in batches[who][at[who]]}
            if present <= met[who]:
                at[who] += 1
                met[who] = set()
                progress = True
    return progress


def _check_mirror(rank: int, number: int, peer: int, peer_number: int, schedule: Schedule) -> None:
    """Compare two ranks' sides of one batch, both ways."""
    batch, other = schedule.batches[rank][number], schedule.batches[peer][peer_number]
    for kind, mirrored in (("send", "recv"), ("recv", "send")):
        mine = [(op.count, op.dtype) for op in batch if op.peer == peer and op.kind == kind]
        theirs = [(op.count, op.dtype) for op in other if op.peer == rank and op.kind == mirrored]
        if mine != theirs:
            raise NcclRuleBroken(
                f"{schedule.name(rank, number)} has {kind} {mine} with rank {peer}, whose "
                f"{schedule.batch_name(peer, peer_number)} has {mirrored} {theirs}: the two do not "
                "mirror"
            )


def _describe_stuck(
    stuck: Mapping[int, int], met: Mapping[int, set[int]], schedule: Schedule
) -> str:
    waits = []
    for rank, number in stuck.items():
        peers = {op.peer for op in schedule.batches[rank][number]} - met[rank]
        name = schedule.batch_name(rank, number)
        waits.append(f"rank {rank} in {name} waits for {sorted(peers)}")
    return "ranks wait for one another: " + "; ".join(waits)
