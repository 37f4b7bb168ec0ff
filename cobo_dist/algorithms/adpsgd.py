"""AD-PSGD: pairs of clients average while all of them compute (Lian, Zhang, Zhang and Liu, ICML 2018)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cobo_dist.algorithms.algorithm import Algorithm
from cobo_dist.algorithms.base import (
    AlgorithmState,
    Clients,
    Exchange,
    RoundResult,
    RunContext,
    sampled_rounds,
)
from cobo_dist.algorithms.communication_graph import CommunicationGraphConfig, partners
from cobo_dist.algorithms.fedavg import AveragingConfig
from cobo_dist.algorithms.peers import average
from cobo_dist.lazy import Tensor
from cobo_dist.maths import seeds
from cobo_dist.maths.flat import to_device
from cobo_dist.maths.weights import Weights
from cobo_dist.registry import register

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class AdPsgdConfig(AveragingConfig, CommunicationGraphConfig):
    """Averages of random pairs."""

    name: Literal["adpsgd"] = "adpsgd"

    def comparisons(self, t: int, context: RunContext) -> float:
        """The averages of a round make a matrix of all clients."""
        return float(context.clients**2)

    def representative_rounds(self, rounds: int) -> list[tuple[int, int]]:
        """Rounds differ: pairs are drawn."""
        return sampled_rounds(rounds)


@register.algorithm("adpsgd")
class AdPsgd(Algorithm):
    """A client whose work ends averages with a random partner, then takes the step it computed:

    x_i, x_j <- (x_i + x_j)/2, both at once; then x_i <- x_i - eta g_i(y_i), y_i = x_i when its work began.

    Clients whose work ends in one round average one after the other, in an order drawn for the round, and
    then all take their steps. A partner need not have finished its own work. Where all wait for each other,
    partners are those that take part, and y_i is x_i at the start of the round. W is all ones: who may meet.
    """

    Config = AdPsgdConfig
    title, color, marker, place = "AD-PSGD", "#8c564b", "P", 60
    sums, all_linked = "none", True
    config: AdPsgdConfig

    def __init__(
        self, config: AdPsgdConfig, clients: Clients, exchange: Exchange, context: RunContext
    ) -> None:
        super().__init__(config, clients, exchange, context)
        timing = context.timing
        self.overlaps = timing is not None and timing.overlaps
        self.began = {"began": clients.x_cd.clone()} if self.overlaps else {}

    def round(self, t: int) -> RoundResult:
        """Take gradients where the work began, average, and step."""
        met_m2 = self.draw(t)
        losses_c = self.gradients(t)
        direction_cd = self.clients.direction()
        average(self.clients, self.exchange, self.averages(met_m2), self.config.buffers)
        self.clients.x_cd.add_(direction_cd, alpha=-self.clients.eta(t))
        return RoundResult(losses_c, len(met_m2), met_m2=met_m2)

    def draw(self, t: int) -> Ints:
        """Return the pairs that average in round t in their order, [m, 2]: the same on every rank."""
        present_n, seed = self.context.heard(t) > 0, self.context.seed
        active_k = np.flatnonzero(self.context.taking_part(t))
        order_k = seeds.permutation(seeds.key(seed, "adpsgd order", t), len(active_k)).numpy()
        found = []
        for i in active_k[order_k].tolist():
            others = partners(self.config.graph, i, present_n)
            if len(others):
                draw = float(seeds.uniforms(seeds.key(seed, "adpsgd partner", t, i), 1))
                found.append((i, int(others[int(draw * len(others))])))
        return np.array(found, dtype=np.int64).reshape(-1, 2)

    def gradients(self, t: int) -> Tensor:
        """Compute the gradients of the clients that take part, at the models with which their work began."""
        if not self.overlaps or self.context.timing is None:
            return self.clients.gradients(t)
        x_cd, began_cd = self.clients.x_cd, self.began["began"]
        begins_c = self.context.timing.at(t).begins_n[list(self.clients.ids)]
        at = to_device(np.flatnonzero(begins_c), x_cd.device)
        began_cd[at] = x_cd[at]
        swap_rows(x_cd, began_cd)
        losses_c = self.clients.gradients(t)
        swap_rows(x_cd, began_cd)
        return losses_c

    def averages(self, met_m2: Ints) -> Weights:
        """Return this rank's rows of the product of the averages of all pairs, in their order."""
        ids_k, place_m2 = np.unique(met_m2, return_inverse=True)
        product_kk: Floats = np.eye(len(ids_k))
        for pair in place_m2.reshape(-1, 2):
            product_kk[pair] = product_kk[pair].mean(axis=0)
        weights = self.rows_of(ids_k, product_kk)
        weights.transpose = self.rows_of(ids_k, product_kk.T)
        return weights

    def rows_of(self, ids_k: Ints, product_kk: Floats) -> Weights:
        """Return this rank's rows of a matrix that is the identity but for the clients `ids_k`."""
        mine = np.array(self.clients.ids)
        weights = Weights(mine, range(self.context.clients), dtype=self.weight_type)
        rows = np.flatnonzero(np.isin(mine, ids_k))
        own_k, columns = np.nonzero(product_kk[np.searchsorted(ids_k, mine[rows])])
        values = product_kk[np.searchsorted(ids_k, mine[rows[own_k]]), columns]
        weights.put(rows[own_k], ids_k[columns], values)
        return weights

    def state(self) -> AlgorithmState:
        """Return the models with which the work of clients began."""
        return AlgorithmState(rows=self.began)


def swap_rows(a_cd: Tensor, b_cd: Tensor) -> None:
    """Exchange the rows of two matrices, one at a time."""
    for a_d, b_d in zip(a_cd, b_cd, strict=True):
        kept_d = a_d.clone()
        a_d.copy_(b_d)
        b_d.copy_(kept_d)
