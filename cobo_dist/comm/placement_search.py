"""The search for a placement that puts collaborators on one rank: pure functions of W and the placement.

The search needs all n rows of W, and makes a few of them dense at a time. Every rank keeps its number of
clients, so that memory and work stay balanced.
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
"""The method of the exchange that computes the sums that an algorithm's W describes; none: no sums, or sums
whose traffic does not depend on the placement."""

MIN_COMMON_LINKS = 0.5
"""The least Jaccard similarity of the links of two linked clients in one group: a stray link joins none."""

MAX_LINK_SHARE = 0.75
"""With more than this share of all links, groups are not searched for: two equal groups have half."""

_MAX_DENSE_CLIENTS = 4096
"""Clients up to which common links are counted by a dense product, which is faster than a sparse one."""

_MAX_DENSE_WEIGHTS = 1 << 22
"""Weights that are made dense at a time."""

_PREFERENCES: tuple[Callable[[int, int], tuple[int, int]], ...] = (
    lambda owned, free: (owned, -free),  # the rank that has most of the group
    lambda owned, free: (-free, owned),  # the fullest
    lambda owned, free: (free, owned),  # the emptiest
)
"""Which rank is best for a group that fits into several; no preference packs best in every case."""


@dataclass(frozen=True)
class Move:
    """A better placement, the clients that change rank, and the models sent a round before and after."""

    placement: Placement
    clients: Ids
    before: int
    after: int


def models_sent(
    weights: Weights, placement: Placement, sums: Sums, *, deterministic: bool = False
) -> int:
    """Return how many models all ranks send a round for the sums that W describes."""
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
    # Every other rank gets the sum of each distinct row.
    (whole,) = blocks_of(weights, [np.arange(placement.clients)])
    _, first = np.unique(whole.row_classes(), return_index=True)
    distinct = rows_of(whole, np.sort(first))
    parts = (plan(columns_of(distinct, ids)).models for ids in by_rank)
    return (placement.ranks - 1) * sum(parts)


def groups(weights: Weights, threshold: float) -> list[Ids]:
    """Return the groups of two or more clients that links (weights of at least `threshold`) form.

    Largest first. No groups while almost all clients are linked: then all are one group.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    n = weights.shape[1]
    most = MAX_LINK_SHARE * n * n
    if n + OffDiagonalWeights(weights).count(lambda w: w >= threshold) > most:
        return []
    links_nn = _links(weights, threshold)
    if links_nn.nnz > most:
        return []
    i, j = links_nn.nonzero()
    if n <= _MAX_DENSE_CLIENTS:
        dense_nn = links_nn.toarray().astype(np.float32)
        both = (dense_nn @ dense_nn)[i, j]
    else:
        both = (links_nn @ links_nn)[i, j]
    degree_n = links_nn.sum(axis=1)
    similar = both >= MIN_COMMON_LINKS * (degree_n[i] + degree_n[j] - both)
    ones = np.ones(np.count_nonzero(similar), dtype=np.int8)
    kept = csr_array((ones, (i[similar], j[similar])), shape=(n, n))
    count, label_n = connected_components(kept, directed=False)
    found = [np.flatnonzero(label_n == label) for label in range(count)]
    several = [ids for ids in found if len(ids) > 1]
    return sorted(several, key=lambda ids: (-len(ids), int(ids[0])))


def _links(weights: Weights, threshold: float) -> csr_array[Any]:
    """Return 1 for clients that are linked in either direction, and on the diagonal, [n, n]."""
    from scipy.sparse import csr_array, vstack

    n = weights.shape[1]
    every, step = np.arange(n), max(1, _MAX_DENSE_WEIGHTS // n)
    pieces = [every[at : at + step] for at in range(0, n, step)]
    linked = vstack([csr_array(weights.rows(piece) >= threshold) for piece in pieces], format="csr")
    own = csr_array((np.ones(n, dtype=bool), (every, every)), shape=(n, n))
    links_nn: csr_array[Any] = ((linked + linked.T + own) > 0).astype(np.int32)
    return links_nn


def pack(
    found: list[Ids], placement: Placement, preference: Callable[[int, int], tuple[int, int]]
) -> Placement:
    """Return a placement with each group on one rank if it fits, and split otherwise.

    All other clients keep their rank if possible; so do the members of a group that must be split.
    """
    owner_n, ranks = placement.owner_n, range(placement.ranks)
    free = [len(ids) for ids in placement.by_rank]
    new_n = np.full(placement.clients, -1, dtype=np.int64)

    def put(ids: Ids, rank: int) -> None:
        new_n[ids] = rank
        free[rank] -= len(ids)

    for left in found:
        while len(left):
            owned = np.bincount(owner_n[left], minlength=placement.ranks).tolist()
            fits = [rank for rank in ranks if free[rank] >= len(left)]
            if fits:
                rank = max(fits, key=lambda one: (*preference(owned[one], free[one]), -one))
            else:
                rank = max(ranks, key=lambda one: (free[one], owned[one], -one))
            own_first = left[np.argsort(owner_n[left] != rank, kind="stable")]
            put(own_first[: free[rank]], rank)
            left = left[new_n[left] < 0]
    for rank in ranks:  # the other clients stay
        stays = np.flatnonzero((new_n < 0) & (owner_n == rank))
        put(stays[: free[rank]], rank)
    for rank in ranks:  # or take what is free
        put(np.flatnonzero(new_n < 0)[: free[rank]], rank)
    return _relabel(new_n, placement)


def _relabel(new_n: Ids, placement: Placement) -> Placement:
    """Assign the same parts to the ranks that already own most of them, among ranks of equal size."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    count = placement.ranks
    stay_rr = np.ones((count, count))  # 1 + the number of clients of part a on rank b
    np.add.at(stay_rr, (new_n, placement.owner_n), 1.0)
    sizes = np.array([len(ids) for ids in placement.by_rank])
    stay_rr[sizes[:, None] != sizes[None, :]] = 0.0  # no match
    _, rank_of = min_weight_full_bipartite_matching(csr_array(stay_rr), maximize=True)
    return Placement(tuple(rank_of[new_n].tolist()), count)


def propose(
    weights: Weights,
    placement: Placement,
    threshold: float,
    sums: Sums,
    *,
    price: float = 0.0,
    deterministic: bool = False,
) -> Move | None:
    """Return the best placement found for this W; None if none is better than the present one.

    Args:
        weights: all n rows of W.
        placement: the present placement.
        threshold: the least weight of a link.
        sums: how the algorithm uses W.
        price: the models a round that the move of each client has to save.
        deterministic: models travel as rows (comm.deterministic).
    """

    def sent(candidate: Placement) -> int:
        return models_sent(weights, candidate, sums, deterministic=deterministic)

    if not (before := sent(placement)):
        return None
    found = groups(weights, threshold)
    moves = []
    for candidate in dict.fromkeys(pack(found, placement, one) for one in _PREFERENCES):
        moved = np.flatnonzero(candidate.owner_n != placement.owner_n)
        moves.append(Move(candidate, moved, before, sent(candidate)))

    def cost(move: Move) -> float:
        return move.after + price * len(move.clients)

    best = min(moves, key=lambda move: (cost(move), len(move.clients)))
    return best if cost(best) < before else None
