"""How many models the blocks of a regular W bring to each rank: `maths.mixing.plan_block`, as counts.

A block is W[a rank's clients, another's or its own]. Where all its weights are alike, one sum brings it;
where no two are, as many models as the smaller rank has clients. In client order (`comm.deterministic`) every
model with a weight travels by itself. Clusters are runs of clients, as ranks' are, so that two ranks share at
most one cluster.

Shapes: R ranks, c clients of a rank, G clusters, s segments (what a cluster has on a rank); arrays are [R].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cobo_dist.maths.mixing import is_written_out
from cobo_dist.planning.round_cost import Ints, Mixing


@dataclass(frozen=True)
class Blocks:
    """What each rank sends and receives for one `mix` or `reduce`, and what it does with its own block."""

    rows: Ints  # sums that a rank is after
    messages: Ints
    sent: Ints  # models in them
    single: Ints  # blocks received that are one model
    more: Ints  # models in larger blocks
    packed: Ints  # models of the largest block that a rank makes
    additions: Ints  # of rows, within the own block,
    products: Ints  # or weights of it that are written out

    def cost(self, size: int, itemsize: int) -> Mixing:
        """Return what they cost, for rows of `size` numbers that travel in `itemsize` bytes each."""
        additions = self.rows * self.single + self.additions
        return Mixing(
            self.messages,
            self.sent * size * itemsize,
            additions,
            additions * size,
            (self.rows * self.more + self.products) * size,
        )

    @property
    def received(self) -> Ints:
        """Models received."""
        return self.single + self.more


def no_blocks(c: Ints, rows: Ints) -> Blocks:
    """W = 0, asked for or not."""
    return Blocks(rows, *[np.zeros_like(c)] * 7)


def reduced(c: Ints, *, one_by_one: bool = False) -> Blocks:
    """One sum of all models for every rank; what a rank has for itself counts as received."""
    nothing, others = np.zeros_like(c), len(c) - 1
    if one_by_one:
        single = nothing + np.count_nonzero(c == 1)
        more = nothing + int(c[c > 1].sum())
        sent, packed = c * others, c
    else:
        single, more = nothing + others + 1, nothing
        sent, packed = nothing + others, nothing + 1
    return Blocks(nothing + 1, nothing + others, sent, single, more, packed, nothing, nothing)


def alike(
    c: Ints, *, one_by_one: bool = False, listed: bool = False, without_own: bool = False
) -> Blocks:
    """All weights are alike; `without_own`, but for w_ii = 0. `listed`: weight by weight, without groups."""
    nothing, others = np.zeros_like(c), len(c) - 1
    if one_by_one:
        single = nothing + np.count_nonzero(c == 1) - (c == 1)
        more = int(c[c > 1].sum()) - np.where(c > 1, c, 0)
        sent, packed = c * others, c * (others > 0)
        own = _in_client_order(c, c - without_own * (c == 1))
    else:
        single, more, sent = nothing + others, nothing, nothing + others
        packed = nothing + (others > 0)
        own = _at_once(c, c * (c - without_own), listed)
    return Blocks(c, nothing + others, sent, single, more, packed, *own)


def all_different(c: Ints, *, one_by_one: bool = False) -> Blocks:
    """No two weights are alike."""
    nothing = np.zeros_like(c)
    single, more, sent, packed = nothing, nothing, nothing, nothing
    for other, count in zip(*np.unique(c, return_counts=True), strict=True):  # two sizes at most
        peers = count - (c == other)
        received = nothing + other if one_by_one else np.minimum(c, other)
        made = c if one_by_one else received
        sent = sent + peers * made
        packed = np.maximum(packed, np.where(peers > 0, made, 0))
        single = single + peers * (received == 1)
        more = more + peers * np.where(received > 1, received, 0)
    own = _in_client_order(c, c) if one_by_one else _at_once(c, c * c, True)
    return Blocks(c, nothing + len(c) - 1, sent, single, more, packed, *own)


def clustered(
    c: Ints,
    ends: Ints,
    *,
    one_by_one: bool = False,
    listed: bool = False,
    without_own: bool = False,
) -> Blocks:
    """Weights are alike inside clusters and 0 across; cluster k ends before client `ends[k]`."""
    borders = np.concatenate([[0], np.cumsum(c)])
    begins = np.concatenate([[0], ends[:-1]])
    first = np.searchsorted(borders, begins, side="right") - 1  # the ranks of each cluster
    last = np.searchsorted(borders, ends, side="left") - 1
    spans = last - first + 1
    cluster_s = np.repeat(np.arange(len(ends)), spans)
    rank_s = np.arange(len(cluster_s)) + np.repeat(first - np.cumsum(spans) + spans, spans)
    here_s = np.minimum(borders[rank_s + 1], ends[cluster_s]) - np.maximum(
        borders[rank_s], begins[cluster_s]
    )
    others_s = spans[cluster_s] - 1

    def by_rank(values_s: Ints) -> Ints:
        total = np.zeros_like(c)
        np.add.at(total, rank_s, values_s)
        return total

    messages = by_rank(others_s)
    if one_by_one:
        alone = by_rank((here_s == 1).astype(np.int64)) * without_own
        sent = by_rank(others_s * here_s)
        singles, wholes = here_s == 1, np.where(here_s > 1, here_s, 0)
        single = by_rank(np.bincount(cluster_s, singles)[cluster_s].astype(np.int64) - singles)
        more = by_rank(np.bincount(cluster_s, wholes)[cluster_s].astype(np.int64) - wholes)
        packed = np.zeros_like(c)
        np.maximum.at(packed, rank_s, np.where(others_s > 0, here_s, 0))
        own = _in_client_order(c, c - alone)
    else:
        sent, single, more = messages, messages, np.zeros_like(c)
        packed = np.minimum(messages, 1)
        own = _at_once(c, by_rank(here_s * (here_s - without_own)), listed)
    return Blocks(c, messages, sent, single, more, packed, *own)


def _in_client_order(c: Ints, models: Ints) -> tuple[Ints, Ints]:
    """Return additions and products of the own block, model by model."""
    return c * (models == 1), c * np.where(models > 1, models, 0)


def _at_once(c: Ints, weights: Ints, listed: bool) -> tuple[Ints, Ints]:
    """Return them where groups are summed once, or all `weights` that are not 0 are listed."""
    if not listed:
        return c, np.zeros_like(c)
    written = is_written_out(weights, c * c)
    return np.where(written, 0, weights), np.where(written, c * c, 0)
