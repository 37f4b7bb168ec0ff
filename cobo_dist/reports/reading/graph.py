"""The graph of links after one round: its groups, how well they agree with the truth, and how it changes.

Shapes: n clients, m of them that are in the run, g groups, k snapshots.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cobo_dist.errors import ConfigError
from cobo_dist.maths.graph import (
    OffDiagonalWeights,
    adjusted_rand,
    component_labels,
    link_f1,
    link_threshold,
    means_by_truth,
    rand_of_labels,
)
from cobo_dist.maths.weights import Weights as Rows
from cobo_dist.reports.reading.groups import Groups
from cobo_dist.reports.reading.seriation import Floats, Ints, seriate, single_linkage, strengths
from cobo_dist.reports.reading.series import Series
from cobo_dist.reports.reading.sparse_weights import cell_means
from cobo_dist.reports.reading.weights import Weights

_MAX_ROWS = 2000
"""Rows of W that the share of changed links looks at: above, its time would grow with their square."""
_PIECE = 1 << 22
"""Weights in a dense piece of rows."""


@dataclass(frozen=True, eq=False)
class Graph:
    """W after one round among the m clients that are in the run then.

    A link is a weight of at least `threshold`, in either direction.
    """

    round: int
    weights: Rows  # [m, m]
    members: Ints  # the clients' numbers, ascending [m]
    clients: int  # n
    threshold: float
    top: float  # the end of the scale of weights
    names: tuple[str, ...]  # of the n clients; empty where they have none
    clusters: Ints | None  # the true ones, [m]; None: unknown

    @cached_property
    def label_m(self) -> Ints:
        """The connected component of each client, numbered from 0 in the order of first clients. [m]"""
        return component_labels(self.weights, self.threshold)

    @cached_property
    def groups(self) -> Groups:
        """The connected components."""
        label_n = np.full(self.clients, -1, dtype=np.int64)
        label_n[self.members] = self.label_m
        return Groups(label_n, self.threshold, self.names)

    @property
    def labels(self) -> list[str]:
        """What to call the clients: their names, or their numbers. [m]"""
        return [self.names[i] if self.names else str(i) for i in self.members.tolist()]

    @cached_property
    def strength_mm(self) -> Floats:
        """The larger direction of W, 0 for NaN and oneself. [m, m]"""
        return strengths(self.weights.dense())

    @cached_property
    def tree(self) -> tuple[Floats, Floats]:
        """The single-linkage tree of at least two clients, and the weight at its nodes (`single_linkage`)."""
        return single_linkage(self.strength_mm)

    @cached_property
    def order(self) -> Ints:
        """The leaves of the tree, places of clients from 0: linked ones are side by side. [m]"""
        return seriate(self.strength_mm)

    def only(self, places: Ints) -> Graph:
        """Return the graph of some of the clients, given as places from 0, ascending."""
        clusters = None if self.clusters is None else self.clusters[places]
        return replace(
            self, weights=self.weights.only(places), members=self.members[places], clusters=clusters
        )

    @property
    def empty(self) -> str:
        """Why there is no graph to draw; empty where there is one."""
        if len(self.members) < 2:
            return "a graph needs two clients, and one is in the run"
        if not OffDiagonalWeights(self.weights).count(lambda w: w > 0):
            return "no weight between two clients is above 0, so there is no graph"
        return ""

    @property
    def means(self) -> tuple[float, float]:
        """The mean weight within and across groups; NaN where there is no pair."""
        return means_by_truth(self.weights, self.label_m.tolist())

    @property
    def adjusted_rand(self) -> float | None:
        """The adjusted Rand index of the groups and the true clusters; None where these are unknown."""
        known = self.clusters
        return (
            None if known is None else adjusted_rand(self.weights, known.tolist(), self.threshold)
        )

    @property
    def link_f1(self) -> float | None:
        """The F1 score of the links; None where the true clusters are unknown."""
        known = self.clusters
        return None if known is None else link_f1(self.weights, known.tolist(), self.threshold)

    @property
    def same_groups(self) -> tuple[float, float]:
        """(low, high): all thresholds t with low < t <= high give the same groups of two or more clients."""
        joins = self.tree[1]
        below, above = joins[joins < self.threshold], joins[joins >= self.threshold]
        return float(below.max(initial=0.0)), float(above.min(initial=np.inf))

    def mean_between(self, label_m: Ints) -> npt.NDArray[np.float32]:
        """Return the mean weight within and between g groups of clients, both directions alike. [g, g]"""
        means = cell_means(self.weights, label_m)
        return np.asarray((means + means.T) / 2, dtype=np.float32)


def graph_of(weights: Weights, r: int | None = None, threshold: float | None = None) -> Graph:
    """Return the graph after round r, one of `weights.rounds`.

    Args:
        weights: the snapshots of a run.
        r: the round; None: the last one.
        threshold: the least weight of a link; None: the rule of `maths.graph.link_threshold`.

    Raises:
        ConfigError: the threshold is not a positive number.
    """
    r = int(weights.rounds[-1]) if r is None else r
    least = link_threshold(weights.share) if threshold is None else threshold
    if not 0.0 < least < np.inf:
        raise ConfigError(
            f"threshold is {least}, but a link has a positive weight; give a number above 0"
        )
    rows, n = weights.snapshot(r), weights.clients
    away = weights.away_at(r)
    members = np.arange(n) if away is None else np.flatnonzero(~away)
    clusters = weights.clusters_at(r)
    return Graph(
        round=r,
        weights=rows if len(members) == n else rows.only(members),
        members=members,
        clients=n,
        threshold=least,
        top=weights.top,
        names=weights.names,
        clusters=None if clusters is None else clusters[members],
    )


def stability(weights: Weights) -> dict[str, Series]:
    """Return how the graph changes from snapshot to snapshot, as series over the later one's round.

    `links_changed`: the share of pairs of clients, in the run at both, whose link appeared or went.
    `rand_previous`: the adjusted Rand index of the groups then and at the snapshot before. `rand_truth`: of
    the groups and the true clusters, where these are known. A quantity without a value has no series.
    """
    found: dict[str, Series] = {"links_changed": {}, "rand_previous": {}, "rand_truth": {}}
    last: Graph | None = None
    for r in weights.rounds.tolist():
        graph = graph_of(weights, r)
        if graph.clusters is not None and len(graph.members) > 1:
            found["rand_truth"][r] = rand_of_labels(graph.clusters, graph.label_m)
        if last is not None:
            both = np.intersect1d(last.members, graph.members)
            if len(both) > 1:
                found["links_changed"][r] = _changed(last, graph, both)
                labels = last.groups.labels[both], graph.groups.labels[both]
                found["rand_previous"][r] = rand_of_labels(*labels)
        last = graph
    return {name: series for name, series in found.items() if series}


def _changed(one: Graph, other: Graph, both: Ints) -> float:
    """The share of ordered pairs of some clients that are a link in one of two graphs only."""
    changed = total = 0
    visited = both[np.linspace(0, len(both) - 1, min(len(both), _MAX_ROWS)).astype(np.int64)]
    step = max(1, _PIECE // max(one.clients, other.clients))
    for start in range(0, len(visited), step):
        rows = visited[start : start + step]
        here, there = (_links(graph, rows, both) for graph in (one, other))
        changed += int((here != there).sum())
        total += len(rows) * (len(both) - 1)
    return changed / total


def _links(graph: Graph, rows: Ints, columns: Ints) -> npt.NDArray[np.bool_]:
    """Which weights of some clients for others are links; none for oneself. [rows, columns]"""
    place = np.searchsorted(graph.members, rows), np.searchsorted(graph.members, columns)
    linked = graph.weights.rows(place[0])[:, place[1]] >= graph.threshold
    return np.asarray(linked & (rows[:, None] != columns))
