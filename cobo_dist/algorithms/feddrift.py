"""FedDrift: clusters that follow concept drift (Jothimurugesan et al., AISTATS 2023).

Shapes: n clients, K groups whose models visit, c clients of this rank, e of them that take part.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.algorithms.base import AlgorithmState, RoundResult, RunContext
from cobo_dist.algorithms.fedavg import WeightedAveragingConfig
from cobo_dist.algorithms.found_groups import FoundGroups
from cobo_dist.algorithms.peers import hand_over
from cobo_dist.lazy import torch
from cobo_dist.maths.distances import linked_groups
from cobo_dist.maths.flat import to_device
from cobo_dist.registry import register

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class FedDriftConfig(WeightedAveragingConfig):
    """FedAvg within groups that clients leave when their loss jumps, and that merge."""

    name: Literal["feddrift"] = "feddrift"
    delta: float = Field(
        0.5,
        gt=0,
        description="a client whose loss rose by more gets a new model; groups merge whose models lose less "
        "on each other's data",
    )
    period: int = Field(
        20,
        ge=1,
        description="rounds from one comparison of losses to the next (paper: a time step)",
    )
    start: Literal["own", "one"] = Field(
        "own",
        description="at first each client is a group, since clusters may differ from the start; or all are "
        "one (paper, where all clients start with one concept)",
    )

    def comparisons(self, t: int, context: RunContext) -> float:
        """All clients score the models of all groups when it is time."""
        return float(context.clients**2) if self.compares(t) else 0.0

    def compares(self, t: int) -> bool:
        """Return whether round t begins with a comparison."""
        return t > 0 and t % self.period == 0

    def representative_rounds(self, rounds: int) -> list[tuple[int, int]]:
        """Rounds without a comparison, and with one."""
        count = (rounds - 1) // self.period
        parts = [(0, rounds - count), (self.period, count)]
        return [(t, number) for t, number in parts if number]


@register.algorithm("feddrift")
class FedDrift(FoundGroups):
    """FedAvg within groups; every `period` rounds groups merge, and clients choose again.

    Clients score the models of all groups on the batch that they train on next. Groups i and j merge, bottom
    up, while max(L_i(x_j) - L_i(x_i), L_j(x_i) - L_j(x_j)) <= delta, where L_i is the mean loss of the
    clients of i; of two merged groups the largest such value counts. A merged model is the mean of the
    models, by clients. Then each client takes the group with the least loss. Where even this loss is above
    its last one by more than delta, the client has drifted: it starts a new group at x^0, which no client
    can take before the next comparison. Only clients that take part compare; a group without any stays.
    """

    Config = FedDriftConfig
    title, color, marker, place = "FedDrift", "#8c6d31", "d", 46
    config: FedDriftConfig

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.last_n = np.full(self.context.clients, np.inf)  # the loss that each client chose last

    def groups(self, context: RunContext) -> tuple[int, ...]:
        """Return the groups at the start."""
        return (
            tuple(range(context.clients)) if self.config.start == "own" else (0,) * context.clients
        )

    def round(self, t: int) -> RoundResult:
        """Compare losses when it is time, work locally, and average within the groups."""
        self.use_found()
        before_n = self.found_n.copy()
        if self.config.compares(t):
            self.compare(t)
        losses_c = self.train(t)
        self.average_all(t)
        return RoundResult(losses_c, weights_replaced=not np.array_equal(before_n, self.found_n))

    def compare(self, t: int) -> None:
        """Merge groups, then let each client that takes part choose one, or start a new one."""
        part_n = self.context.taking_part(t)
        taking = np.flatnonzero(part_n)
        if not len(taking):
            return
        labels_k, first = np.unique(self.found_n[taking], return_index=True)
        speaker_k = taking[first]  # of each group, the client that sends its model
        losses_nk = self.scores(t, part_n, speaker_k)
        merged_k = self.merge(losses_nk, labels_k, speaker_k, taking)
        self.choose(losses_nk, merged_k, speaker_k, taking)

    def scores(self, t: int, part_n: NDArray[np.bool_], speaker_k: Ints) -> Floats:
        """Return the loss of each group's model at each client that takes part, [n, K]; 0 at others."""
        ids, clients = list(self.clients.ids), self.clients
        among_n = np.zeros(len(part_n), dtype=bool)
        among_n[speaker_k] = True
        rows_e = np.flatnonzero(part_n[ids])
        losses_ck = np.zeros((len(ids), len(speaker_k)))
        place_n = np.cumsum(among_n) - 1
        column_k = np.argsort(np.argsort(speaker_k))
        for ids_v, (x_vd, b_vb) in self.exchange.visits(
            clients.x_cd, clients.b_cd, among_n=among_n
        ):
            losses_ev = clients.losses_at(x_vd, b_vb, rows_e, t).cpu().numpy()
            losses_ck[np.ix_(rows_e, place_n[ids_v])] = losses_ev
        return self.exchange.all_gather(losses_ck)[:, column_k].astype(np.float64)

    def merge(self, losses_nk: Floats, labels_k: Ints, speaker_k: Ints, taking: Ints) -> Ints:
        """Merge groups whose models do nearly as well on each other's data; return their new labels [K]."""
        is_in_kn = (self.found_n[taking] == labels_k[:, None]).astype(np.float64)
        losses_kk = is_in_kn @ losses_nk[taking] / is_in_kn.sum(axis=1, keepdims=True)
        excess_kk = losses_kk - losses_kk.diagonal()[:, None]  # of model j on the data of group i
        apart_kk = np.nan_to_num(np.maximum(excess_kk, excess_kk.T), nan=np.inf, posinf=1e300)
        merged_k = linked_groups(apart_kk, "complete", threshold=self.config.delta)
        new_k = labels_k[[int(np.argmax(merged_k == k)) for k in merged_k]]
        if np.array_equal(new_k, labels_k):
            return labels_k
        sizes_n = (
            np.ones(len(self.found_n))
            if self.config.weighting == "equal"
            else np.asarray(self.context.examples, dtype=np.float64)
        )
        weights_n = np.zeros(len(self.found_n))
        for label, new, speaker in zip(labels_k, new_k, speaker_k, strict=True):
            if (new_k == new).sum() > 1:  # the others keep their models
                weights_n[speaker] = sizes_n[self.found_n == label].sum()
        for label, new in zip(labels_k, new_k, strict=True):
            self.found_n[self.found_n == label] = new
        self.use_found()
        self.weighted_average(self.clients.x_cd, weights_n)
        return new_k

    def choose(self, losses_nk: Floats, labels_k: Ints, speaker_k: Ints, taking: Ints) -> None:
        """Move clients to the group with the least loss; those that drifted start a group at x^0."""
        donor_n, before_n = np.arange(len(self.found_n)), self.found_n.copy()
        drifted = []
        for client in taking.tolist():
            own_k = labels_k == before_n[client]
            loss_k = losses_nk[client]
            best = int(np.argmin(loss_k))
            if loss_k[own_k].min() <= loss_k[best]:
                best = int(np.argmax(own_k))
            least = float(loss_k.min())
            if least > self.last_n[client] + self.config.delta:
                drifted.append(client)
                self.last_n[client] = np.inf
                continue
            self.last_n[client] = least
            if not own_k[best]:
                self.found_n[client], donor_n[client] = labels_k[best], speaker_k[best]
        hand_over(self.clients, self.exchange, donor_n)
        self.found_n[drifted] = self.found_n.max() + 1 + np.arange(len(drifted))
        self.found_n[:] = np.unique(self.found_n, return_inverse=True)[1].reshape(-1)
        ids = list(self.clients.ids)
        if rows := [ids.index(client) for client in drifted if client in ids]:
            x_cd, b_cd = self.clients.x_cd, self.clients.b_cd
            at = to_device(torch.tensor(rows), x_cd.device)
            x_cd[at] = self.clients.start_rows(1)
            b_cd[at] = self.clients.start_buffers(1)
        self.use_found()

    def state(self) -> AlgorithmState:
        """Return the groups, and the loss that each client chose last."""
        shared = super().state().shared | {"last": torch.from_numpy(self.last_n)}
        return AlgorithmState(shared=shared)
