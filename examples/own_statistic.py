"""A statistic for CoBo: the inner product, cut off at the smaller of the two squared norms.

A client with a large gradient then moves a weight no more than its partner's own gradient would.

    python -m cobo_dist.train plugins=examples/own_statistic.py algorithm.alignment=clipped
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cobo_dist import register

Floats = NDArray[np.float64]


@register.statistic("clipped")
def clipped(dots_e: Floats, squares_i_e: Floats, squares_j_e: Floats) -> Floats:
    """Return <g_i, g_j>, at most min(||g_i||^2, ||g_j||^2) and at least minus that, for each pair [e]."""
    most_e = np.minimum(squares_i_e, squares_j_e)
    return np.clip(dots_e, -most_e, most_e)
