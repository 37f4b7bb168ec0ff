"""Client selection on the box: how meetings of a pair become its weight w_ij in [0, 1].

`gradient` is the paper's projected gradient ascent of the inner problem, which may keep evidence beyond the
box. `evidence` asks how certain it is that two clients help each other, and has no step size.
`cobo_difference` has selection without meetings.

Shapes: n clients, c on this rank, e ends of pairs on this rank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cobo_dist.algorithms.base import AlgorithmState, PairEnds
from cobo_dist.lazy import torch
from cobo_dist.maths.weights import Weights

if TYPE_CHECKING:
    from cobo_dist.algorithms.cobo_config import CoBoConfig, EvidenceConfig

Floats = NDArray[np.float64]

RECENT_ROUNDS = 10
"""The running mean of alignments is that of about so many rounds in which pairs met."""


class Selection(ABC):
    """Turns alignments into weights. Both owners of a pair compute the same."""

    @abstractmethod
    def select(self, ends: PairEnds, alignment_e: Floats) -> Floats:
        """Return the new weights [e] of pairs that met."""

    def numbers(self) -> list[Floats]:
        """Return columns [c] of numbers of this rank's clients, whose sums `learn` wants after the round."""
        return []

    def learn(self, pairs: int, sums: Floats) -> None:  # noqa: B027
        """Take the number of pairs of the round, and the sums of those columns over all clients."""

    def restart(  # noqa: B027
        self, rows_e: NDArray[np.int64], others_e: NDArray[np.int64], weights_e: Floats
    ) -> None:
        """Begin anew with some pairs, of clients in rows with others [e], which now have these weights."""

    def state(self) -> AlgorithmState:
        """Return what is kept beside W, for checkpoints."""
        return AlgorithmState()


class GradientSelection(Selection):
    """s_ij <- clip(s_ij + gamma (alignment - threshold), -margin, 1 + margin), w_ij = clip(s_ij, 0, 1).

    It begins at s^0 = W^0. Without margin and threshold it is equation 1, and s is W. Without a
    bound the margin makes it dual averaging of the same inner problem.
    """

    def __init__(self, config: CoBoConfig, weights: Weights) -> None:
        self.config = config
        # One matrix where there is nothing beyond the box: what is put there is what W holds.
        self.scores = weights.copy() if config.margin else weights

    def select(self, ends: PairEnds, alignment_e: Floats) -> Floats:
        config = self.config
        moved_e = self.scores.at(ends.rows, ends.partners) + config.gamma * (
            alignment_e - config.threshold
        )
        # 0.0 - margin: -margin would be -0.0, which a weight then keeps.
        scores_e = np.clip(moved_e, 0.0 - config.margin, 1.0 + config.margin)
        self.scores.put(ends.rows, ends.partners, scores_e)
        return np.clip(moved_e, 0.0, 1.0)

    def restart(
        self, rows_e: NDArray[np.int64], others_e: NDArray[np.int64], weights_e: Floats
    ) -> None:
        self.scores.put(rows_e, others_e, weights_e)

    def state(self) -> AlgorithmState:
        return AlgorithmState(pairs={"scores": self.scores} if self.config.margin else {})


class EvidenceSelection(Selection):
    """w_ij = clip(t_ij - certainty, 0, 1), t_ij = S_ij / sqrt(V_ij).

    At each meeting, with e = alignment - share max(0, mean), S_ij <- discount S_ij + e and V_ij <- discount^2
    V_ij + e^2; the mean is that of all alignments of the last rounds. So t_ij is how many standard deviations
    of what chance would add up to the evidence is, and whatever the scale of alignments is drops out. After
    k meetings of equal evidence it is sqrt(k). Inner products shrink as clients fit their data, so late noise
    counts little. If all clients descend the same way, alignments are near their mean, above `share` of it,
    and all are linked.
    """

    def __init__(self, config: EvidenceConfig, weights: Weights) -> None:
        self.config, self.weights = config, weights
        n = weights.shape[1]
        self.sum, self.variance = (
            Weights(weights.ids_c, np.arange(n), 0.0, np.float64, symmetric=True) for _ in range(2)
        )
        self.sum_c = np.zeros(len(weights.ids_c))  # of this round's alignments
        self.recent_2 = torch.zeros(2, dtype=torch.float64)  # number and sum of alignments

    def select(self, ends: PairEnds, alignment_e: Floats) -> Floats:
        np.add.at(self.sum_c, ends.rows[ends.first], alignment_e[ends.first])
        rows, partners = ends.rows, ends.partners
        count, total = self.recent_2.tolist()
        if not count:  # nothing to compare with yet
            return self.weights.at(rows, partners).astype(np.float64)
        evidence_e = alignment_e - self.config.share * max(0.0, total / count)
        discount = self.config.discount
        sum_e = discount * self.sum.at(rows, partners) + evidence_e
        variance_e = discount**2 * self.variance.at(rows, partners) + np.square(evidence_e)
        self.sum.put(rows, partners, sum_e)
        self.variance.put(rows, partners, variance_e)
        deviation_e = np.sqrt(np.maximum(variance_e, np.finfo(np.float64).tiny))
        weights_e: Floats = np.clip(sum_e / deviation_e - self.config.certainty, 0.0, 1.0)
        return weights_e

    def restart(
        self, rows_e: NDArray[np.int64], others_e: NDArray[np.int64], weights_e: Floats
    ) -> None:
        for matrix in (self.sum, self.variance):
            matrix.put(rows_e, others_e, np.zeros(len(rows_e)))

    def numbers(self) -> list[Floats]:
        return [self.sum_c]

    def learn(self, pairs: int, sums: Floats) -> None:
        if pairs:
            new_2 = torch.tensor([float(pairs), *sums.tolist()], dtype=torch.float64)
            self.recent_2.mul_(1.0 - 1.0 / RECENT_ROUNDS).add_(new_2)
        self.sum_c = np.zeros_like(self.sum_c)

    def state(self) -> AlgorithmState:
        return AlgorithmState(
            shared={"evidence.recent": self.recent_2},
            pairs={"evidence.sum": self.sum, "evidence.variance": self.variance},
        )
