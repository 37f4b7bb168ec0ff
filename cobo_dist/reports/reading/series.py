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
) -> dict[str, Series]:
    """Mean weight of the links `within` and `across` true clusters, at each logged round.

    rounds [k], weights [k, n, n], clusters [n], or [k, n] where they change. Without clusters there is one
    series, `all pairs`.
    A kind of link that does not exist (one client, or one cluster) has no series.
    """
    others = ~np.eye(weights.shape[1], dtype=bool)
    kinds = {"all pairs": others}
    if clusters is not None:
        same = clusters[..., :, None] == clusters[..., None, :]
        kinds = {"within": others & same, "across": others & ~same}
    return {
        kind: {
            int(number): float(matrix[own].mean(dtype=np.float64))
            for number, matrix, own in zip(
                rounds, weights, np.broadcast_to(mask, weights.shape), strict=True
            )
            if own.any()
        }
        for kind, mask in kinds.items()
        if mask.any()
    }
