"""The graph of collaboration from round to round, without gathering W every round.

The coordinator starts from a gathered W and plays the few weights that each round moved. Shapes: n clients.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cobo_dist.maths.graph import LINK, components


class GraphLog:
    """Shares of weights at 0 and at 1 and the number of connected components, after every round."""

    def __init__(self, weights_nn: NDArray[np.floating]) -> None:
        self.reset(weights_nn)

    def reset(self, weights_nn: NDArray[np.floating]) -> None:
        """Take over a gathered W (symmetric)."""
        self.weights_nn = weights_nn.copy()
        n = len(weights_nn)
        upper = self.weights_nn[np.triu_indices(n, k=1)]
        self.pairs = len(upper)
        self.at_0, self.at_1 = int((upper <= 0).sum()), int((upper >= 1).sum())
        self.links = int((upper >= LINK).sum())
        self.components = components(self.weights_nn)

    def move(
        self, first: NDArray[np.int64], second: NDArray[np.int64], weights: NDArray[np.floating]
    ) -> None:
        """Set the weights of the pairs (first, second) that one round drew."""
        old = self.weights_nn[first, second]
        self.at_0 += int((weights <= 0).sum()) - int((old <= 0).sum())
        self.at_1 += int((weights >= 1).sum()) - int((old >= 1).sum())
        self.links += int((weights >= LINK).sum()) - int((old >= LINK).sum())
        self.weights_nn[first, second] = weights
        self.weights_nn[second, first] = weights
        if ((old >= LINK) != (weights >= LINK)).any():  # only then can components have changed
            self.components = components(self.weights_nn)

    def figures(self) -> dict[str, float | int]:
        """Return the columns of a round's row."""
        pairs = max(1, self.pairs)
        return {
            "weights_at_0": self.at_0 / pairs,
            "weights_at_1": self.at_1 / pairs,
            "components": self.components,
        }
