"""Client selection by differences of gradients: a link is cut where two clients' data are not alike.

All links begin at 1, so that models stay close and gradients compare. Two clients whose data are drawn alike
still have different gradients, since each has a finite number of examples. A link whose difference exceeds
what that explains loses weight.

Shapes: n clients, c on this rank, d parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cobo_dist.algorithms.base import AlgorithmState, Clients, Exchange, RunContext, WeightUpdates
from cobo_dist.errors import ConfigError
from cobo_dist.lazy import torch
from cobo_dist.maths.alignment import row_dots
from cobo_dist.maths.flat import to_device
from cobo_dist.maths.weights import Weights

if TYPE_CHECKING:
    from cobo_dist.algorithms.cobo_config import DifferenceConfig

Floats = NDArray[np.float64]

MARGIN = 1.0
"""Evidence for a link that is kept beyond w = 1, so that a few noisy windows do not weaken it."""
_WORST = -3.0
"""The least evidence of one window: a first gradient that is many times too different cuts a link at once."""


class DifferenceSelection:
    """w_ij = clip(s_ij, 0, 1), s_ij <- clip(s_ij + step f_ij (1 - D_ij / (tolerance E_ij)), 0, 2) a window.

    c_i and p_i are client i's mean gradients in this window of rounds and in the one before. Their batches
    differ, so D_ij = <c_i - c_j, p_i - p_j> has no bias by noise: it is the squared distance of the
    gradients on all training data. E_ij = v_i / N_i + v_j / N_j is its expectation for N_i and N_j examples
    that are drawn alike, v_i being the variance of the gradient of one example: that of the batches of a
    window, times what a batch without replacement makes of it. A client whose batch is all it has takes the
    mean of the others' v.
    f_ij = sqrt(f_i f_j), f_i being v_i over its largest value so far: once clients have fitted their
    examples, differences say little.

    Gradients compare at models that are close. So evidence for a link counts w_ij^2, and at s_ij = 0 a link
    is cut for good.
    """

    def __init__(
        self,
        config: DifferenceConfig,
        clients: Clients,
        exchange: Exchange,
        context: RunContext,
        weights: Weights,
    ) -> None:
        """Start with all links and no gradients.

        Raises:
            ConfigError: no client has more examples than its gradient of a round is taken on.
        """
        self.config, self.clients, self.exchange = config, clients, exchange
        self.context, self.weights = context, weights
        self.examples_n = np.asarray(context.examples, np.float64)
        self.batch_n = np.asarray(context.examples_a_round, np.float64)
        if not (self.batch_n < self.examples_n).any():
            raise ConfigError(
                "algorithm.selection=difference compares clients by the noise of their batches, and here a "
                f"round uses all examples of every client (at most {int(self.examples_n.max())}); set "
                "a smaller data.batch_size or fewer local steps, or another algorithm.selection"
            )
        self.sum_cd = torch.zeros_like(clients.x_cd)
        self.before_cd = torch.zeros_like(clients.x_cd)
        # Of each client: rounds in this window, sum of squared norms, rounds in the window before, largest v.
        self.facts_c4 = torch.zeros(
            len(clients.ids), 4, dtype=torch.float64, device=clients.x_cd.device
        )
        self.scores = weights.copy()

    def add(self, t: int) -> None:
        """Add the gradients of round t of the clients that take part."""
        rows = np.flatnonzero(self.context.taking_part(t)[list(self.clients.ids)])
        g_cd = self.clients.g_cd
        squares = row_dots(g_cd, rows, g_cd, rows, deterministic=not g_cd.is_cuda)
        if len(rows) == len(g_cd):
            self.sum_cd.add_(g_cd)
        else:
            some = to_device(rows, g_cd.device)
            self.sum_cd.index_add_(0, some, g_cd[some])
        some = to_device(rows, g_cd.device)
        self.facts_c4[some, 0] += 1.0
        self.facts_c4[some, 1] += squares.double()

    def select(self, t: int) -> list[WeightUpdates]:
        """Add round t; at the end of a window compare all clients, and return how W changed."""
        self.add(t)
        if (t + 1) % self.config.window:
            return []
        facts_c4 = self.facts_c4.cpu().numpy()
        self.sum_cd.div_(self.facts_c4[:, :1].clamp(min=1.0).to(self.sum_cd.dtype))  # c
        found = [] if t + 1 == self.config.window else self._compare(facts_c4)
        self.before_cd, self.sum_cd = self.sum_cd, self.before_cd.zero_()
        self.facts_c4[:, 2] = self.facts_c4[:, 0]
        self.facts_c4[:, :2] = 0.0
        return found

    def _compare(self, facts_c4: NDArray[np.float64]) -> list[WeightUpdates]:
        """Move the scores of all pairs by the windows' gradients; `before_cd` is free afterwards."""
        ids = np.asarray(self.clients.ids)
        variance_c = self._variances(facts_c4)
        largest_c = np.fmax(facts_c4[:, 3], variance_c)
        self.facts_c4[:, 3] = torch.from_numpy(largest_c)
        # <c_i, p_j> + <p_i, c_j> = (<c_i + p_i, c_j + p_j> - <c_i - p_i, c_j - p_j>) / 2
        c_cd = self.sum_cd
        crossed_cn = self.exchange.gram(self.before_cd.add_(c_cd))
        crossed_cn = crossed_cn - self.exchange.gram(self.before_cd.neg_().add_(c_cd, alpha=2.0))
        crossed_cn /= 2.0
        counts = (facts_c4[:, 0] > 1.0) & (facts_c4[:, 2] > 0.0)
        own_c = crossed_cn[np.arange(len(ids)), ids] / 2.0
        fade_c = np.divide(
            variance_c, largest_c, out=np.ones_like(largest_c), where=largest_c > 0.0
        )
        own_n, variance_n, fade_n, counts_n = self.exchange.all_gather(
            np.stack([own_c, variance_c, np.nan_to_num(fade_c, nan=1.0), counts], axis=1)
        ).T
        known_n = np.isfinite(variance_n) & (counts_n > 0)
        if not known_n.any():
            return []
        variance_n = np.where(np.isfinite(variance_n), variance_n, variance_n[known_n].mean())
        by_chance_n = variance_n / self.examples_n
        difference_cn = own_n[ids, None] + own_n - crossed_cn
        chance_cn = self.config.tolerance * (by_chance_n[ids, None] + by_chance_n)
        compared_cn = (counts_n[ids, None] > 0) & (counts_n > 0) & (chance_cn > 0.0)
        compared_cn &= ids[:, None] != np.arange(len(counts_n))
        rows, others = np.nonzero(compared_cn)
        evidence_k = 1.0 - difference_cn[rows, others] / chance_cn[rows, others]
        fade_k = np.sqrt(fade_n[ids[rows]] * fade_n[others])
        return self._move(rows, others, np.clip(evidence_k, _WORST, 1.0), fade_k)

    def _variances(self, facts_c4: NDArray[np.float64]) -> Floats:
        """Return the variance of the gradient of one example of each client, [c]; NaN where it is unknown."""
        ids = list(self.clients.ids)
        every = np.arange(len(ids))
        squares = row_dots(
            self.sum_cd, every, self.sum_cd, every, deterministic=not self.sum_cd.is_cuda
        )
        examples_c, batch_c, rounds_c = self.examples_n[ids], self.batch_n[ids], facts_c4[:, 0]
        known_c = (rounds_c > 1.0) & (batch_c < examples_c)
        of_batch_c = facts_c4[:, 1] / np.maximum(rounds_c, 1.0) - squares.double().cpu().numpy()
        of_batch_c = np.maximum(of_batch_c, 0.0) * rounds_c / np.maximum(rounds_c - 1.0, 1.0)
        left_c = np.where(known_c, examples_c - batch_c, 1.0)
        return np.where(known_c, of_batch_c * batch_c * (examples_c - 1.0) / left_c, np.nan)

    def _move(
        self, rows: NDArray[np.intp], others: NDArray[np.intp], evidence_k: Floats, fade_k: Floats
    ) -> list[WeightUpdates]:
        """Move the scores of links that are left, and put their weights into W."""
        ids = np.asarray(self.clients.ids)
        first_k = ids[rows] < others
        alignments = evidence_k[first_k]
        old_k = self.scores.at(rows, others)
        left_k = old_k > 0.0
        rows, others, old_k = rows[left_k], others[left_k], old_k[left_k]
        evidence_k, fade_k = evidence_k[left_k], fade_k[left_k]
        # Models that hardly pull each other come apart, and then their gradients say nothing for the link.
        together_k = np.where(evidence_k > 0.0, np.clip(old_k, 0.0, 1.0) ** 2, 1.0)
        moved_k = old_k + self.config.step * fade_k * together_k * evidence_k
        self.scores.put(rows, others, np.clip(moved_k, 0.0, 1.0 + MARGIN))
        weights_k = np.clip(moved_k, 0.0, 1.0).astype(self.weights.dtype)
        changed_k = weights_k != self.weights.at(rows, others)
        rows, others, weights_k = rows[changed_k], others[changed_k], weights_k[changed_k]
        self.weights.put(rows, others, weights_k)
        once_k = ids[rows] < others
        return [WeightUpdates(ids[rows][once_k], others[once_k], weights_k[once_k], alignments)]

    def state(self) -> AlgorithmState:
        """Return the gradients of both windows, and the scores."""
        return AlgorithmState(
            rows={
                "difference.sum": self.sum_cd,
                "difference.before": self.before_cd,
                "difference.facts": self.facts_c4,
            },
            pairs={"difference.scores": self.scores},
        )
