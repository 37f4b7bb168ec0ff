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
)
from cobo_dist.maths.true_graph import TrueGraph, graph_correlation
from cobo_dist.maths.weights import Weights

_ROUNDING = 1e-6  # error of the sum of a row of W


class GraphStats:
    """Shares of weights at 0 and at 1 and the number of connected components, after every round.

    `share` is one client's equal share where rows of W sum to 1, else 0. In a symmetric W each pair has one
    weight, in any other two.
    """

    def __init__(self, weights: Weights, share: float = 0.0) -> None:
        """Start with the weights of all n clients."""
        n = weights.shape[1]
        self.share, self.link = share, link_threshold(share)
        self.one = 1.0 - _ROUNDING if share else 1.0
        self.pairs = n * (n - 1) // 2
        self.count = self.pairs if weights.symmetric else 2 * self.pairs  # of weights
        self.reset(weights)

    def reset(self, weights: Weights) -> None:
        """Start again with a gathered W."""
        self.weights = weights.copy()
        places = OffDiagonalWeights(weights)
        places_a_weight = 2 if weights.symmetric else 1
        self.at_0, self.at_1, self.links = (
            places.count(holds) // places_a_weight
            for holds in (self._is_0, self._is_1, self._is_link)
        )
        self.components = components(weights, self.link)

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
            self.components = components(self.weights, self.link)

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
        near = OffDiagonalWeights(self.weights).count(lambda w: np.abs(w / self.share - 1.0) < 1e-3)
        return near == 2 * self.pairs

    def clusters_found(self) -> NDArray[np.int64]:
        """Return the connected component of each client, [n]."""
        return component_labels(self.weights, self.link)

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
            found |= {name: of(self.weights, clusters_n, self.link) for name, of in scores.items()}
        if graph is not None:
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
