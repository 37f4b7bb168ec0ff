"""NCCL's rules, checked without NCCL: replay what every rank posted against the rules.

gloo accepts much that hangs or corrupts on NCCL: batches that do not mirror, short messages, other dtypes,
tags, strides. A schedule that passes here keeps these rules:

- no batch is empty; no message is empty, to the rank itself, tagged, non-contiguous or of a dtype that does
  not travel;
- the k-th batch that joins two ranks is the same on both: every send has a receive of the same element count
  and dtype, in the same order;
- a rank goes on only when its batch is done, so no ring of ranks waits for one another;
- no operation is left without its counterpart.
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
    purpose: str = field(default="", compare=False)  # of the batch, for error messages


Batch = Sequence[Operation]


def describe_batch(
    sends: Mapping[int, Tensor], receives: Mapping[int, Tensor], purpose: str
) -> list[Operation]:
    """Return the operations that a transport posts for `exchange`; none if there is nothing to do."""
    return [
        Operation(kind, peer, one.numel(), one.dtype, one.is_contiguous(), purpose=purpose)
        for kind, peer, one in posting_order(sends, receives)
    ]


class Schedule:
    """The batches of all ranks, and their names in error messages."""

    def __init__(self, batches: Mapping[int, Sequence[Batch]], first: int = 0) -> None:
        """Take {rank: batches in order}; `first` is the number in the run of the first batches."""
        self.batches, self.first = batches, first

    def name(self, rank: int, index: int) -> str:
        """Return `rank 1, batch 17 (mixing)`."""
        return f"rank {rank}, {self.batch_name(rank, index)}"

    def batch_name(self, rank: int, index: int) -> str:
        """Return `batch 17 (mixing)`."""
        batch = self.batches[rank][index]
        purpose = f" ({batch[0].purpose})" if batch and batch[0].purpose else ""
        return f"batch {index + self.first}{purpose}"


def check_schedule(batches: Mapping[int, Sequence[Batch]]) -> None:
    """Replay the batches of all ranks, {rank: batches in order}, against the rules.

    Raises:
        NcclRuleBroken: naming the rank, its batch and the rule.
    """
    schedule = Schedule(batches)
    for rank in batches:
        for index in range(len(batches[rank])):
            _check_batch(rank, index, schedule)
    current = dict.fromkeys(batches, 0)  # the index of the batch each rank is in
    done: dict[int, set[int]] = {rank: set() for rank in batches}  # its peers that are done there
    progress = True
    while progress:
        progress = False
        for rank in batches:
            while current[rank] < len(batches[rank]) and _advance(rank, current, done, schedule):
                progress = True
    stuck = {rank: index for rank, index in current.items() if index < len(batches[rank])}
    if stuck:
        raise NcclRuleBroken(_describe_stuck(stuck, done, schedule))


def check_batch(batches: Sequence[Batch], number: int) -> None:
    """Check one batch, which all ranks post at the same time; those with nothing to do post an empty one.

    `number` is that of the batch, for the message.

    Raises:
        NcclRuleBroken: naming the rank, its batch and the rule.
    """
    ranks = range(len(batches))
    schedule = Schedule({rank: [batches[rank]] for rank in ranks}, number)
    for rank in ranks:
        if batches[rank]:
            _check_batch(rank, 0, schedule)
    for rank in ranks:
        for peer in sorted({op.peer for op in batches[rank]}):
            _check_mirror(rank, 0, peer, 0, schedule)


def _check_batch(rank: int, index: int, schedule: Schedule) -> None:
    """Check a batch by itself."""
    where, batch = schedule.name(rank, index), schedule.batches[rank][index]
    if not batch:
        raise NcclRuleBroken(f"{where}: an empty batch")
    for op in batch:
        what = f"{where}: {op.kind} with rank {op.peer}"
        if op.peer == rank:
            raise NcclRuleBroken(f"{what}: a message to oneself")
        if op.peer not in schedule.batches:
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
    rank: int, current: dict[int, int], done: dict[int, set[int]], schedule: Schedule
) -> bool:
    """Match `rank` with the peers whose current batch joins them; leave batches that are done.

    Return whether anything changed.
    """
    batches = schedule.batches
    peers = {op.peer for op in batches[rank][current[rank]]}
    progress = False
    for peer in sorted(peers - done[rank]):
        if current[peer] == len(batches[peer]):
            raise NcclRuleBroken(
                f"{schedule.name(rank, current[rank])}: rank {peer} has no batch left to match it"
            )
        other = batches[peer][current[peer]]
        if rank not in {op.peer for op in other} or rank in done[peer]:
            continue  # the peer has to finish with others first
        _check_mirror(rank, current[rank], peer, current[peer], schedule)
        done[rank].add(peer)
        done[peer].add(rank)
        progress = True
    for one in (rank, *sorted(peers)):
        if current[one] < len(batches[one]):
            needed = {op.peer for op in batches[one][current[one]]}
            if needed <= done[one]:
                current[one] += 1
                done[one] = set()
                progress = True
    return progress


def _check_mirror(rank: int, index: int, peer: int, peer_index: int, schedule: Schedule) -> None:
    """Compare two ranks' sides of one batch, both ways."""
    batch, other = schedule.batches[rank][index], schedule.batches[peer][peer_index]
    for kind, mirrored in (("send", "recv"), ("recv", "send")):
        mine = [(op.count, op.dtype) for op in batch if op.peer == peer and op.kind == kind]
        theirs = [(op.count, op.dtype) for op in other if op.peer == rank and op.kind == mirrored]
        if mine != theirs:
            raise NcclRuleBroken(
                f"{schedule.name(rank, index)} has {kind} {mine or 'nothing'} with rank {peer}, "
                f"whose {schedule.batch_name(peer, peer_index)} has {mirrored} {theirs or 'nothing'}: "
                "the two do not mirror"
            )


def _describe_stuck(
    stuck: Mapping[int, int], done: Mapping[int, set[int]], schedule: Schedule
) -> str:
    waits = []
    for rank, index in stuck.items():
        peers = {op.peer for op in schedule.batches[rank][index]} - done[rank]
        name = schedule.batch_name(rank, index)
        waits.append(f"rank {rank} in {name} waits for {sorted(peers)}")
    return "ranks wait for one another: " + "; ".join(waits)
