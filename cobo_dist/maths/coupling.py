"""The capped coupling: weights that pull models together, and for no rho past one another.

After the local step y_i = x_i - eta direction_i, the explicit step of the penalty moves each model by
eta rho sum_k w_ik (y_k - y_i), which overshoots where eta rho deg_i is large. Capped, it is

    x_i = y_i + sum_k a_ik (y_k - y_i),   a_ik = w_ik min(eta rho, 1 / (1 + max(deg_i, deg_k))),

with deg_i = sum over k != i of w_ik. The matrix I + A - diag(A 1) is symmetric and doubly stochastic, so the
mean of linked models stays as it is. In a block of weights 1 every model becomes the mean of the block.

Shapes: c rows, n clients.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cobo_dist.maths.weights import Weights

Floats = NDArray[np.float64]


def degrees(weights: Weights, factors_n: Floats | None = None) -> Floats:
    """Return deg_i = sum over k != i of w_ik for each row, [c]; with factors, of w_ik f_k."""
    own_c = weights.at(np.arange(weights.shape[0]), weights.ids_c)
    if factors_n is not None:
        own_c = own_c * factors_n[weights.ids_c]
    return weights.sums(factors_n) - own_c


def capped(
    weights: Weights, degrees_n: Floats, pull: float, factors_n: Floats | None = None
) -> tuple[Weights, Floats, float]:
    """Return B, keep and scale, with which x_i = keep_i y_i + scale sum_k b_ik y_k.

    With D_i = max(1 + deg_i, 1/pull) it is a_ik = w_ik / max(D_i, D_k) for k != i, and b_ik = a_ik min(D). So
    b is 1 where all linked clients have one degree, and the mean of a block of ones has the bits of a sum
    that is divided once.

    Args:
        weights: this rank's rows of a symmetric W. Their diagonal makes no difference.
        degrees_n: of all clients.
        pull: eta rho, above 0.
        factors_n: what each model counts; None: 1. Then y_k stands for f_k times the model of client k.

    >>> ones = Weights([0, 1], groups_n=[0, 0], dtype=np.float64, symmetric=True)
    >>> b, keep_c, scale = capped(ones, np.array([1.0, 1.0]), pull=9.0)
    >>> b.dense().tolist(), keep_c.tolist(), scale
    ([[1.0, 1.0], [1.0, 1.0]], [0.0, 0.0], 0.5)
    """
    bound_n = np.maximum(1.0 + degrees_n, 1.0 / pull)
    least = float(bound_n.min())
    every, ids = np.arange(weights.shape[0]), weights.ids_c
    if (bound_n == least).all():
        b = weights.copy()
    else:
        n = weights.shape[1]
        b = Weights(ids, np.arange(n), 0.0, weights.dtype.type, symmetric=True)
        rows, columns, values = nonzero(weights)
        b.put(rows, columns, values * (least / np.maximum(bound_n[ids[rows]], bound_n[columns])))
    b.put(every, ids, np.ones(len(ids)))  # any number: what a model gives itself, it keeps
    keep_c = (least - b.sums(factors_n)) / least
    return b, keep_c, 1.0 / least


def nonzero(weights: Weights) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Return rows, columns and values of the weights that are not 0, row by row."""
    if weights.level:
        rows, columns = np.nonzero(dense := weights.dense())
        return rows, columns, dense[rows, columns].astype(np.float64)
    rows, columns, values = weights.entries()
    return rows, columns, values.astype(np.float64)
