"""Client selection by differences of gradients: clients are linked whose data are alike.

Two clients whose data are drawn alike still have different gradients, since each has a finite number of
examples. All clients take a gradient at one point, the mean of all models: what the midpoint is to two. Those
whose gradients there differ no more than that explains are linked.

Shapes: n clients, c on this rank, d parameters, k pairs of this rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cobo_dist.algorithms.base import AlgorithmState, Clients, Exchange, RunContext, WeightUpdates
from cobo_dist.errors import ConfigError
from cobo_dist.lazy import torch
from cobo_dist.maths.alignment import squared_norms
from cobo_dist.maths.flat import to_device
from cobo_dist.maths.weights import Weights

if TYPE_CHECKING:
    from cobo_dist.algorithms.cobo_config import DifferenceConfig

Floats = NDArray[np.float64]

LINK = 0.5
"""The score of a link."""
MARGIN = 1.0
"""Evidence that is kept beyond w = 0 and w = 1, so that a few noisy windows change nothing."""


class DifferenceSelection:
    """w_ij = clip(s_ij, 0, 1), s_ij <- clip(s_ij + step clip(1 - D_ij / (tolerance E_ij), -1, 1), -1, 2).

    That is once a window of rounds. c_i and p_i are the means of client i's gradients at the mean of all
    models, in this window and in the one before. Their batches differ, so D_ij = <c_i - c_j, p_i - p_j> has
    no bias by noise: it is the squared distance of the gradients on all training data. E_ij = v_i / N_i +
    v_j / N_j is its expectation for N_i and N_j examples that are drawn alike, v_i being the variance of the
    gradient of one example: that of the batches of a window, times what a batch without replacement makes of
    it. A client whose batch is all it has takes the mean of the others' v.

    Where alikeness is a matter of degree, each client is like its neighbors and the ends of such a chain are
    not alike, but linked models become one. So w_ij is 0 unless i is linked with more than half of j and j's
    other links, and j with more than half of i and i's. A link has s_ij >= 1/2, as that of i and j counts.

    Scores begin at W^0. No client's own model matters, so links are made and cut at any time.
    """

    def __init__(
        self,
        config: DifferenceConfig,
        clients: Clients,
        exchange: Exchange,
        context: RunContext,
        weights: Weights,
        stream: str,
    ) -> None:
        """Start from W^0, without gradients; `stream` names the batches for the mean model.

        Raises:
            ConfigError: no client has more examples than a batch.
        """
        self.config, self.clients, self.exchange = config, clients, exchange
        self.context, self.weights, self.stream = context, weights, stream
        self.examples_n = np.asarray(context.examples, np.float64)
        if not (context.batch_size < self.examples_n).any():
            raise ConfigError(
                "algorithm.selection=difference compares clients by the noise of their batches, and here a "
                f"batch of {context.batch_size} has all examples of every client (at most "
                f"{int(self.examples_n.max())}); set a smaller data.batch_size or another "
                "algorithm.selection"
            )
        self.sum_cd = torch.zeros_like(clients.x_cd)
        self.before_cd = torch.zeros_like(clients.x_cd)
        # Of each client: rounds in this window, sum of squared norms, rounds in the window before.
        self.facts_c3 = torch.zeros(
            len(clients.ids), 3, dtype=torch.float64, device=clients.x_cd.device
        )
        self.scores = weights.copy()

    def select(self, t: int) -> list[WeightUpdates]:
        """Add round t; at the end of a window compare all clients, and return how W changed."""
        self.add(t)
        if (t + 1) % self.config.window:
            return []
        facts_c3 = self.facts_c3.cpu().numpy()
        self.sum_cd.div_(self.facts_c3[:, :1].clamp(min=1.0).to(self.sum_cd.dtype))  # c
        found = [] if t + 1 == self.config.window else self._compare(t, facts_c3)
        self.before_cd, self.sum_cd = self.sum_cd, self.before_cd.zero_()
        self.facts_c3[:, 2] = self.facts_c3[:, 0]
        self.facts_c3[:, :2] = 0.0
        return found

    def add(self, t: int) -> None:
        """Add gradients at the mean model of the clients that take part, by these clients."""
        part_n = self.context.taking_part(t).astype(np.float64)
        if not part_n.any():
            return
        clients = self.clients
        mean_1d = self.exchange.all_reduce(part_n[None] / part_n.sum(), clients.x_cd)
        rows = np.flatnonzero(part_n[list(clients.ids)])
        g_ed = clients.gradients_at(mean_1d.expand(len(rows), -1), rows, t, self.stream)
        at = to_device(rows, g_ed.device)
        self.sum_cd.index_add_(0, at, g_ed)
        self.facts_c3[at, 0] += 1.0
        self.facts_c3[at, 1] += squared_norms(g_ed)

    def restart(
        self, rows_e: NDArray[np.int64], others_e: NDArray[np.int64], weights_e: Floats
    ) -> None:
        """Begin anew with some pairs, of clients in rows with others [e], which now have these weights."""
        self.scores.put(rows_e, others_e, weights_e)

    def _compare(self, t: int, facts_c3: NDArray[np.float64]) -> list[WeightUpdates]:
        """Move the scores of all pairs by the windows' gradients; `before_cd` is free afterwards."""
        ids = np.asarray(self.clients.ids)
        # <c_i, p_j> + <p_i, c_j> = (<c_i + p_i, c_j + p_j> - <c_i - p_i, c_j - p_j>) / 2
        c_cd = self.sum_cd
        of_sums_cn = self.exchange.gram(self.before_cd.add_(c_cd))
        of_differences_cn = self.exchange.gram(self.before_cd.neg_().add_(c_cd, alpha=2.0))
        crossed_cn = (of_sums_cn - of_differences_cn) / 2.0
        counts_c = (facts_c3[:, 0] > 1.0) & (facts_c3[:, 2] > 0.0)
        own_c = crossed_cn[np.arange(len(ids)), ids] / 2.0
        own_n, variance_n, counts_n = self.exchange.all_gather(
            np.stack([own_c, self._variances(facts_c3), counts_c], axis=1)
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
        members_n = self.context.members(t)
        return self._move(rows, others, np.clip(evidence_k, -1.0, 1.0), members_n)

    def _variances(self, facts_c3: NDArray[np.float64]) -> Floats:
        """Return the variance of the gradient of one example of each client, [c]; NaN where it is unknown."""
        examples_c, rounds_c = self.examples_n[list(self.clients.ids)], facts_c3[:, 0]
        batch = self.context.batch_size
        known_c = (rounds_c > 1.0) & (batch < examples_c)
        of_batch_c = (
            facts_c3[:, 1] / np.maximum(rounds_c, 1.0) - squared_norms(self.sum_cd).cpu().numpy()
        )
        of_batch_c = np.maximum(of_batch_c, 0.0) * rounds_c / np.maximum(rounds_c - 1.0, 1.0)
        left_c = np.where(known_c, examples_c - batch, 1.0)
        return np.where(known_c, of_batch_c * batch * (examples_c - 1.0) / left_c, np.nan)

    def _move(
        self,
        rows: NDArray[np.intp],
        others: NDArray[np.intp],
        evidence_k: Floats,
        members_n: NDArray[np.bool_],
    ) -> list[WeightUpdates]:
        """Move the scores of pairs, and put the weights that change into W; links are of members."""
        ids = np.asarray(self.clients.ids)
        old_k = self.scores.at(rows, others)
        scores_k = np.clip(old_k + self.config.step * evidence_k, -MARGIN, 1.0 + MARGIN)
        moved_k = scores_k != old_k
        self.scores.put(rows[moved_k], others[moved_k], scores_k[moved_k])
        w_cn = np.clip(self.scores.dense(), 0.0, 1.0).astype(self.weights.dtype)
        w_cn[np.arange(len(ids)), ids] = 0.0
        w_cn *= members_n & members_n[ids, None]
        w_cn *= self._in_company(w_cn >= LINK)
        alignments = evidence_k[ids[rows] < others]
        rows, others = np.nonzero(
            (w_cn != self.weights.dense()) & (ids[:, None] != np.arange(w_cn.shape[1]))
        )
        weights_k = w_cn[rows, others]
        self.weights.put(rows, others, weights_k)
        once_k = ids[rows] < others
        return [WeightUpdates(ids[rows][once_k], others[once_k], weights_k[once_k], alignments)]

    def _in_company(self, linked_cn: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return whether a link of i and j would be among links [c, n].

        That is: more than half of j and j's other links are linked with i, and the other way round. These
        are whole numbers, so all ranks decide alike.
        """
        a_cn = linked_cn.astype(np.float32)
        a_nn = self.exchange.all_gather(a_cn)
        of_i_c1, of_j_n = a_cn.sum(axis=1, keepdims=True), a_nn.sum(axis=1)
        others_cn = np.maximum(of_i_c1, of_j_n) - a_cn
        return np.asarray(2.0 * (a_cn @ a_nn + 1.0) > others_cn + 1.0)

    def state(self) -> AlgorithmState:
        """Return the gradients of both windows, and the scores."""
        return AlgorithmState(
            rows={
                "difference.sum": self.sum_cd,
                "difference.before": self.before_cd,
                "difference.facts": self.facts_c3,
            },
            pairs={"difference.scores": self.scores},
        )
