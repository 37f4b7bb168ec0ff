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
from dataclasses import dataclass, field

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
    margin: float = 0.0,
    threshold: float = 0.0,
    capped: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the models X^T [n, d] and the weights W^T [n, n] after one round for each list of pairs.

    rho is the penalty on the distance of collaborators' models, gamma the step size of the weights, eta the
    step size of the models. `rho=0` is Local training. The last three keys are not the paper's.
    """
    s_nn = torch.ones(len(x_nd), len(x_nd), dtype=x_nd.dtype)  # W^0: all ones
    training = capped_training if capped else model_training
    for pairs in pairs_by_round:
        s_nn = client_selection(x_nd, s_nn, gradient, pairs, gamma, margin, threshold)
        x_nd = training(x_nd, s_nn.clamp(0, 1), gradient, rho, eta)  # with the new weights
    return x_nd, s_nn.clamp(0, 1)


def client_selection(
    x_nd: Tensor,
    s_nn: Tensor,
    gradient: Gradient,
    pairs: Pairs,
    gamma: float,
    margin: float = 0.0,
    threshold: float = 0.0,
) -> Tensor:
    """w_ij <- Proj_[0,1](w_ij + gamma <g_i(z), g_j(z)>) at the midpoint z = (x_i + x_j)/2 (equation 1).

    With a margin, s_ij keeps what is beyond [0, 1] for later, and w_ij is s_ij, clipped.
    """
    s_nn = s_nn.clone()
    for i, j in pairs:
        z_d = (x_nd[i] + x_nd[j]) / 2
        alignment = torch.dot(gradient(i, z_d), gradient(j, z_d))
        moved = s_nn[i, j] + gamma * (alignment - threshold)
        s_nn[i, j] = s_nn[j, i] = torch.clamp(moved, -margin, 1 + margin)
    return s_nn


@dataclass
class Evidence:
    """Client selection by evidence, in place of `client_selection` (not the paper's): it has no step size."""

    sum_nn: Tensor
    variance_nn: Tensor
    certainty: float = 1.0
    share: float = 0.8
    discount: float = 0.97
    recent: float = 0.0  # how many alignments the mean is of
    total: float = 0.0

    def select(self, x_nd: Tensor, w_nn: Tensor, gradient: Gradient, pairs: Pairs) -> Tensor:
        """w_ij <- clip(S_ij / sqrt(V_ij) - certainty, 0, 1) after a meeting; S and V add up evidence."""
        w_nn, alignments = w_nn.clone(), []
        for i, j in pairs:
            z_d = (x_nd[i] + x_nd[j]) / 2
            alignments.append(float(torch.dot(gradient(i, z_d), gradient(j, z_d))))
            if self.recent:
                evidence = alignments[-1] - self.share * max(0.0, self.total / self.recent)
                s = self.sum_nn[i, j] = self.discount * self.sum_nn[i, j] + evidence
                v = self.variance_nn[i, j] = self.discount**2 * self.variance_nn[i, j] + evidence**2
                w_nn[i, j] = w_nn[j, i] = torch.clamp(s / v.sqrt() - self.certainty, 0, 1)
        if alignments:
            self.recent = 0.9 * self.recent + len(alignments)
            self.total = 0.9 * self.total + sum(alignments)
        return w_nn


@dataclass
class Difference:
    """Client selection by differences of gradients, in place of `client_selection` (not the paper's).

    Clients are linked whose gradients at the mean of all models differ no more than `examples_n` examples of
    each, drawn alike, explain; their batches have `batch` of them, fewer than they have.
    """

    examples_n: Tensor
    batch: int = 1
    window: int = 10
    tolerance: float = 1.6
    step: float = 0.5
    gradients: list[Tensor] = field(default_factory=list)  # of this window
    before_nd: Tensor | None = None  # mean of the window before
    scores_nn: Tensor | None = None

    def select(self, w_nn: Tensor, g_nd: Tensor) -> Tensor:
        """Take a round's gradients at the mean model; return W, which moves once a window."""
        self.gradients.append(g_nd)
        if len(self.gradients) < self.window:
            return w_nn
        all_knd, self.gradients = torch.stack(self.gradients), []
        now_nd, before_nd, self.before_nd = all_knd.mean(dim=0), self.before_nd, all_knd.mean(dim=0)
        if before_nd is None:
            return w_nn
        left_n = (self.examples_n - 1) / (self.examples_n - self.batch)
        variance_n = (
            all_knd.var(dim=0).sum(dim=1) * self.batch * left_n
        )  # of one example's gradient
        chance_n = variance_n / self.examples_n
        s_nn = w_nn if self.scores_nn is None else self.scores_nn
        self.scores_nn = s_nn.clone()
        for i, j in torch.combinations(torch.arange(len(w_nn))).tolist():
            difference = torch.dot(now_nd[i] - now_nd[j], before_nd[i] - before_nd[j])
            evidence = 1 - difference / (self.tolerance * (chance_n[i] + chance_n[j]))
            moved = s_nn[i, j] + self.step * evidence.clamp(-1, 1)
            self.scores_nn[i, j] = self.scores_nn[j, i] = moved.clamp(-1, 2)
        return self.scores_nn.clamp(0, 1) * among_links(self.scores_nn)


def among_links(s_nn: Tensor) -> Tensor:
    """Return 1 where i is linked with more than half of j and j's other links, and j of i and i's; else 0.

    A link has s_ij >= 1/2, and that of i and j counts as one. The ends of a chain are not alike.
    """
    linked_nn = (s_nn >= 0.5).to(s_nn.dtype)
    linked_nn.fill_diagonal_(0)
    count_n = linked_nn.sum(dim=1)
    others_nn = torch.maximum(count_n[:, None], count_n) - linked_nn
    return (2 * (linked_nn @ linked_nn + 1) > others_nn + 1).to(s_nn.dtype)


def model_training(
    x_nd: Tensor, w_nn: Tensor, gradient: Gradient, rho: float, eta: float
) -> Tensor:
    """x_i <- x_i - eta (g_i(x_i) + rho sum_k w_ik (x_i - x_k)) for every i, all read at x^t."""
    g_nd = torch.stack([gradient(i, x_d) for i, x_d in enumerate(x_nd)])
    penalty_nd = w_nn.sum(dim=1, keepdim=True) * x_nd - w_nn @ x_nd  # sum_k w_ik (x_i - x_k)
    return x_nd - eta * (g_nd + rho * penalty_nd)


def capped_training(
    x_nd: Tensor, w_nn: Tensor, gradient: Gradient, rho: float, eta: float
) -> Tensor:
    """x_i <- y_i + sum_k a_ik (y_k - y_i), y_i = x_i - eta g_i, in place of `model_training`.

    It is not the paper's. a_ik = w_ik min(eta rho, 1 / (1 + max(deg_i, deg_k))): no rho makes it diverge.
    """
    y_nd = x_nd - eta * torch.stack([gradient(i, x_d) for i, x_d in enumerate(x_nd)])
    w_nn = w_nn - torch.diag(torch.diag(w_nn))
    degree_n = w_nn.sum(dim=1)
    a_nn = w_nn * (1 / (1 + torch.maximum(degree_n[:, None], degree_n))).clamp(max=eta * rho)
    return y_nd + a_nn @ y_nd - a_nn.sum(dim=1, keepdim=True) * y_nd


def sample_pairs(n: int, rounds: int, seed: int = 0) -> Iterator[list[tuple[int, int]]]:
    """Yield the pairs i < j of each round, each pair with probability 1/n."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(rounds):
        drawn_nn = torch.rand(n, n, generator=generator) < 1 / n
        yield [(i, j) for i, j in drawn_nn.triu(diagonal=1).nonzero().tolist()]
