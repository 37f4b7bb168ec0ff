"""The variants of CoBo on quadratics in one array, from the steps of `cobo_dist.reference`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobo_dist import reference
from cobo_dist.maths import seeds

Array = NDArray[np.float64]
Pairs = Sequence[tuple[int, int]]


def dense_cobo(
    problem: Path,
    pairs_by_round: Sequence[Pairs],
    *,
    rho: float,
    gamma: float,
    eta: float,
    w_0: float = 1.0,
    cosine: bool = False,
    models_first: bool = False,
    simplex: str = "",
    etas: Sequence[float] = (),
    fixed: bool = False,
    margin: float = 0.0,
    threshold: float = 0.0,
    capped: bool = False,
    evidence: reference.Evidence | None = None,
    difference: reference.Difference | None = None,
    sketch: int = 0,
    noise: float = 0.0,
) -> tuple[Array, Array]:
    """Return X^T [n, d] and W^T [n, n] of a problem file after one round for each list of pairs.

    `simplex`: the own weight is "excluded" from a client's row, or "included". `etas`: the step size of
    each round, `eta` the peak. `fixed`: the penalty at the peak, after the gradient step. `evidence` selects
    in place of the gradient step, and so does `difference`. `sketch`: how many sums of gradients are
    compared. `noise` is that of gradients at models, seed 0.
    """
    arrays = {name: torch.from_numpy(array) for name, array in np.load(problem).items()}
    n = len(arrays["centers"])
    x_nd = arrays["start"].expand(n, -1)

    def gradient(i: int, point_d: Tensor) -> Tensor:
        return arrays["curvature"][i] * (point_d - arrays["centers"][i])

    def aligned(i: int, point_d: Tensor) -> Tensor:
        """The inner product of unit gradients is their cosine."""
        g_d = gradient(i, point_d)
        return g_d / g_d.norm() if cosine else g_d

    if not (
        w_0 != 1.0
        or cosine
        or models_first
        or simplex
        or etas
        or fixed
        or evidence
        or difference
        or sketch
    ):
        x_nd, w_nn = reference.cobo(
            x_nd, gradient, pairs_by_round, rho=rho, gamma=gamma, eta=eta,
            margin=margin, threshold=threshold, capped=capped,
        )  # fmt: skip
        return x_nd.numpy(), w_nn.numpy()
    w_nn = torch.full((n, n), w_0, dtype=torch.float64)
    takes_part = torch.eye(n) == 0 if simplex == "excluded" else torch.ones(n, n) > 0
    if simplex:
        w_nn = takes_part / takes_part.sum(dim=1, keepdim=True).double()
    s_nn = w_nn
    training = reference.capped_training if capped else reference.model_training
    for t, pairs in enumerate(pairs_by_round):
        old_nn, eta_t = w_nn, etas[t] if etas else eta
        if difference:
            at_mean_nd, own_nd = (
                torch.stack([gradient(i, x_d) for i, x_d in enumerate(points_nd)])
                + noise * normals(stream, t, *x_nd.shape)
                for stream, points_nd in (("midpoint", x_nd.mean(0).expand(n, -1)), ("local", x_nd))
            )
            w_nn = difference.select(w_nn, at_mean_nd)
            x_nd = training(x_nd, old_nn if models_first else w_nn, fixed_rows(own_nd), rho, eta_t)
            continue
        if simplex:
            w_nn = row_selection(x_nd, w_nn, aligned, pairs, gamma, takes_part)
        elif evidence:
            w_nn = evidence.select(x_nd, w_nn, aligned, pairs)
        else:
            for pair in pairs:  # each has signs of its own
                compared = sketched(aligned, sketch, t, pair) if sketch else aligned
                s_nn = reference.client_selection(
                    x_nd, s_nn, compared, [pair], gamma, margin, threshold
                )
            w_nn = s_nn.clamp(0, 1)
        used_nn = old_nn if models_first else w_nn
        if fixed:
            x_nd = reference.model_training(x_nd, used_nn, gradient, 0.0, eta_t)
            x_nd = training(x_nd, used_nn, lambda i, x_d: 0 * x_d, rho, eta)
        else:
            x_nd = training(x_nd, used_nn, gradient, rho, eta_t)
    return x_nd.numpy(), w_nn.numpy()


def normals(stream: str, t: int, n: int, d: int) -> Tensor:
    """Return the task's noise of round t, seed 0, [n, d]."""
    keys = [seeds.key(0, f"noise {stream}", t, i) for i in range(n)]
    return torch.stack([seeds.normals(key, d) for key in keys]).double()


def sketched(
    gradient: reference.Gradient, k: int, t: int, pair: tuple[int, int]
) -> reference.Gradient:
    """Return k random sums of gradients in place of them, with the signs of a pair, seed 0."""

    def few(i: int, point_d: Tensor) -> Tensor:
        g_d = gradient(i, point_d)
        return torch.from_numpy(count_sketch(g_d.numpy(), k, seeds.key(0, "sketch", t, *pair)))

    return few


def count_sketch(row_d: Array, k: int, key: int) -> Array:
    """Add each number, with a sign from the bits of the key's words, to one of k sums in turn."""
    words = seeds.words(seeds.signed(key), len(row_d) // 64 + 1, 0, "cpu").numpy().view(np.uint64)
    sums_k = np.zeros(k)
    for place, number in enumerate(row_d):
        bit = int(words[place // 64]) >> place % 64 & 1
        sums_k[place % k] += number if bit else -number
    return sums_k


def fixed_rows(g_nd: Tensor) -> reference.Gradient:
    """Return gradients that have been taken."""
    return lambda i, _: g_nd[i]


def row_selection(
    x_nd: Tensor,
    w_nn: Tensor,
    gradient: reference.Gradient,
    pairs: Pairs,
    gamma: float,
    takes_part: Tensor,
) -> Tensor:
    """Each row moves by the alignments of all its pairs of the round, then onto the simplex (Remark 1)."""
    w_nn = w_nn.clone()
    for i, j in pairs:
        z_d = (x_nd[i] + x_nd[j]) / 2
        alignment = torch.dot(gradient(i, z_d), gradient(j, z_d))
        w_nn[i, j] += gamma * alignment
        w_nn[j, i] += gamma * alignment
    for row_n, part_n in zip(w_nn, takes_part, strict=True):
        row_n[part_n] = onto_simplex(row_n[part_n])
    return w_nn


def onto_simplex(v: Tensor) -> Tensor:
    """Project onto {w >= 0, sum w = 1}: the threshold theta of max(v - theta, 0), by bisection."""
    low, high = v.max() - 1.0, v.max()
    for _ in range(100):
        theta = (low + high) / 2
        low, high = (theta, high) if (v - theta).clamp(min=0).sum() > 1.0 else (low, theta)
    return (v - theta).clamp(min=0)
