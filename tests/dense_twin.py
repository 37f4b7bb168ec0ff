"""CoBo (Algorithm 1) in forty lines: all clients in one array, exact gradients of quadratics.

To be read beside the paper. The distributed one must equal it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def dense_cobo(
    centers_nd: Array,
    curvature_n: Array,
    start_d: Array,
    pairs_by_round: list[list[tuple[int, int]]],
    *,
    rho: float,
    gamma: float,
    eta: float,
    w_0: float = 1.0,
    cosine: bool = False,
    models_first: bool = False,
) -> tuple[Array, Array]:
    """Return X^T [n, d] and W^T [n, n] after one round for each list of pairs."""
    n = len(centers_nd)
    x = np.tile(start_d, (n, 1))
    w = np.full((n, n), w_0)

    def gradient(i: int, point_d: Array) -> Array:
        return curvature_n[i] * (point_d - centers_nd[i])

    for pairs in pairs_by_round:
        old = w.copy()
        # Client selection: w_ij <- Proj_[0,1](w_ij + gamma <g_i(z), g_j(z)>), z = (x_i + x_j)/2
        for i, j in pairs:
            z = (x[i] + x[j]) / 2
            g_i, g_j = gradient(i, z), gradient(j, z)
            alignment = g_i @ g_j
            if cosine:
                alignment /= np.linalg.norm(g_i) * np.linalg.norm(g_j)
            w[i, j] = w[j, i] = min(1.0, max(0.0, w[i, j] + gamma * alignment))
        # Model training, with the new weights: x_i <- x_i - eta (g_i + rho sum_k w_ik (x_i - x_k))
        used = old if models_first else w
        step = np.zeros_like(x)
        for i in range(n):
            step[i] = gradient(i, x[i])
            for k in range(n):
                step[i] += rho * used[i, k] * (x[i] - x[k])
        x = x - eta * step
    return x, w
