"""CoBo on one array: Algorithm 1 of the paper in plain torch, to read and to check against.

The distributed CoBo (`cobo_dist.algorithms.cobo`) must equal it; the tests compare the two. Here all n models
are the rows of one tensor X [n, d], all weights one tensor W [n, n], and `gradient(i, point)` returns client
i's gradient [d] at a point, on a batch of client i's own data.

Two clusters of two clients, with f_i(x) = 1/2 ||x - c_i||^2:

>>> import torch
>>> from cobo_dist.reference import cobo, sample_pairs
>>> centers = torch.tensor([[0.0], [0.2], [4.0], [4.2]], dtype=torch.float64)
>>> start = torch.full((4, 1), 2.0, dtype=torch.float64)
>>> X, W = cobo(start, lambda i, point: point - centers[i], sample_pairs(4, rounds=300),
...             rho=2.0, gamma=0.1, eta=0.1)
>>> X.flatten().round(decimals=2).tolist()
[0.08, 0.12, 4.08, 4.12]
>>> (W > 0.5).int().tolist()
[[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

Gradient = Callable[[int, Tensor], Tensor]
Pairs = Iterable[tuple[int, int]]


def cobo(
    x_nd: Tensor,
    gradient: Gradient,
    pairs_by_round: Iterable[Pairs],
    *,
    rho: float,
    gamma: float,
    eta: float,
) -> tuple[Tensor, Tensor]:
    """Return the models X^T [n, d] and the weights W^T [n, n] after one round for each list of pairs.

    rho is the penalty on the distance of collaborators' models, gamma the step size of the weights, eta the
    step size of the models. `rho=0` is Local training.
    """
    w_nn = torch.ones(len(x_nd), len(x_nd), dtype=x_nd.dtype)  # W^0: all ones
    for pairs in pairs_by_round:
        w_nn = client_selection(x_nd, w_nn, gradient, pairs, gamma)
        x_nd = model_training(x_nd, w_nn, gradient, rho, eta)  # with the new weights
    return x_nd, w_nn


def client_selection(
    x_nd: Tensor, w_nn: Tensor, gradient: Gradient, pairs: Pairs, gamma: float
) -> Tensor:
    """w_ij <- Proj_[0,1](w_ij + gamma <g_i(z), g_j(z)>) at the midpoint z = (x_i + x_j)/2 (equation 1)."""
    w_nn = w_nn.clone()
    for i, j in pairs:
        z_d = (x_nd[i] + x_nd[j]) / 2
        alignment = torch.dot(gradient(i, z_d), gradient(j, z_d))
        w_nn[i, j] = w_nn[j, i] = torch.clamp(w_nn[i, j] + gamma * alignment, 0, 1)
    return w_nn


def model_training(
    x_nd: Tensor, w_nn: Tensor, gradient: Gradient, rho: float, eta: float
) -> Tensor:
    """x_i <- x_i - eta (g_i(x_i) + rho sum_k w_ik (x_i - x_k)) for every i, all read at x^t."""
    g_nd = torch.stack([gradient(i, x_d) for i, x_d in enumerate(x_nd)])
    penalty_nd = w_nn.sum(dim=1, keepdim=True) * x_nd - w_nn @ x_nd  # sum_k w_ik (x_i - x_k)
    return x_nd - eta * (g_nd + rho * penalty_nd)


def sample_pairs(n: int, rounds: int, seed: int = 0) -> Iterator[list[tuple[int, int]]]:
    """Yield the pairs i < j of each round, each pair with probability 1/n."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(rounds):
        drawn_nn = torch.rand(n, n, generator=generator) < 1 / n
        yield [(i, j) for i, j in drawn_nn.triu(diagonal=1).nonzero().tolist()]
