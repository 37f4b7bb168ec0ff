"""DPFL: decentralized personalized federated learning (Kharrat, Canini, Horváth, AISTATS 2025).

Shapes: c clients on this rank, n in all, d parameters, b buffers, s candidates of a client in their order.
"""

from __future__ import annotations

from collections.abc import Sequence
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
)
from cobo_dist.algorithms.fedavg import WeightedAveragingConfig
from cobo_dist.algorithms.local import local_step
from cobo_dist.algorithms.peers import NOBODY, PeerModels, average, counts, score_each
from cobo_dist.lazy import Tensor, torch
from cobo_dist.maths import seeds
from cobo_dist.maths.flat import to_device, upload
from cobo_dist.maths.weights import Weights
from cobo_dist.registry import register


class DpflConfig(WeightedAveragingConfig):
    """Averages of the set of models whose average does best on a client's validation data."""

    name: Literal["dpfl"] = "dpfl"
    budget: int = Field(
        10,
        ge=1,
        description="most collaborators B of a client, itself not counted (paper: 10 of 100)",
    )
    ties: Literal["add", "drop"] = Field(
        "add",
        description="what becomes of a candidate that improves neither set: it is added (double greedy), or "
        "dropped, so that only collaborators are taken that help",
    )
    every: int = Field(
        1,
        ge=1,
        description="rounds from one choice of collaborators to the next (authors' code: 2)",
    )
    local_rounds: int = Field(
        0,
        ge=0,
        description="rounds of local work before collaborators are first chosen (paper: a few epochs)",
    )
    batch_size: int = Field(
        32,
        ge=1,
        le=1_000_000,
        description="validation examples on which a client tries averages",
    )

    @property
    def needs_validation(self) -> bool:
        """Yes: averages are tried on it."""
        return True

    def equal_share(self, clients: int) -> float:
        """Return 1/n: rows of W sum to 1, a client's own weight included."""
        return 1.0 / clients

    def chooses(self, t: int) -> bool:
        """Return whether clients choose collaborators in round t."""
        return t >= self.local_rounds and (t - self.local_rounds) % self.every == 0

    def comparisons(self, t: int, context: RunContext) -> float:
        """When it is time, clients try two averages for each candidate, at first for all others."""
        return 2.0 * context.clients**2 if self.chooses(t) else 0.0

    def representative_rounds(self, rounds: int) -> list[tuple[int, int]]:
        """Local rounds, the first choice, later choices, and rounds with the same collaborators."""
        first = min(rounds, self.local_rounds)
        later = max(0, -(-(rounds - first) // self.every) - 1)
        left = rounds - first - 1 - later
        parts = [
            (0, first),
            (first, 1 * (rounds > first)),
            (first + 1, left if self.every > 1 else 0),
            (first + self.every, later),
        ]
        return [(t, count) for t, count in parts if count > 0]


@register.algorithm("dpfl")
class Dpfl(Algorithm):
    """A local step, then x_i <- mean of x_j over j in C_i and i itself. C_i is a greedy maximizer of R_i.

    R_i(S) = -loss of mean_(j in S) x_j on a batch of i's validation data. At first all clients are
    candidates, and the collaborators found are i's pool; from then on the candidates are the pool.
    With partial participation, a pool comes from those that take part when its client first chooses.
    Row i of W is 1/(|C_i| + 1) for the at most `budget` members of C_i and for i, or in proportion to their
    examples (`weighting`). A client that takes nobody is Local.
    """

    Config = DpflConfig
    title, color, marker, place = "DPFL", "#35978f", "d", 52
    learns_weights = True

    def __init__(
        self, config: DpflConfig, clients: Clients, exchange: Exchange, context: RunContext
    ) -> None:
        super().__init__(config, clients, exchange, context)
        n = self.n = context.clients
        self.ids = np.array(clients.ids)
        averaged = config.buffers == "averaged" and clients.b_cd.shape[1] > 0
        self.together = [clients.x_cd, clients.b_cd] if averaged else [clients.x_cd]
        self.peer_models = PeerModels(clients.ids, exchange, *self.together)
        self.pool = Weights(clients.ids, range(n), 0.0, np.float64)
        self.has_pool_n = torch.zeros(n, dtype=torch.float64)  # the same on all ranks
        self.user_notice = (
            f"DPFL takes up to 2 n^2 = {2 * n * n} forward passes when clients first choose collaborators, "
            "and each client then receives all other models, one after the other"
        )

    def round(self, t: int) -> RoundResult:
        """Work locally, choose collaborators when it is time, and average with them."""
        losses_c, config = local_step(self.clients, t), self.config
        if t < config.local_rounds:
            return RoundResult(losses_c)
        part_n = self.context.taking_part(t)
        rows_e = np.flatnonzero(part_n[self.ids])
        is_own_cn = self.ids[:, None] == np.arange(self.n)
        counts_n = counts(self.context, t, config.weighting)
        if config.chooses(t):
            chosen_cn = self.choose(t, part_n, counts_n)
            chosen_cn = (chosen_cn | is_own_cn) * counts_n
            self.weights.put_rows(rows_e, shares(chosen_cn[rows_e]))
        # Of collaborators that do not take part nothing is known.
        used_cn = np.where(part_n & part_n[self.ids, None] | is_own_cn, self.weights.dense(), 0.0)
        used = Weights.of_rows(self.ids, shares(used_cn).astype(self.weight_type))
        average(self.clients, self.exchange, used, config.buffers)
        return RoundResult(losses_c, weights_replaced=config.chooses(t))

    def join(self, t: int, newcomers: Newcomers) -> None:
        """Make newcomers candidates of all others; they choose among all when it is time."""
        new = newcomers.ids_k[~newcomers.returns_k]
        rows = np.repeat(np.arange(len(self.ids)), len(new))
        others = np.tile(new, len(self.ids))
        apart = self.ids[rows] != others
        self.pool.put(rows[apart], others[apart], np.ones(apart.sum()))
        self.has_pool_n[torch.from_numpy(new)] = 0.0

    def choose(
        self, t: int, part_n: NDArray[np.bool_], counts_n: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Return C_i of this rank's clients [c, n], and keep the pools of those that choose first."""
        new_n = part_n & (self.has_pool_n.numpy() == 0.0)
        others_cn = part_n & part_n[self.ids, None] & (self.ids[:, None] != np.arange(self.n))
        among_cn = others_cn & (new_n[self.ids, None] | (self.pool.dense() > 0.0))
        most = int(part_n.sum()) - 1
        steps = most if new_n.any() else min(self.config.budget, most)  # the same on all ranks
        order_cs = self.order(t, among_cn, steps)
        added_cs = self.greedy_set(t, order_cs, counts_n)
        rows, at = np.nonzero(added_cs)
        chosen_cn = np.zeros(among_cn.shape, dtype=bool)
        chosen_cn[rows, order_cs[rows, at]] = True
        first = np.flatnonzero(new_n[self.ids])
        self.pool.put_rows(first, chosen_cn[first].astype(np.float64))
        self.has_pool_n[torch.from_numpy(new_n)] = 1.0
        return chosen_cn

    def order(self, t: int, among_cn: NDArray[np.bool_], steps: int) -> NDArray[np.int64]:
        """Return the candidates of each client in random order, [c, s]."""
        order_cs = np.full((len(self.ids), steps), NOBODY)
        for row, client in enumerate(self.ids.tolist()):
            drawn = seeds.permutation(seeds.key(self.context.seed, "candidates", t, client), self.n)
            candidates = drawn.numpy()[among_cn[row, drawn.numpy()]]
            order_cs[row, : len(candidates)] = candidates
        return order_cs

    def greedy_set(
        self, t: int, order_cs: NDArray[np.int64], counts_n: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Greedy graph construction: return which candidates each client takes, [c, s].

        A set X grows from {i}, and a set Y shrinks from all candidates and i. With a = R(X + u) - R(X) and
        b = R(Y - u) - R(Y), candidate u joins X with probability a+ / (a+ + b+), else it leaves Y. The device
        decides; the host waits for it once.
        """
        rows_e = np.flatnonzero((order_cs != NOBODY).any(axis=1))
        own_c1 = self.ids[:, None]
        x = Averages(*self.sums_of(own_c1, counts_n))
        y = Averages(*self.sums_of(np.concatenate([own_c1, order_cs], axis=1), counts_n))
        loss_x, loss_y = (self.losses(t, one.means(), rows_e) for one in (x, y))
        draws_cs = to_device(self.draws(t, order_cs.shape[1]), loss_x.device)
        added_cs = torch.zeros(order_cs.shape, dtype=torch.bool, device=loss_x.device)
        for s, peer_c in enumerate(order_cs.T):
            is_there_c, count_c1 = self.counted(peer_c, counts_n)
            models, rows_e = (
                self.peer_models.fetch(peer_c, self.n),
                np.flatnonzero(peer_c != NOBODY),
            )
            with_u = self.losses(t, x.means(models, count_c1), rows_e)
            without_u = self.losses(t, y.means(models, -count_c1), rows_e)
            a, b = (loss_x - with_u).clamp(min=0.0), (loss_y - without_u).clamp(min=0.0)
            p = (a / (a + b)).nan_to_num(nan=float(self.config.ties == "add"))
            joins = is_there_c & with_u.isfinite() & (draws_cs[:, s] < p)
            joins &= added_cs.sum(dim=1) < self.config.budget
            leaves = is_there_c & ~joins
            added_cs[:, s] = joins
            loss_x, loss_y = with_u.where(joins, loss_x), without_u.where(leaves, loss_y)
            x.add(models, count_c1 * joins[:, None])
            y.add(models, -count_c1 * leaves[:, None])
        found_cs: NDArray[np.bool_] = added_cs.cpu().numpy()
        return found_cs

    def draws(self, t: int, steps: int) -> NDArray[np.float64]:
        """Return uniform numbers [c, s] that decide about candidates."""
        names = seeds.keys(
            self.context.seed, "collaborators", torch.tensor(t), torch.from_numpy(self.ids)
        )
        drawn: NDArray[np.float64] = seeds.uniform_rows(names, steps).numpy()
        return drawn

    def counted(
        self, peer_c: NDArray[np.int64], counts_n: NDArray[np.float64]
    ) -> tuple[Tensor, Tensor]:
        """Return whether there is a candidate [c], and what its model counts [c, 1], on the device."""
        x_cd, is_there_c = self.clients.x_cd, peer_c != NOBODY
        count_c = torch.from_numpy(np.where(is_there_c, counts_n[peer_c], 0.0))
        return to_device(is_there_c, x_cd.device), upload(count_c[:, None], x_cd)

    def sums_of(
        self, sets_cs: NDArray[np.int64], counts_n: NDArray[np.float64]
    ) -> tuple[list[Tensor], Tensor]:
        """Return the weighted sums [c, d] of the models in a set of each client, and their counts [c, 1]."""
        weights_cn = (sets_cs[:, :, None] == np.arange(self.n)).any(axis=1) * counts_n
        weights = Weights.of_rows(self.ids, weights_cn.astype(self.weight_type))
        sums = [torch.empty_like(rows_cd) for rows_cd in self.together]
        for sum_cd, rows_cd in zip(sums, self.together, strict=True):
            for at, mixed in self.exchange.mix(weights, rows_cd):
                sum_cd[:, at] = mixed
        total_c1 = torch.from_numpy(weights_cn.sum(axis=1, keepdims=True))
        return sums, upload(total_c1, self.clients.x_cd)

    def losses(self, t: int, means: list[Tensor], rows_e: NDArray[np.int64]) -> Tensor:
        """Return the losses [c] of averages, each on its client's data; 0 in other rows."""

        def score(x_kd: Tensor, b_kb: Tensor, rows_k: NDArray[np.int64]) -> Tensor:
            return self.clients.validation_losses_at(x_kd, b_kb, t, self.config.batch_size, rows_k)

        found_c = torch.zeros(len(self.ids), dtype=torch.float64, device=means[0].device)
        b_cb = means[1] if len(means) > 1 else self.clients.b_cd
        found_c[to_device(rows_e, found_c.device)] = score_each(score, means[0], b_cb, rows_e)
        return found_c

    def state(self) -> AlgorithmState:
        """Return the pools, and who has one."""
        return AlgorithmState(shared={"has_pool": self.has_pool_n}, pairs={"pool": self.pool})


class Averages:
    """A weighted average of models (and their buffers) for each client of this rank, kept as sums."""

    def __init__(self, sums: list[Tensor], count_c1: Tensor) -> None:
        self.sums, self.count_c1 = sums, count_c1

    def means(self, models: Sequence[Tensor] = (), count_c1: Tensor | None = None) -> list[Tensor]:
        """Return the averages, also with a model in each row added `count_c1` times, or taken away."""
        if count_c1 is None:
            return [sum_cd / self.count_c1 for sum_cd in self.sums]
        total_c1 = self.count_c1 + count_c1
        return [
            torch.addcmul(sum_cd, rows_cd, count_c1).div_(total_c1)
            for sum_cd, rows_cd in zip(self.sums, models, strict=True)
        ]

    def add(self, models: Sequence[Tensor], count_c1: Tensor) -> None:
        """Add a model in each row `count_c1` times."""
        for sum_cd, rows_cd in zip(self.sums, models, strict=True):
            sum_cd.addcmul_(rows_cd, count_c1)
        self.count_c1 = self.count_c1 + count_c1


def shares(counts_en: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return rows divided by their sums."""
    found_en: NDArray[np.float64] = counts_en / counts_en.sum(axis=1, keepdims=True)
    return found_en
