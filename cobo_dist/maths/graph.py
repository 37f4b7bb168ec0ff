"""What the collaboration weights say: links, groups, agreement with known clusters.

Where rows of W sum to 1, `share` is one client's equal share of a row; where each weight lives in [0, 1] it
is 0. All is counted from what the groups of W say and the weights that are listed, never place by place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobo_dist.maths.weights import Floats, Ints, Weights

LINK = 0.5
"""A weight of at least this counts as a link: the inner problem's maximiser is 0 or 1, and this is
the nearer one."""

ABOVE = 1.001
"""Where rows sum to 1, more than an equal share is a link: by this factor, to be beyond rounding."""


def link_threshold(share: float = 0.0) -> float:
    """Return the least weight that counts as a link."""
    return ABOVE * share if share else LINK


def components(weights: Weights, level: float = LINK) -> int:
    """Return the number of connected components of the graph of links (either way), n >= 1.

    `weights` are all n rows. Where groups join more than one client, W is symmetric.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, columns, values = weights.entries()
    linked, inside = values >= level, weights.groups_c[rows] == weights.groups_n[columns]
    inside &= weights.level >= level
    ends = [rows[linked & ~inside]], [columns[linked & ~inside]]
    if weights.level >= level:
        cut = inside & ~linked & (rows != columns)
        links = _group_links(weights, level, rows[cut], columns[cut])
        for side, found in zip(ends, links, strict=True):
            side.append(found)
    first, second = (np.concatenate(side) for side in ends)
    n = weights.shape[1]
    graph = coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(n, n))
    count, _ = connected_components(graph, directed=False)
    return int(count)


def _group_links(weights: Weights, level: float, rows: Ints, columns: Ints) -> tuple[Ints, Ints]:
    """Return links (first, second) that join what the links inside groups join, and no more.

    The clients `rows` and `columns` are of one group and cut from each other. In each group one client
    with the fewest cuts stands for it: it is linked to all but those cut from it. One of these is joined
    to it still unless all that it is linked to are cut from that one, too.
    """
    n, groups_n = weights.shape[1], weights.groups_n
    stays_n = ~weights.ungrouped_c
    order = np.lexsort((np.bincount(rows, minlength=n), groups_n, ~stays_n))
    order = order[: np.count_nonzero(stays_n)]
    has, first = np.unique(groups_n[order], return_index=True)
    centre_g = np.full(len(groups_n), -1)
    centre_g[has] = order[first]
    centre_n = centre_g[groups_n]
    cut_off_n = np.zeros(n, dtype=bool)
    cut_off_n[columns[rows == centre_n[rows]]] = True
    near_n = stays_n & ~cut_off_n
    whole_n = np.bincount(groups_n[near_n], minlength=len(groups_n))[groups_n]
    lost_n = np.bincount(columns[near_n[rows]], minlength=n)
    joined_n = (centre_n >= 0) & (~cut_off_n | (lost_n < whole_n))
    members = np.flatnonzero(joined_n)
    found = [(members, centre_n[members])]
    for left in np.flatnonzero((centre_n >= 0) & ~joined_n):
        others = np.flatnonzero(weights.rows(np.array([left]))[0] >= level)
        found.append((np.full(len(others), left), others))
    return np.concatenate([one for one, _ in found]), np.concatenate([two for _, two in found])


class OffDiagonalWeights:
    """The n (n - 1) places of W off the diagonal: some are listed, the rest say 0 or the level."""

    def __init__(self, weights: Weights, clusters_n: Sequence[int] | None = None) -> None:
        """Sort the places of all n rows by whether their two clients are of one cluster; else all are."""
        n, groups_n = weights.shape[1], weights.groups_n
        truth_n = np.zeros(n, dtype=np.int64) if clusters_n is None else np.asarray(clusters_n)
        truth_n = np.unique(truth_n, return_inverse=True)[1].reshape(-1)
        rows, columns, values = weights.entries()
        off = rows != columns
        self.level, rows, columns = weights.level, rows[off], columns[off]
        self.values: Floats = values[off]
        self.base = weights.base(rows, columns)
        self.within: NDArray[np.bool_] = truth_n[rows] == truth_n[columns]
        sizes, cells = np.bincount(groups_n), groups_n * n + truth_n
        _, cell_n, counts = np.unique(cells, return_inverse=True, return_counts=True)
        stays_n = ~weights.ungrouped_c
        within = int((np.bincount(truth_n)[truth_n] - 1).sum())
        grouped = int((sizes[groups_n] - 1)[stays_n].sum())
        grouped_within = int((counts[cell_n.reshape(-1)] - 1)[stays_n].sum())
        # Of places within clusters and of those across: how many there are, and how many say the level.
        self.all = {True: within, False: n * (n - 1) - within}
        self.grouped = {True: grouped_within, False: grouped - grouped_within}

    def count(self, holds: Any, within: bool | None = None) -> int:
        """Return for how many weights something holds: a function of an array of them."""
        if within is None:
            return self.count(holds, True) + self.count(holds, False)
        at_level, at_0 = (int(holds(np.array([value]))[0]) for value in (self.level, 0.0))
        some = self.within == within
        listed = int(holds(self.values[some]).sum()) - int(holds(self.base[some]).sum())
        grouped = self.grouped[within]
        return at_level * grouped + at_0 * (self.all[within] - grouped) + listed

    def mean(self, within: bool) -> float:
        """Return the mean weight; nan where there is no place."""
        if not self.all[within]:
            return float("nan")
        some = self.within == within
        more = float((self.values[some].astype(np.float64) - self.base[some]).sum())
        return (self.level * self.grouped[within] + more) / self.all[within]


def cluster_match(weights: Weights, clusters_n: Sequence[int], level: float = LINK) -> float:
    """Return the share of ordered pairs whose link agrees with the true clusters, in [0, 1].

    Where W is symmetric that is the share of unordered pairs. Where rows sum to 1, a client that gives
    all to one of several clients like itself agrees on that one alone.
    """
    places = OffDiagonalWeights(weights, clusters_n)
    total = sum(places.all.values())
    if not total:
        return 1.0
    right = places.count(lambda w: w >= level, True) + places.count(lambda w: w < level, False)
    return right / total


def means_by_truth(weights: Weights, clusters_n: Sequence[int]) -> tuple[float, float]:
    """Return the mean weight within and across true clusters, diagonal left out; nan if no pair."""
    places = OffDiagonalWeights(weights, clusters_n)
    return places.mean(True), places.mean(False)
