"""What the collaboration weights say: links, groups, agreement with known clusters.

Where rows of W sum to 1, `share` is one client's equal share of a row; where each weight lives in [0, 1] it
is 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LINK = 0.5
"""A weight of at least this counts as a link: the inner problem's maximiser is 0 or 1, and this is
the nearer one."""

ABOVE = 1.001
"""Where rows sum to 1, more than an equal share is a link: by this factor, to be beyond rounding."""


def link_level(share: float = 0.0) -> float:
    """Return the least weight that counts as a link."""
    return ABOVE * share if share else LINK


def components(weights_nn: NDArray[np.floating], level: float = LINK) -> int:
    """Return the number of connected components of the graph of links (either way), n >= 1."""
    from scipy.sparse.csgraph import connected_components

    count, _ = connected_components(weights_nn >= level, directed=False)
    return int(count)


def cluster_match(
    weights_nn: NDArray[np.floating], clusters_n: Sequence[int], level: float = LINK
) -> float:
    """Return the share of ordered pairs whose link agrees with the true clusters, in [0, 1].

    Where W is symmetric that is the share of unordered pairs. Where rows sum to 1, a client that gives
    all to one of several clients like itself agrees on that one alone.
    """
    truth = np.asarray(clusters_n)
    off = ~np.eye(len(truth), dtype=bool)
    if not off.any():
        return 1.0
    agrees = (weights_nn >= level) == (truth[:, None] == truth[None, :])
    return float(agrees[off].mean())


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
