"""The collaboration graph: its links, its components, and its agreement with known clusters.

Two clients are linked where their weight is at least a threshold. Where rows of W sum to 1, `share` is one
client's equal share of a row; where each weight is in [0, 1] on its own, it is 0. Everything is counted from
the groups and stored entries of W, never from all n^2 weights.

Shapes: n clients, m stored entries, g groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobo_dist.maths.weights import Floats, Ints, Weights

LINK_THRESHOLD = 0.5
"""The least weight of a link in [0, 1]: the maximizer of the inner problem is 0 or 1, and 1 is nearer."""

SHARE_FACTOR = 1.001
"""Where rows sum to 1, a link is more than an equal share: by this factor, to be clear of rounding."""


def link_threshold(share: float = 0.0) -> float:
    """Return the least weight that counts as a link."""
    return SHARE_FACTOR * share if share else LINK_THRESHOLD


def components(weights: Weights, threshold: float = LINK_THRESHOLD) -> int:
    """Return the number of connected components of the graph (`component_labels`), n >= 1."""
    return int(component_labels(weights, threshold).max()) + 1


def component_labels(weights: Weights, threshold: float = LINK_THRESHOLD) -> Ints:
    """Return the connected component of each client, [n], numbered from 0 in the order of first clients.

    A link in either direction joins two clients. `weights` are all n rows.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not weights.symmetric and len(np.unique(weights.groups_n)) < weights.shape[1]:
        # Links within a group are told from its cuts, which are the same both ways only if W is.
        weights = Weights.of_rows(weights.ids_c, weights.dense())
    rows, columns, values = weights.entries()
    linked, inside = values >= threshold, weights.groups_c[rows] == weights.groups_n[columns]
    inside &= weights.level >= threshold
    ends = [rows[linked & ~inside]], [columns[linked & ~inside]]
    if weights.level >= threshold:
        cut = inside & ~linked & (rows != columns)
        links = _group_links(weights, threshold, rows[cut], columns[cut])
        for side, more in zip(ends, links, strict=True):
            side.append(more)
    first, second = (np.concatenate(side) for side in ends)
    n = weights.shape[1]
    graph = coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(n, n))
    _, label_n = connected_components(graph, directed=False)
    _, first, number_n = np.unique(label_n, return_index=True, return_inverse=True)
    order = np.empty(len(first), dtype=np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    found: Ints = order[number_n.reshape(-1)]
    return found


def _group_links(
    weights: Weights, threshold: float, rows: Ints, columns: Ints
) -> tuple[Ints, Ints]:
    """Return links (first, second) that have the same components as all links within groups.

    The clients `rows` and `columns` are in one group and cut from each other. In each group the client
    with the fewest cuts is the center. All members that are not cut from the center are linked to it. A
    member that is cut from it is in its component unless it is cut from all members linked to the center.
    """
    n, groups_n = weights.shape[1], weights.groups_n
    grouped_n = ~weights.ungrouped_c
    order = np.lexsort((np.bincount(rows, minlength=n), groups_n, ~grouped_n))
    order = order[: np.count_nonzero(grouped_n)]
    has, first = np.unique(groups_n[order], return_index=True)
    center_g = np.full(len(groups_n), -1)
    center_g[has] = order[first]
    center_n = center_g[groups_n]
    cut_off_n = np.zeros(n, dtype=bool)
    cut_off_n[columns[rows == center_n[rows]]] = True
    near_n = grouped_n & ~cut_off_n
    whole_n = np.bincount(groups_n[near_n], minlength=len(groups_n))[groups_n]
    lost_n = np.bincount(columns[near_n[rows]], minlength=n)
    joined_n = (center_n >= 0) & (~cut_off_n | (lost_n < whole_n))
    members = np.flatnonzero(joined_n)
    found = [(members, center_n[members])]
    for left in np.flatnonzero((center_n >= 0) & ~joined_n):
        others = np.flatnonzero(weights.rows(np.array([left]))[0] >= threshold)
        found.append((np.full(len(others), left), others))
    return np.concatenate([one for one, _ in found]), np.concatenate([two for _, two in found])


class OffDiagonalWeights:
    """The n (n - 1) entries of W off the diagonal: some are stored, the others are 0 or the level."""

    def __init__(self, weights: Weights, clusters_n: Sequence[int] | None = None) -> None:
        """Divide the entries of all n rows into those within a cluster and those between clusters.

        Without `clusters_n` all clients are in one cluster.
        """
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
        grouped_n = ~weights.ungrouped_c
        within = int((np.bincount(truth_n)[truth_n] - 1).sum())
        grouped = int((sizes[groups_n] - 1)[grouped_n].sum())
        grouped_within = int((counts[cell_n.reshape(-1)] - 1)[grouped_n].sum())
        # Of entries within clusters and between them: how many there are, and how many have the level.
        self.all = {True: within, False: n * (n - 1) - within}
        self.grouped = {True: grouped_within, False: grouped - grouped_within}

    def count(self, holds: Any, within: bool | None = None) -> int:
        """Return for how many weights `holds` is true, a function of an array of weights."""
        if within is None:
            return self.count(holds, True) + self.count(holds, False)
        at_level, at_0 = (int(holds(np.array([value]))[0]) for value in (self.level, 0.0))
        some = self.within == within
        stored = int(holds(self.values[some]).sum()) - int(holds(self.base[some]).sum())
        grouped = self.grouped[within]
        return at_level * grouped + at_0 * (self.all[within] - grouped) + stored

    def mean(self, within: bool) -> float:
        """Return the mean weight; nan where there is no entry."""
        if not self.all[within]:
            return float("nan")
        some = self.within == within
        more = float((self.values[some].astype(np.float64) - self.base[some]).sum())
        return (self.level * self.grouped[within] + more) / self.all[within]


def cluster_match(
    weights: Weights, clusters_n: Sequence[int], threshold: float = LINK_THRESHOLD
) -> float:
    """Return the link accuracy: the share of ordered pairs whose link agrees with the true clusters.

    In [0, 1]. Where W is symmetric, that is the share of unordered pairs. Where rows sum to 1, a client
    that gives all its weight to one of several clients of its cluster agrees on that one only.
    """
    entries = OffDiagonalWeights(weights, clusters_n)
    total = sum(entries.all.values())
    if not total:
        return 1.0
    right = entries.count(lambda w: w >= threshold, True)
    right += entries.count(lambda w: w < threshold, False)
    return right / total


def link_f1(
    weights: Weights, clusters_n: Sequence[int], threshold: float = LINK_THRESHOLD
) -> float:
    """Return the F1 score of the links: the harmonic mean of their precision and recall, in [0, 1].

    Over ordered pairs, as in `cluster_match`. 0 without a right link; 1 where there is none to find and W
    has none. Unlike the link accuracy it is not raised by the many pairs that are rightly not linked.
    """
    entries = OffDiagonalWeights(weights, clusters_n)
    right, wrong = (entries.count(lambda w: w >= threshold, within) for within in (True, False))
    every = right + wrong + entries.all[True]
    return 2 * right / every if every else 1.0


def adjusted_rand(
    weights: Weights, clusters_n: Sequence[int], threshold: float = LINK_THRESHOLD
) -> float:
    """Return the adjusted Rand index of the connected components and the true clusters, at most 1.

    It is 1 for equal partitions and 0 on average for random ones; 0 also where nobody is linked, or
    everybody, unless that is the truth.
    """
    return rand_of_labels(clusters_n, component_labels(weights, threshold))


def rand_of_labels(
    one_n: Sequence[int] | NDArray[np.int64], other_n: Sequence[int] | NDArray[np.int64]
) -> float:
    """Return the adjusted Rand index of two partitions of the same clients, at most 1.

    >>> rand_of_labels([0, 0, 1, 1], [5, 5, 2, 2]), rand_of_labels([0, 0, 0], [0, 1, 2])
    (1.0, 0.0)
    """
    # Not scikit-learn's: its import takes more than a second and 130 MB at the end of a run.
    both, of_one, of_other = (
        _pairs_in_groups(labels) for labels in (np.stack([one_n, other_n]), one_n, other_n)
    )
    total = len(one_n) * (len(one_n) - 1) / 2
    by_chance, most = of_one * of_other / max(1.0, total), (of_one + of_other) / 2
    return 1.0 if most == by_chance else float((both - by_chance) / (most - by_chance))


def _pairs_in_groups(labels: Sequence[int] | NDArray[np.int64]) -> float:
    """Return how many pairs have equal labels, [n], or equal columns of labels, [k, n]."""
    counts = np.unique(labels, axis=-1, return_counts=True)[1]
    return float((counts * (counts - 1)).sum() / 2)


def means_by_truth(weights: Weights, clusters_n: Sequence[int]) -> tuple[float, float]:
    """Return the mean weight within and between true clusters, without the diagonal; nan if no pair."""
    entries = OffDiagonalWeights(weights, clusters_n)
    return entries.mean(True), entries.mean(False)
