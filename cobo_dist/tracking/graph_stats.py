"""Statistics of the collaboration graph after every round, without gathering W every round.

Rank 0 starts from a gathered W and applies the few weights that each round changed. Shapes: n clients.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cobo_dist.maths.graph import (
    OffDiagonalWeights,
    adjusted_rand,
    cluster_match,
    component_labels,
    components,
    link_f1,
    link_threshold,
    means_by_truth,
)
from cobo_dist.maths.true_graph import TrueGraph, graph_correlation
from cobo_dist.maths.weights import Weights

_ROUNDING = 1e-6  # error of the sum of a row of W


class GraphStats:
    """Shares of weights at 0 and at 1 and the number of connected components, after every round.

    `share` is one client's equal share where rows of W sum to 1, else 0. In a symmetric W each pair has one
    weight, in any other two.
    """

    def __init__(
        self, weights: Weights, share: float = 0.0, members_n: NDArray[np.bool_] | None = None
    ) -> None:
        """Start with the weights of all n clients, of which some are in the run; None: all."""
        self.share, self.link = share, link_threshold(share)
        self.one = 1.0 - _ROUNDING if share else 1.0
        self.reset(weights, members_n)

    def reset(self, weights: Weights, members_n: NDArray[np.bool_] | None = None) -> None:
        """Start again with a gathered W."""
        self.weights = weights.copy()
        n = weights.shape[1]
        self.members = np.arange(n) if members_n is None else np.flatnonzero(members_n)
        weights, m = self.of_members, len(self.members)
        self.pairs = m * (m - 1) // 2
        self.count = self.pairs if weights.symmetric else 2 * self.pairs  # of weights
        places = OffDiagonalWeights(weights)
        places_a_weight = 2 if weights.symmetric else 1
        self.at_0, self.at_1, self.links = (
            places.count(holds) // places_a_weight
            for holds in (self._is_0, self._is_1, self._is_link)
        )
        self.components = components(weights, self.link)

    @property
    def of_members(self) -> Weights:
        """The weights of the m clients that are in the run, among each other, [m, m]."""
        everybody = len(self.members) == self.weights.shape[1]
        return self.weights if everybody else self.weights.only(self.members)

    def move(
        self, first: NDArray[np.int64], second: NDArray[np.int64], weights: NDArray[np.floating]
    ) -> None:
        """Set the weights (first, second) that one round changed; a symmetric W stays symmetric."""
        old = self.weights.at(first, second)
        counted = first != second
        before, after = self._tally(old[counted]), self._tally(weights[counted])
        self.at_0 += after[0] - before[0]
        self.at_1 += after[1] - before[1]
        self.links += after[2] - before[2]
        if self.weights.symmetric:
            rows, columns = np.concatenate([first, second]), np.concatenate([second, first])
            self.weights.put(rows, columns, np.concatenate([weights, weights]))
        else:
            self.weights.put(first, second, weights)
        if (self._is_link(old) != self._is_link(weights)).any():  # else the components are the same
            self.components = components(self.of_members, self.link)

    def _is_0(self, weights: NDArray[np.floating]) -> NDArray[np.bool_]:
        return weights <= 0

    def _is_1(self, weights: NDArray[np.floating]) -> NDArray[np.bool_]:
        return weights >= self.one

    def _is_link(self, weights: NDArray[np.floating]) -> NDArray[np.bool_]:
        return weights >= self.link

    def _tally(self, weights: NDArray[np.floating]) -> tuple[int, ...]:
        """Count the weights at 0, at 1, and those that are links."""
        return tuple(int(holds(weights).sum()) for holds in (self._is_0, self._is_1, self._is_link))

    def is_uniform(self) -> bool:
        """Return whether every client gives every other an equal share, up to rounding."""
        near = OffDiagonalWeights(self.of_members).count(
            lambda w: np.abs(w / self.share - 1.0) < 1e-3
        )
        return near == 2 * self.pairs

    def clusters_found(self) -> NDArray[np.int64]:
        """Return the connected component of each client, [n]; -1 for clients that are not in the run."""
        found_n = np.full(self.weights.shape[1], -1)
        found_n[self.members] = component_labels(self.of_members, self.link)
        return found_n

    def means_by_truth(self, clusters_n: Sequence[int]) -> tuple[float, float]:
        """Return the mean weight within and between true clusters; nan if there is no pair."""
        return means_by_truth(self.of_members, np.asarray(clusters_n)[self.members].tolist())

    def agreement(
        self, clusters_n: Sequence[int] | None, graph: TrueGraph | None = None
    ) -> dict[str, float | None]:
        """Return the keys of the summary that compare W with true clusters and graph; None if unknown."""
        scores = {
            "cluster_match": cluster_match,
            "link_accuracy": cluster_match,
            "link_f1": link_f1,
            "adjusted_rand": adjusted_rand,
        }
        found: dict[str, float | None] = dict.fromkeys([*scores, "graph_correlation"])
        if clusters_n is not None:
            weights, truth = self.of_members, np.asarray(clusters_n)[self.members].tolist()
            found |= {name: of(weights, truth, self.link) for name, of in scores.items()}
        if graph is not None and len(self.members) == self.weights.shape[1]:
            found["graph_correlation"] = graph_correlation(self.weights, graph)
        return found

    def figures(self) -> dict[str, float | int]:
        """Return the keys of a round's row."""
        count = max(1, self.count)
        return {
            "weights_at_0": self.at_0 / count,
            "weights_at_1": self.at_1 / count,
            "components": self.components,
        }
