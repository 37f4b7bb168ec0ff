"""What methods share that learn rows of W anew in every round: comparing all models, and whose rows change.

Shapes: n clients, c on this rank, d parameters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobo_dist.algorithms.algorithm import Algorithm, AlgorithmSection
from cobo_dist.algorithms.base import Exchange, RunContext
from cobo_dist.lazy import Tensor
from cobo_dist.maths.flat import Scratch
from cobo_dist.maths.weights import Weights

Floats = NDArray[np.float64]


class LearnedRowsConfig(AlgorithmSection):
    """What a method says that compares all clients."""

    def comparisons(self, t: int, context: RunContext) -> float:
        """All clients are compared with one another."""
        return float(context.clients**2)


class LearnedRows(Algorithm):
    """A method whose rows of W sum to 1 and are computed anew, among the clients that take part."""

    learns_weights = True

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.ids_c = np.array(self.clients.ids, dtype=np.int64)
        # Allocated once: CUDA graphs are recorded for addresses.
        self.scratch = Scratch(self.clients.x_cd.dtype, self.clients.x_cd.device)

    def possible_weights(self) -> dict[str, Weights | None]:
        """Return what `plan` counts beside W^0: no two weights equal."""
        return {"any W": None}

    def others(self, part_n: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return [c, n]: whether two clients are not the same one, and both take part."""
        apart_cn: NDArray[np.bool_] = self.ids_c[:, None] != np.arange(len(part_n))
        return apart_cn & part_n[self.ids_c, None] & part_n

    def use_rows(
        self, rows_cn: Floats, part_n: NDArray[np.bool_], *, symmetric: bool = False
    ) -> Weights:
        """Put the rows of the clients that take part into W; return W with the identity for the others.

        The others keep their rows of W for later rounds, so that W is directed. `symmetric`: the returned
        weights are not, which saves messages.
        """
        taking_c = part_n[self.ids_c]
        rows_cn = np.where(
            taking_c[:, None], rows_cn, self.ids_c[:, None] == np.arange(len(part_n))
        )
        rows_cn = rows_cn.astype(self.weight_type)
        self.weights.put_rows(np.flatnonzero(taking_c), rows_cn[taking_c])
        return Weights.of_rows(self.clients.ids, rows_cn, symmetric)


def products_and_squares(
    exchange: Exchange, ids_c: NDArray[np.int64], rows_cd: Tensor
) -> tuple[Floats, Floats]:
    """Return <a_i, a_j> [c, n] of this rank's rows with all clients', and all squared norms [n]."""
    products_cn = exchange.gram(rows_cd)
    own_c = products_cn[np.arange(len(ids_c)), ids_c]
    return products_cn, exchange.all_gather(own_c).astype(np.float64)
