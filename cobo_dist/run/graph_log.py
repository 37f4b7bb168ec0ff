"""The graph of collaboration from round to round, without gathering W every round.

The coordinator starts from a gathered W and plays the few weights that each round moved. Shapes: n clients.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cobo_dist.maths.graph import components, link_level

_ROUNDING = 1e-6  # of a row that sums to 1


class GraphLog:
    """Shares of weights at 0 and at 1 and the number of connected components, after every round.

    `share` is one client's equal share where rows of W sum to 1: then w_ij and w_ji are two weights.
    Otherwise it is 0, W is symmetric, and each pair has one weight.
    """

    def __init__(self, weights_nn: NDArray[np.floating], share: float = 0.0) -> None:
        n = len(weights_nn)
        self.share, self.link = share, link_level(share)
        self.one = 1.0 - _ROUNDING if share else 1.0
        self.pairs = n * (n - 1) // 2
        self.count = 2 * self.pairs if share else self.pairs  # of weights
        self.reset(weights_nn)

    def reset(self, weights_nn: NDArray[np.floating]) -> None:
        """Take over a gathered W."""
        self.weights_nn = weights_nn.copy()
        counted_nn = np.triu(np.ones(weights_nn.shape, dtype=bool), k=1)
        if self.share:
            counted_nn |= counted_nn.T
        self.at_0, self.at_1, self.links = self._tally(weights_nn[counted_nn])
        self.components = components(weights_nn, self.link)

    def move(
        self, first: NDArray[np.int64], second: NDArray[np.int64], weights: NDArray[np.floating]
    ) -> None:
        """Set the weights (first, second) that one round moved; W stays symmetric where it is."""
        old = self.weights_nn[first, second]
        counted = first != second
        before, after = self._tally(old[counted]), self._tally(weights[counted])
        self.at_0 += after[0] - before[0]
        self.at_1 += after[1] - before[1]
        self.links += after[2] - before[2]
        self.weights_nn[first, second] = weights
        if not self.share:
            self.weights_nn[second, first] = weights
        if ((old >= self.link) != (weights >= self.link)).any():  # else components stay
            self.components = components(self.weights_nn, self.link)

    def _tally(self, weights: NDArray[np.floating]) -> tuple[int, int, int]:
        """Return how many weights are at 0, how many at 1, and how many are links."""
        return (
            int((weights <= 0).sum()),
            int((weights >= self.one).sum()),
            int((weights >= self.link).sum()),
        )

    def is_uniform(self) -> bool:
        """Return whether every client gives every other an equal share, up to rounding."""
        off = ~np.eye(len(self.weights_nn), dtype=bool)
        return bool((np.abs(self.weights_nn[off] / self.share - 1.0) < 1e-3).all())

    def figures(self) -> dict[str, float | int]:
        """Return the columns of a round's row."""
        count = max(1, self.count)
        return {
            "weights_at_0": self.at_0 / count,
            "weights_at_1": self.at_1 / count,
            "components": self.components,
        }
