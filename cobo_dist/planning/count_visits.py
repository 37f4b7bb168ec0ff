"""What ranks send and keep for inner products, for visits and for the answers to them.

By the plans of the real exchange (`comm.gram`, `comm.visits`), for the ranks that a counting exchange counts.

Shapes: n clients, k visitors, R ranks, S of them counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from cobo_dist.comm.channel import INCOMING, OUTGOING
from cobo_dist.comm.gram import groups_of, plan_gram, width_of
from cobo_dist.comm.placement import Placement
from cobo_dist.maths.flat import row_bytes

Ints = NDArray[np.int64]
_DOUBLE = 8  # bytes of a float64


class Counts(Protocol):
    """What a counting exchange offers: the ranks to count, and where counts go."""

    placement: Placement
    ranks: Ints
    dtype: torch.dtype
    wire: torch.dtype
    deterministic: bool

    def send(self, purpose: str, messages: int, nbytes: int, at: int) -> None:
        """Count messages and bytes that one of the counted ranks sends."""

    def keep(self, name: str, nbytes: int, at: int) -> None:
        """Count a buffer that one of the counted ranks keeps."""


def count_gram(counts: Counts, matrices: int, size: int) -> None:
    """Count rows of `size` numbers of one or two matrices, and the partial sums of their products."""
    placement, n, wire = counts.placement, counts.placement.clients, counts.wire.itemsize
    plan = plan_gram(size, n, placement.ranks, counts.deterministic)
    clients_r = [len(ids) for ids in placement.by_rank]
    groups_r = [len(groups_of(pieces)) for pieces in plan]
    for s, rank in enumerate(counts.ranks.tolist()):
        own, peers = clients_r[rank], [r for r in range(placement.ranks) if r != rank]
        for k in range(max(map(len, plan))):
            mine = width_of(plan[rank], k)
            sent = [matrices * own * width_of(plan[peer], k) * wire for peer in peers]
            counts.send("mixing", sum(map(bool, sent)), sum(sent), s)
            counts.keep(OUTGOING, sum(sent), s)
            counts.keep(INCOMING, matrices * (n - own) * mine * wire, s)
            counts.keep("rows of products", matrices * n * mine * _DOUBLE, s)
        sent = [groups_r[rank] * clients_r[peer] * n * _DOUBLE for peer in peers]
        counts.send("mixing", sum(map(bool, sent)), sum(sent), s)
        counts.keep("products", groups_r[rank] * n * n * _DOUBLE, s)
        counts.keep("products sent", sum(sent), s)
        theirs = sum(groups_r) - groups_r[rank]
        counts.keep("products received", theirs * own * n * _DOUBLE, s)


def count_visitors(counts: Counts, group: Ints, sizes: Sequence[int]) -> None:
    """Count a group of visitors, whose rows have `sizes` numbers, sent by their owners to all ranks."""
    owner_k = counts.placement.owner_n[group]
    for s, rank in enumerate(counts.ranks.tolist()):
        own, peers = int((owner_k == rank).sum()), counts.placement.ranks - 1
        model = sum(sizes) * counts.wire.itemsize
        counts.send("mixing", peers * (own > 0), peers * own * model, s)
        counts.keep("visitors", len(group) * model, s)
        for which, size in enumerate(sizes):
            nbytes = len(group) * row_bytes(size, counts.dtype)
            counts.keep(f"visiting {which}", nbytes, s)


def count_answers(counts: Counts, group: Ints, among_n: NDArray[np.bool_], size: int) -> None:
    """Count the answers of the clients that take part to a group, `size` numbers each."""
    placement, wire = counts.placement, counts.wire.itemsize
    owner_k, every = placement.owner_n[group], int(among_n.sum())
    visitors_r = np.bincount(owner_k, minlength=placement.ranks)
    for s, rank in enumerate(counts.ranks.tolist()):
        mine, answering = int(visitors_r[rank]), int(among_n[placement.by_rank[rank]].sum())
        others = len(group) - mine
        peers = int(np.count_nonzero(visitors_r)) - (mine > 0)
        sent = others * answering * size * wire
        counts.send("mixing", peers * (answering > 0), sent, s)
        counts.keep(OUTGOING, sent, s)
        counts.keep(INCOMING, mine * (every - answering) * size * wire, s)
        counts.keep("answers", mine * every * row_bytes(size, counts.dtype), s)
