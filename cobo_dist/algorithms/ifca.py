"""IFCA: the iterative federated clustering algorithm (Ghosh et al., NeurIPS 2020), gradient averaging."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.algorithms.algorithm import Algorithm
from cobo_dist.algorithms.base import (
    AlgorithmState,
    Clients,
    Exchange,
    Newcomers,
    RoundResult,
    RunContext,
    sampled_rounds,
)
from cobo_dist.algorithms.fedavg import WeightingConfig
from cobo_dist.lazy import torch
from cobo_dist.maths.flat import take_rows, to_device
from cobo_dist.maths.participation import Participation
from cobo_dist.maths.weights import Weights
from cobo_dist.registry import register


class IfcaConfig(WeightingConfig):
    """Centres that clients choose by their loss."""

    name: Literal["ifca"] = "ifca"
    centers: int = Field(
        0,
        ge=0,
        le=10_000,
        description="number of centers K; 0: the true number of clusters (paper)",
    )
    client_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the clients that take part in a round, at least one (paper: 1 in "
        "cross-silo, 0.1 in cross-device); as participation.fraction",
    )

    @property
    def needs_clusters(self) -> bool:
        """Whether the number of centres is that of the clusters."""
        return self.centers == 0

    @property
    def draws_clients(self) -> str:
        """`client_share`, unless it is 1."""
        return f"algorithm.client_share={self.client_share:g}" if self.client_share < 1 else ""

    def center_count(self, context: RunContext) -> int:
        """Return the number K of centres."""
        return self.centers or len(set(context.clusters or ()))

    def comparisons(self, t: int, context: RunContext) -> float:
        """Clients that take part score all centres."""
        return self.center_count(context) * context.clients * self.client_share

    def representative_rounds(self, rounds: int) -> list[tuple[int, int]]:
        """Rounds differ where clients are drawn."""
        return sampled_rounds(rounds) if self.client_share < 1 else [(0, rounds)]


@register.algorithm("ifca")
class Ifca(Algorithm):
    """Participating clients pick the center with the least loss; centers step with mean gradients.

    Every rank holds the K centers, not the n models; a client's personal model is the center it picked
    last. All centers are scored on the batch that the client then trains on, in evaluation mode.
    With several local steps a center becomes the mean of its clients' models after them (the paper's model
    averaging), and the optimizer's moments are the clients'. BatchNorm's statistics belong to the center:
    the mean over the clients that trained it. The first center starts at x^0, the others from other seeds.
    From models of another run (`run.init_from`), centers start at models of clients: the first at client 0's,
    each other one at the model that is farthest from the centers before it; a client starts with the center
    nearest to its model. Where centers are equally good, a client keeps its last one. One center is FedAvg.
    w_ij is 1 for clients that picked the same center.
    """

    Config = IfcaConfig
    title, color, marker, place = "IFCA", "#cc79a7", "P", 5
    learns_weights = True

    sums = "all_reduce"
    newcomers_start = "group"

    def __init__(
        self, config: IfcaConfig, clients: Clients, exchange: Exchange, context: RunContext
    ) -> None:
        self.choice_n = np.zeros(context.clients, dtype=np.int64)
        super().__init__(config, clients, exchange, context)
        count = config.center_count(context)
        if not count:
            raise ValueError("IFCA needs algorithm.centers or a task with known clusters")
        self.centers_kd, self.buffers_kd = clients.start_rows(count), clients.start_buffers(count)
        self.optimizer = clients.new_optimizer(self.centers_kd)
        drawn = max(1, round(config.client_share * context.clients))
        every = Participation(context.seed, context.clients, context.clients)
        self.drawn = (context.participation or every).with_count(drawn)
        # A client that does not take part keeps its last loss; at first, that of its first center.
        every_c, scored = np.arange(len(clients.ids)), 1
        if clients.loaded:
            self.start_at_models()
            self.weights, scored = self.first_weights(), count
        losses_ck = clients.losses_at(
            self.centers_kd[:scored], self.buffers_kd[:scored], every_c, 0
        )
        choice_c1 = to_device(self.choice_n[list(clients.ids), None], losses_ck.device)
        self.losses_c = losses_ck.gather(1, choice_c1)[:, 0].to(clients.x_cd.dtype)

    def start_at_models(self) -> None:
        """Put every center at a client's model, far from one another, and let clients pick the nearest."""
        n, count = self.context.clients, len(self.centers_kd)
        x_cd, b_cd = self.clients.x_cd, self.clients.b_cd
        distances_kn = np.empty((count, n))
        client = 0
        for k in range(count):
            one_1n = np.eye(1, n, client)
            self.centers_kd[k] = self.exchange.all_reduce(one_1n, x_cd)[0]
            if b_cd.shape[1]:
                self.buffers_kd[k] = self.exchange.all_reduce(one_1n, b_cd)[0]
            # Row by row: a client's distance must not depend on how many others its rank has.
            distances = [(x_d - self.centers_kd[k]).double().square().sum() for x_d in x_cd]
            distances_kn[k] = self.exchange.all_gather(np.array([float(one) for one in distances]))
            client = int(distances_kn[: k + 1].min(axis=0).argmax())
        # Models may be all alike: then clients spread over the centers, which part from one another.
        self.choice_n = least(distances_kn.T, np.arange(n) % count)

    def round(self, t: int) -> RoundResult:
        """Let the clients choose centers, then move the centers."""
        part_n = self.taking_part(t)
        self.choose_centers(t, part_n)
        self.train_centers(t, part_n)
        self.weights = self.first_weights()
        return RoundResult(self.losses_c.clone(), weights_replaced=True)

    def taking_part(self, t: int) -> NDArray[np.bool_]:
        """Return which clients take part in round t, [n]: the same on every rank."""
        return self.drawn(t) if self.drawn.is_partial else self.context.taking_part(t)

    def join(self, t: int, newcomers: Newcomers) -> None:
        """Give each client that joins the center with the least loss on its batch."""
        part_n = np.zeros(self.context.clients, dtype=bool)
        part_n[newcomers.ids_k] = True
        self.choose_centers(t, part_n)
        self.hand_out(np.flatnonzero(part_n[list(self.clients.ids)]))
        self.weights = self.first_weights()

    def choose_centers(self, t: int, part_n: NDArray[np.bool_]) -> None:
        """Score all centers on the batch of each participating client, which picks the best."""
        mine = list(self.clients.ids)
        choice_c = self.choice_n[mine]
        rows = np.flatnonzero(part_n[mine])
        scores_ek = self.clients.losses_at(self.centers_kd, self.buffers_kd, rows, t)
        choice_c[rows] = least(scores_ek.cpu().numpy(), choice_c[rows])
        self.choice_n = self.exchange.all_gather(choice_c.astype(np.float64)).astype(np.int64)

    def train_centers(self, t: int, part_n: NDArray[np.bool_]) -> None:
        """Move every center by the mean gradient of the clients that picked it; others compute nothing."""
        self.hand_out()
        rows = np.flatnonzero(part_n[list(self.clients.ids)])
        here = to_device(rows, self.losses_c.device)
        self.losses_c[here] = self.clients.gradients(t, rows)
        picked_kn = (self.choice_n == np.arange(len(self.centers_kd))[:, None]) & part_n
        weights_kn = picked_kn * self.context.client_weights(t, self.config.weighting)
        totals_k1 = weights_kn.sum(axis=1, keepdims=True)
        mean_kn = weights_kn / np.where(totals_k1 > 0, totals_k1, 1.0)
        mean_kd = self.exchange.all_reduce(mean_kn, self.clients.g_cd)
        if not self.clients.several_steps:
            mean_kd = self.optimizer.direction(mean_kd)
        self.centers_kd.add_(mean_kd, alpha=-self.clients.eta(t))
        if self.buffers_kd.shape[1]:
            trained_k1 = to_device(totals_k1 > 0, self.buffers_kd.device)
            mean_kb = self.exchange.all_reduce(mean_kn, self.clients.b_cd)
            self.buffers_kd.copy_(torch.where(trained_k1, mean_kb, self.buffers_kd))
        self.hand_out()

    def hand_out(self, rows_e: NDArray[np.int64] | None = None) -> None:
        """Give every client, or those in some rows, the centre that it picked last."""
        x_cd, b_cd, ids = self.clients.x_cd, self.clients.b_cd, np.array(self.clients.ids)
        if rows_e is None:
            choice_c = to_device(self.choice_n[ids], x_cd.device)
            take_rows(self.centers_kd, choice_c, x_cd)
            take_rows(self.buffers_kd, choice_c, b_cd)
            return
        for row, choice in zip(rows_e, self.choice_n[ids[rows_e]], strict=True):
            x_cd[row], b_cd[row] = self.centers_kd[choice], self.buffers_kd[choice]

    def state(self) -> AlgorithmState:
        """Return the centers with their buffers and moments, the clients' choices and last losses."""
        shared = {
            "centers": self.centers_kd,
            "centers.buffers": self.buffers_kd,
            "choice": torch.from_numpy(self.choice_n),
        }
        moments = self.optimizer.state().items()
        return AlgorithmState(
            rows={"loss": self.losses_c},
            shared=shared | {f"centers.{name}": moment for name, moment in moments},
        )

    def first_weights(self) -> Weights:
        """Return this rank's rows of W: 1 for clients of the same center."""
        return Weights(self.clients.ids, self.choice_n, symmetric=True)


def least(scores_ek: NDArray[np.float64], last_e: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the column of each row's least score [e]: of equal ones the last choice, else the first.

    >>> least(np.array([[2.0, 1.0, 1.0], [0.0, 0.0, 3.0]]), np.array([2, 2])).tolist()
    [2, 0]
    """
    best_e1 = scores_ek.min(axis=1, keepdims=True)
    kept_e = np.take_along_axis(scores_ek, last_e[:, None], axis=1) == best_e1
    return np.where(kept_e[:, 0], last_e, scores_ek.argmin(axis=1)).astype(np.int64)
