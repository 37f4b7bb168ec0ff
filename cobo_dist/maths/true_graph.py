"""The right collaboration graph of a problem, where one can be said: how alike any two clients are.

Clusters are the special case in which clients are alike or not. Rows are computed when asked for, from each
client's place, so n clients take O(n) memory.

Shapes: n clients, m of them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobo_dist.maths.weights import Weights

Places = NDArray[Any]
Alike = Callable[[Places, Places], NDArray[np.floating[Any]]]
"""Gives the weight in [0, 1] of clients at these places, elementwise: 1 for equal places, and symmetric."""

_MAX_DENSE = 1 << 22
"""Weights in a dense piece of rows."""

_MAX_ROWS = 2000
"""Clients that a correlation looks at: above, its time would grow with the square of their number."""


def same(one: Places, other: Places) -> NDArray[np.floating[Any]]:
    """Clusters: 1 within one, 0 between two."""
    return np.asarray(one == other, dtype=np.float64)


@dataclass(frozen=True)
class TrueGraph:
    """Right weights of n clients; of several factors, each with a place for each client, their product.

    >>> ring = TrueGraph.of([0, 1, 2], lambda one, other: 1.0 - 0.5 * abs(one - other))
    >>> (ring & TrueGraph.of([0, 0, 1])).rows([0]).tolist()
    [[1.0, 0.5, 0.0]]
    """

    factors: tuple[tuple[Places, Alike], ...]

    @classmethod
    def of(cls, places_n: Sequence[float] | Places, alike: Alike = same) -> TrueGraph:
        """Return the graph of clients at these places; by default, places are clusters."""
        return cls(((np.asarray(places_n), alike),))

    def __and__(self, other: TrueGraph) -> TrueGraph:
        """Return the graph of clients that must be alike in both ways."""
        return TrueGraph((*self.factors, *other.factors))

    @property
    def are_clusters(self) -> bool:
        """Whether clusters say all that there is to say."""
        return all(alike is same for _, alike in self.factors)

    @property
    def clients(self) -> int:
        """The number of clients n."""
        return len(self.factors[0][0])

    @property
    def order(self) -> NDArray[np.int64]:
        """Clients by their places, so that clients that are alike are next to each other, [n]."""
        return np.lexsort([places_n for places_n, _ in reversed(self.factors)]).astype(np.int64)

    def reordered(self, order: Sequence[int]) -> TrueGraph:
        """Return the graph in which client i is client order[i] of this one."""
        return TrueGraph(tuple((places_n[list(order)], alike) for places_n, alike in self.factors))

    def rows(self, clients: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the right weights of some clients to all, [m, n], and 1 to themselves."""
        product = np.ones((len(clients), self.clients))
        for places_n, alike in self.factors:
            product *= alike(places_n[np.asarray(clients)][:, None], places_n[None, :])
        return product.astype(np.float32)


@dataclass(frozen=True)
class Truth:
    """True clusters and the right graph in each round r = 1 .. T; r = 0 is before round 1.

    Both are the same in all rounds of a phase. Phase k + 1 begins with round `switches[k]`.
    """

    clusters: tuple[tuple[int, ...] | None, ...]  # of each phase; None: unknown
    graphs: tuple[TrueGraph | None, ...]  # of each phase; None: clusters say it, or it is unknown
    switches: tuple[int, ...] = ()  # ascending

    @classmethod
    def constant(cls, clusters: Sequence[int] | None, graph: TrueGraph | None = None) -> Truth:
        """Return what holds in all rounds."""
        return cls((None if clusters is None else tuple(clusters),), (graph,))

    def phase(self, r: int) -> int:
        """Return the phase of round r."""
        return bisect_right(self.switches, r)

    def clusters_at(self, r: int) -> tuple[int, ...] | None:
        """Return the true cluster of each client in round r, [n]; None if unknown."""
        return self.clusters[self.phase(r)]

    def graph_at(self, r: int) -> TrueGraph | None:
        """Return the right graph in round r, where clusters do not say it."""
        return self.graphs[self.phase(r)]

    def of_clients(self, like: Sequence[int] | NDArray[np.int64]) -> Truth:
        """Return clusters of as many clients as `like` has, each like one of these; graphs are left out."""
        clusters = tuple(
            None if one is None else tuple(np.asarray(one)[like].tolist()) for one in self.clusters
        )
        return Truth(clusters, (None,) * len(clusters), self.switches)


def graph_correlation(weights: Weights, graph: TrueGraph) -> float | None:
    """Return the correlation of W's weights with those of the right graph over ordered pairs, in [-1, 1].

    `weights` are all n rows, of which at most `_MAX_ROWS` count, at equal distances. None where one of the
    two is the same for all pairs.
    """
    n = graph.clients
    sums, products = np.zeros(2), np.zeros((2, 2))
    visited = np.linspace(0, n - 1, min(n, _MAX_ROWS)).astype(np.int64)
    step = max(1, _MAX_DENSE // n)
    for start in range(0, len(visited), step):
        rows = visited[start : start + step]
        off = rows[:, None] != np.arange(n)
        pairs = np.stack([weights.rows(rows)[off], graph.rows(rows)[off]]).astype(np.float64)
        sums += pairs.sum(axis=1)
        products += pairs @ pairs.T
    count = max(1, len(visited) * (n - 1))
    means = sums / count
    covariance = products / count - np.outer(means, means)
    own = np.diag(covariance)
    # The difference of two nearly equal sums is rounded, so it may not be exactly 0.
    if (own <= 1e-9 * np.square(means)).any():
        return None
    return float(covariance[0, 1] / np.sqrt(own[0] * own[1]))
