"""What the collaboration weights say: links, groups, agreement with known clusters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LINK = 0.5
"""A weight of at least this counts as a link: the inner problem's maximiser is 0 or 1, and this is
the nearer one."""


def components(weights_nn: NDArray[np.floating]) -> int:
    """Return the number of connected components of the graph of links (weights >= 0.5), n >= 1."""
    from scipy.sparse.csgraph import connected_components

    count, _ = connected_components(weights_nn >= LINK, directed=False)
    return int(count)


def cluster_match(weights_nn: NDArray[np.floating], clusters_n: Sequence[int]) -> float:
    """Return the share of unordered pairs whose link agrees with the true clusters, in [0, 1]."""
    truth = np.asarray(clusters_n)
    upper = np.triu_indices(len(truth), k=1)
    if not len(upper[0]):
        return 1.0
    agrees = (weights_nn >= LINK) == (truth[:, None] == truth[None, :])
    return float(agrees[upper].mean())


def means_by_truth(
    weights_nn: NDArray[np.floating], clusters_n: Sequence[int]
) -> tuple[float, float]:
    """Return the mean weight within and across true clusters, diagonal left out; nan if no pair."""
    truth = np.asarray(clusters_n)
    same = truth[:, None] == truth[None, :]
    off = ~np.eye(len(truth), dtype=bool)
    within, across = weights_nn[same & off], weights_nn[~same]
    return (
        float(within.mean()) if within.size else float("nan"),
        float(across.mean()) if across.size else float("nan"),
    )
