"""Series: one number a round, and the mean weights of links as such series."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Series = dict[int, float]
"""One quantity of one run: round -> value."""


def link_strengths(
    rounds: npt.NDArray[np.int64],
    weights: npt.NDArray[np.floating[Any]],
    clusters: npt.NDArray[np.int64] | None,
    absent: npt.NDArray[np.bool_] | None = None,
) -> dict[str, Series]:
    """Mean weight of the links `within` and `across` true clusters, at each logged round.

    rounds [k], weights [k, n, n], clusters [n]; clients that are `absent` [k, n] do not count. Without
    clusters there is one series, `all pairs`.
    A kind of link that does not exist (one client, or one cluster) has no series.
    """
    others = ~np.eye(weights.shape[1], dtype=bool)
    here = np.ones(weights.shape[:2], dtype=bool) if absent is None else ~absent
    kinds = {"all pairs": others}
    if clusters is not None:
        same = clusters[:, None] == clusters[None, :]
        kinds = {"within": others & same, "across": others & ~same}
    return {
        kind: {
            int(number): float(matrix[counted].mean(dtype=np.float64))
            for number, matrix, here_n in zip(rounds, weights, here, strict=True)
            if (counted := mask & here_n & here_n[:, None]).any()
        }
        for kind, mask in kinds.items()
        if mask.any()
    }
