"""Runs of `cobo_dist.reference` on quadratic problems, and Theorem 1's quantities along them.

Shapes: n clients in clusters of c, cluster by cluster; d parameters; T rounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobo_dist import reference

Floats = NDArray[np.float64]
NOISE_ROWS = 4096


@dataclass(frozen=True)
class Problem:
    """f_i(x) = 1/2 (x - mu_i)^T A_i (x - mu_i) with symmetric A_i and one mu a cluster; all start alike."""

    hessians_ndd: Tensor
    centers_nd: Tensor
    start_d: Tensor
    c: int

    @property
    def n(self) -> int:
        """The number of clients."""
        return len(self.centers_nd)

    @property
    def smoothness(self) -> float:
        """The largest curvature L."""
        return float(torch.linalg.eigvalsh(self.hessians_ndd).max())

    def gap(self) -> float:
        """Return the mean over pairs i, j of a cluster of f_ij(x^0) - min f_ij, with f_ij = (f_i + f_j)/2."""
        away_nd = self.start_d - self.centers_nd
        return float(torch.einsum("nd,nde,ne->n", away_nd, self.hessians_ndd, away_nd).mean() / 2)


def example_2(clusters: int, c: int, spread: float = 0.2, d: int = 10, seed: int = 0) -> Problem:
    """Return the paper's Example 2: A_i = a_i I, a_i within 1 +- spread, so that M_ij <= spread."""
    random = torch.Generator().manual_seed(seed)
    centers = torch.randn(clusters, d, generator=random, dtype=torch.float64)
    a_n = 1 + spread * (2 * torch.rand(clusters * c, generator=random, dtype=torch.float64) - 1)
    hessians = a_n[:, None, None] * torch.eye(d, dtype=torch.float64)
    start = torch.randn(d, generator=random, dtype=torch.float64)
    return Problem(hessians, centers.repeat_interleave(c, dim=0), start, c)


def two_kinds(
    m_squared: float, rotated: bool, clusters: int = 2, c: int = 4, d: int = 10
) -> Problem:
    """Return clusters in which every second client has another curvature, with M_ij^2 between them; L = 1.

    Not rotated, A is I and a I, as in Example 2, with a = (1 - M)/(1 + M), M below 1. Rotated, A has the
    eigenvalues 1 and k in each plane, along axes that differ by 60 degrees; M^2 is 3 at most, where k is 0.
    """
    m = math.sqrt(m_squared)
    base = example_2(clusters, c, 0.0, d)
    if rotated:
        turn = math.pi / 3
        s = m / (math.sin(turn) + m * math.cos(turn))  # (1 - k)/(1 + k)
        planes = [
            [[1 + s * math.cos(turn), sign * s * math.sin(turn)],
             [sign * s * math.sin(turn), 1 - s * math.cos(turn)]]
            for sign in (1, -1)
        ]  # fmt: skip
        kinds = [
            torch.block_diag(*[torch.tensor(one, dtype=torch.float64) / (1 + s)] * (d // 2))
            for one in planes
        ]
    else:
        one = torch.eye(d, dtype=torch.float64)
        kinds = [one, one * (1 - m) / (1 + m)]
    hessians = torch.stack([kinds[i % 2] for i in range(base.n)])
    return Problem(hessians, base.centers_nd, base.start_d, c)


def measured_m_squared(problem: Problem) -> float:
    """Return the largest ||(A_i - A_j) v||^2 / ||(A_i + A_j) v||^2 of the first two clients."""
    one, other = problem.hessians_ndd[:2]
    return float(torch.linalg.matrix_norm((one - other) @ torch.linalg.inv(one + other), 2) ** 2)


@dataclass(frozen=True)
class Trace:
    """What Theorem 1 bounds, at the models of each round, and W at the end."""

    consensus_t: Floats  # mean of ||x_i - x_j||^2 over pairs within clusters
    gradient_t: Floats  # mean of ||grad f_i(x_i)||^2 over clients
    w_nn: Floats
    c: int

    @property
    def within(self) -> float:
        """The mean weight within clusters."""
        same = self._same() & ~np.eye(len(self.w_nn), dtype=bool)
        return float(self.w_nn[same].mean())

    @property
    def across(self) -> float:
        """The mean weight between clusters."""
        return float(self.w_nn[~self._same()].mean())

    @property
    def between_kinds(self) -> float:
        """The mean weight of pairs of a cluster whose numbers differ by an odd number."""
        numbers = np.arange(len(self.w_nn))
        odd = (numbers[:, None] + numbers) % 2 == 1
        return float(self.w_nn[self._same() & odd].mean())

    def _same(self) -> NDArray[np.bool_]:
        cluster_n = np.arange(len(self.w_nn)) // self.c
        return np.asarray(cluster_n[:, None] == cluster_n)


class NoisyGradients:
    """Gradients of the clients with normal noise of standard deviation sigma in each coordinate."""

    def __init__(self, problem: Problem, sigma: float, seed: int) -> None:
        self.problem, self.sigma = problem, sigma
        self._random = torch.Generator().manual_seed(seed)
        self._noise: list[Tensor] = []

    def __call__(self, i: int, point_d: Tensor) -> Tensor:
        """Return client i's gradient at the point, with new noise."""
        gradient_d = self.problem.hessians_ndd[i] @ (point_d - self.problem.centers_nd[i])
        if not self.sigma:
            return gradient_d
        if not self._noise:
            shape = (NOISE_ROWS, len(point_d))
            rows = self.sigma * torch.randn(*shape, generator=self._random, dtype=torch.float64)
            self._noise = list(rows.unbind())
        return gradient_d + self._noise.pop()


def run(
    problem: Problem,
    *,
    rho: float,
    eta: float,
    rounds: int,
    sigma: float = 0.0,
    gamma: float = 0.05,
    seed: int = 0,
    capped: bool = False,
    known: bool = False,
) -> Trace:
    """Run CoBo, whose pairs meet with probability 1/n; `known`: W is the clusters' and does not change.

    It ends early once models are beyond 1e100.
    """
    n, gradient = problem.n, NoisyGradients(problem, sigma, seed)
    x_nd = problem.start_d.expand(n, -1).clone()
    s_nn = torch.ones(n, n, dtype=torch.float64)
    if known:
        s_nn = torch.block_diag(*[s_nn[: problem.c, : problem.c]] * (n // problem.c))
    training = reference.capped_training if capped else reference.model_training
    points = []
    for pairs in reference.sample_pairs(n, rounds, seed):
        if not known:
            s_nn = reference.client_selection(x_nd, s_nn, gradient, pairs, gamma)
        x_nd = training(x_nd, s_nn, gradient, rho, eta)
        points.append(x_nd)
        if not float(x_nd.abs().max()) < 1e100:
            break
    return trace(problem, torch.stack(points), s_nn.numpy())


def trace(problem: Problem, x_tnd: Tensor, w_nn: Floats) -> Trace:
    """Return Theorem 1's quantities at the models of T rounds."""
    rounds, n, d = x_tnd.shape
    of_cluster = x_tnd.view(rounds, n // problem.c, problem.c, d)
    # The mean over pairs of ||x_i - x_j||^2 is twice the sample variance.
    consensus_t = 2 * of_cluster.var(dim=2, correction=1).sum(dim=-1).mean(dim=1)
    gradients = torch.einsum("nde,tne->tnd", problem.hessians_ndd, x_tnd - problem.centers_nd)
    gradient_t = gradients.square().sum(dim=-1).mean(dim=1)
    return Trace(consensus_t.numpy(), gradient_t.numpy(), w_nn, problem.c)
