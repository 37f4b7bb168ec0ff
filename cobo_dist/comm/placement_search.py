"""Which placement would bring collaborators together: pure functions of W and the placement there is.

All n rows of W are needed, written out a few at a time. Every rank keeps as many clients as it has, so that
memory and work stay balanced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cobo_dist.comm.mixing_plan import planner
from cobo_dist.comm.placement import Placement
from cobo_dist.maths.blocks import blocks_of, columns_of, rows_of
from cobo_dist.maths.graph import OffDiagonalWeights
from cobo_dist.maths.weights import Weights

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Ids = NDArray[np.int64]
Sums = Literal["mix", "all_reduce", "none"]
"""By which word of the exchange an algorithm gets the sums that its W describes; none: by none that depends
on who is where."""

ALIKE = 0.5
"""Linked clients are of one group where at least this share of all that either is linked to is linked to
both: a stray link joins nobody."""

MOSTLY = 0.75
"""With this share of all links there, groups are not looked for: two equal ones have a half of them."""

_DENSE = 4096
"""Clients up to which common links are counted by a dense product, which is faster than a sparse one."""

_AT_ONCE = 1 << 22
"""Weights that are written out at a time."""

_PREFERENCES: tuple[Callable[[int, int], tuple[int, int]], ...] = (
    lambda owned, room: (owned, -room),  # the rank that has most of the group
    lambda owned, room: (-room, owned),  # the fullest
    lambda owned, room: (room, owned),  # the emptiest
)
"""What makes a rank the best for a group that fits into several: none packs best in every case."""


@dataclass(frozen=True)
class Move:
    """A better placement: who changes rank, and the models that all ranks send a round, before and after."""

    placement: Placement
    clients: Ids
    before: int
    after: int


def models_sent(
    weights: Weights, placement: Placement, sums: Sums, *, deterministic: bool = False
) -> int:
    """Return how many models all ranks send a round for the sums that W describes, as the exchange plans."""
    plan, by_rank = planner(deterministic), placement.by_rank
    if sums == "none" or placement.ranks == 1:
        return 0
    if sums == "mix":
        return sum(
            plan(rows_of(block, rows)).models
            for source, block in enumerate(blocks_of(weights, by_rank))
            for to, rows in enumerate(by_rank)
            if to != source
        )
    # Every other rank gets the sum of each different row.
    (whole,) = blocks_of(weights, [np.arange(placement.clients)])
    _, first = np.unique(whole.row_classes(), return_index=True)
    different = rows_of(whole, np.sort(first))
    parts = (plan(columns_of(different, ids)).models for ids in by_rank)
    return (placement.ranks - 1) * sum(parts)


def groups(weights: Weights, level: float) -> list[Ids]:
    """Return the groups of two or more clients that links (weights of at least `level`) show, largest first.

    None while almost all are linked: then all are one group.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    n = weights.shape[1]
    if _mostly(n + OffDiagonalWeights(weights).count(lambda w: w >= level), n):
        return []
    links_nn = _links(weights, level)
    if _mostly(links_nn.nnz, n):
        return []
    i, j = links_nn.nonzero()
    if n <= _DENSE:
        dense_nn = links_nn.toarray().astype(np.float32)
        both = (dense_nn @ dense_nn)[i, j]
    else:
        both = (links_nn @ links_nn)[i, j]
    degree_n = links_nn.sum(axis=1)
    alike = both >= ALIKE * (degree_n[i] + degree_n[j] - both)
    ones = np.ones(np.count_nonzero(alike), dtype=np.int8)
    kept = csr_array((ones, (i[alike], j[alike])), shape=(n, n))
    count, label_n = connected_components(kept, directed=False)
    found = [np.flatnonzero(label_n == label) for label in range(count)]
    several = [ids for ids in found if len(ids) > 1]
    return sorted(several, key=lambda ids: (-len(ids), int(ids[0])))


def _mostly(links: int, n: int) -> bool:
    return links > MOSTLY * n * n


def _links(weights: Weights, level: float) -> csr_array[Any]:
    """Return 1 for clients that are linked, either way, and for a client and itself, [n, n]."""
    from scipy.sparse import csr_array, vstack

    n = weights.shape[1]
    every, step = np.arange(n), max(1, _AT_ONCE // n)
    pieces = [every[at : at + step] for at in range(0, n, step)]
    linked = vstack([csr_array(weights.rows(piece) >= level) for piece in pieces], format="csr")
    own = csr_array((np.ones(n, dtype=bool), (every, every)), shape=(n, n))
    links_nn: csr_array[Any] = ((linked + linked.T + own) > 0).astype(np.int32)
    return links_nn


def pack(
    found: list[Ids], placement: Placement, better: Callable[[int, int], tuple[int, int]]
) -> Placement:
    """Return a placement with each group on one rank where there is room, and split where there is not.

    All other clients stay where they are if they can; so do the members of a group that must be split.
    """
    owner_n, ranks = placement.owner_n, range(placement.ranks)
    room = [len(ids) for ids in placement.by_rank]
    new_n = np.full(placement.clients, -1, dtype=np.int64)

    def put(ids: Ids, rank: int) -> None:
        new_n[ids] = rank
        room[rank] -= len(ids)

    for left in found:
        while len(left):
            owned = np.bincount(owner_n[left], minlength=placement.ranks).tolist()
            fits = [rank for rank in ranks if room[rank] >= len(left)]
            if fits:
                rank = max(fits, key=lambda one: (*better(owned[one], room[one]), -one))
            else:
                rank = max(ranks, key=lambda one: (room[one], owned[one], -one))
            own_first = left[np.argsort(owner_n[left] != rank, kind="stable")]
            put(own_first[: room[rank]], rank)
            left = left[new_n[left] < 0]
    for rank in ranks:  # the others stay,
        stays = np.flatnonzero((new_n < 0) & (owner_n == rank))
        put(stays[: room[rank]], rank)
    for rank in ranks:  # or fill what is left
        put(np.flatnonzero(new_n < 0)[: room[rank]], rank)
    return _relabelled(new_n, placement)


def _relabelled(new_n: Ids, placement: Placement) -> Placement:
    """Return the same parts on the ranks that own most of them already, among ranks of equal size."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    count = placement.ranks
    stay_rr = np.ones((count, count))  # one more than the clients of part a that rank b has
    np.add.at(stay_rr, (new_n, placement.owner_n), 1.0)
    sizes = np.array([len(ids) for ids in placement.by_rank])
    stay_rr[sizes[:, None] != sizes[None, :]] = 0.0  # no match
    _, rank_of = min_weight_full_bipartite_matching(csr_array(stay_rr), maximize=True)
    return Placement(tuple(rank_of[new_n].tolist()), count)


def propose(
    weights: Weights,
    placement: Placement,
    level: float,
    sums: Sums,
    *,
    price: float = 0.0,
    deterministic: bool = False,
) -> Move | None:
    """Return the best placement found for this W; None if none is better than the one there is.

    Args:
        weights: all n rows of W.
        placement: who owns whom now.
        level: the least weight that counts as a link.
        sums: how the algorithm uses W.
        price: the models a round that each client's move has to save.
        deterministic: models travel as rows (comm.deterministic).
    """

    def sent(candidate: Placement) -> int:
        return models_sent(weights, candidate, sums, deterministic=deterministic)

    if not (before := sent(placement)):
        return None
    found = groups(weights, level)
    moves = []
    for candidate in dict.fromkeys(pack(found, placement, better) for better in _PREFERENCES):
        who = np.flatnonzero(candidate.owner_n != placement.owner_n)
        moves.append(Move(candidate, who, before, sent(candidate)))

    def worth(move: Move) -> float:
        return move.after + price * len(move.clients)

    best = min(moves, key=lambda move: (worth(move), len(move.clients)))
    return best if worth(best) < before else None
