"""CoBo (Algorithm 1) in short: all clients in one array, exact gradients of quadratics.

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
    simplex: str = "",
    etas: list[float] | None = None,
    fixed: bool = False,
) -> tuple[Array, Array]:
    """Return X^T [n, d] and W^T [n, n] after one round for each list of pairs.

    `simplex`: the own weight is "excluded" from a client's row, or "included". `etas`: the step size of
    each round, `eta` the peak. `fixed`: the penalty at the peak, after the gradient step.
    """
    n = len(centers_nd)
    x = np.tile(start_d, (n, 1))
    w = np.full((n, n), w_0)
    takes_part = np.ones((n, n)) - (simplex == "excluded") * np.eye(n) > 0
    if simplex:
        w = takes_part / takes_part.sum(axis=1, keepdims=True)

    def gradient(i: int, point_d: Array) -> Array:
        return curvature_n[i] * (point_d - centers_nd[i])

    for t, pairs in enumerate(pairs_by_round):
        old = w.copy()
        # Client selection: w_ij <- Proj_[0,1](w_ij + gamma <g_i(z), g_j(z)>), z = (x_i + x_j)/2
        for i, j in pairs:
            z = (x[i] + x[j]) / 2
            g_i, g_j = gradient(i, z), gradient(j, z)
            alignment = g_i @ g_j
            if cosine:
                alignment /= np.linalg.norm(g_i) * np.linalg.norm(g_j)
            if simplex:
                w[i, j] += gamma * alignment
                w[j, i] += gamma * alignment
            else:
                w[i, j] = w[j, i] = min(1.0, max(0.0, w[i, j] + gamma * alignment))
        if simplex:
            for i in range(n):
                w[i, takes_part[i]] = onto_simplex(w[i, takes_part[i]])
        # Model training, with the new weights: x_i <- x_i - eta (g_i + rho sum_k w_ik (x_i - x_k))
        used = old if models_first else w
        eta_t = etas[t] if etas else eta
        gradients = np.stack([gradient(i, x[i]) for i in range(n)])
        after = x - eta_t * gradients
        read = after if fixed else x
        penalty = np.zeros_like(x)
        for i in range(n):
            for k in range(n):
                penalty[i] += rho * used[i, k] * (read[i] - read[k])
        x = after - (eta if fixed else eta_t) * penalty
    return x, w


def onto_simplex(v: Array) -> Array:
    """Project onto {w >= 0, sum w = 1}: the threshold theta of max(v - theta, 0), by bisection."""
    low, high = v.max() - 1.0, v.max()
    for _ in range(100):
        theta = (low + high) / 2
        low, high = (theta, high) if np.maximum(v - theta, 0).sum() > 1.0 else (low, theta)
    return np.maximum(v - theta, 0)
