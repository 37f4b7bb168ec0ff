"""FedFomo (Zhang, Sapra, Fidler, Yeung, Alvarez, ICLR 2021): first-order model optimization."""

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
    RoundResult,
    RunContext,
    sampled_rounds,
)
from cobo_dist.algorithms.fedavg import AveragingConfig
from cobo_dist.algorithms.local import local_step
from cobo_dist.algorithms.peers import NOBODY, PeerModels, Score, average, score_each
from cobo_dist.lazy import Tensor, torch
from cobo_dist.maths import seeds
from cobo_dist.maths.flat import to_device
from cobo_dist.maths.weights import Weights
from cobo_dist.registry import register


class FedFomoConfig(AveragingConfig):
    """Steps towards the models that do better on a client's validation data."""

    name: Literal["fedfomo"] = "fedfomo"
    downloads: int = Field(
        0,
        ge=0,
        description="models of others M that a client tries in a round (paper: 4 or 9 of 14); 0: all",
    )
    exploration: float = Field(
        0.3,
        ge=0,
        le=1,
        description="probability epsilon that a download is random, and not of those that helped most so far",
    )
    exploration_decay: float = Field(
        0.05, ge=0, description="what is subtracted from it after each round"
    )
    batch_size: int = Field(
        32,
        ge=1,
        le=1_000_000,
        description="validation examples on which a client tries all models",
    )

    @property
    def needs_validation(self) -> bool:
        """Yes: models are tried on it."""
        return True

    def equal_share(self, clients: int) -> float:
        """Return 1/n: a client's own weight counts."""
        return 1.0 / clients

    def tried(self, clients: int) -> int:
        """Return how many models of others a client tries in a round."""
        return min(self.downloads or clients, clients - 1)

    def comparisons(self, t: int, context: RunContext) -> float:
        """Clients try the models of others, and two of their own."""
        return context.clients * (self.tried(context.clients) + 2.0)

    def representative_rounds(self, rounds: int) -> list[tuple[int, int]]:
        """Rounds differ where a part of the models is drawn."""
        return sampled_rounds(rounds) if self.downloads else [(0, rounds)]


@register.algorithm("fedfomo")
class FedFomo(Algorithm):
    """x_i^t = x_i^(t-1) + sum_k w_ik (x_k - x_i^(t-1)), where x_k are models after their local work.

    w_ik is max(0, L_i(x_i^(t-1)) - L_i(x_k)) / ||x_k - x_i^(t-1)||, divided by its sum over k. L_i is the
    loss on a batch of client i's validation data, x_i^(t-1) is i's model before its local work, and the
    model after it is one of the x_k. So a client whom no other model helps is Local. Where not even its own
    work helps, x_i^(t-1) stays with its buffers, and row i of W is 0.

    Of M models that a client downloads, those are chosen that have helped it most, by the sum P_ik of all
    w_ik so far, and with probability epsilon others; ties are drawn. W holds the weights last used, at first
    the identity; P is in checkpoints.
    """

    Config = FedFomoConfig
    title, color, marker, place = "FedFomo", "#c51b7d", "<", 51
    learns_weights = True

    def __init__(
        self, config: FedFomoConfig, clients: Clients, exchange: Exchange, context: RunContext
    ) -> None:
        super().__init__(config, clients, exchange, context)
        n, tried = context.clients, config.tried(context.clients)
        self.peers = PeerModels(clients.ids, exchange, clients.x_cd, clients.b_cd)
        self.affinity = Weights(clients.ids, range(n), 0.0, np.float64)  # P
        self.user_notice = (
            f"FedFomo takes n (M + 2) = {n * (tried + 2)} forward passes a round"
            + ", and every model is sent to all ranks" * (tried == n - 1)
        )

    def round(self, t: int) -> RoundResult:
        """Work locally, try the models of others, and step towards those that are better."""
        clients, ids = self.clients, list(self.clients.ids)
        part_n = self.context.taking_part(t)
        rows_e = np.flatnonzero(part_n[ids])
        before_cd = self.peers.scratch.rows("before", *clients.x_cd.shape).copy_(clients.x_cd)
        before_cb = clients.b_cd.clone()
        before_e = score_each(self.score(t), before_cd, clients.b_cd, rows_e)
        losses_c = local_step(clients, t)
        w_en = self.weigh(before_e, *self.compare(t, before_cd, part_n, rows_e))
        self.affinity.put_rows(rows_e, self.affinity.rows(rows_e) + w_en)

        kept = rows_e[~w_en.any(axis=1)]
        used_cn = np.eye(len(part_n), dtype=self.weight_type)[ids]
        used_cn[rows_e] = w_en
        self.weights.put_rows(rows_e, used_cn[rows_e])
        used_cn[kept, np.array(ids)[kept]] = 1.0
        average(clients, self.exchange, Weights.of_rows(ids, used_cn), self.config.buffers)
        here = to_device(kept, before_cd.device)
        clients.x_cd[here] = before_cd[here]
        clients.b_cd[here] = before_cb[here]
        return RoundResult(losses_c, weights_replaced=True)

    def compare(
        self,
        t: int,
        before_cd: Tensor,
        part_n: NDArray[np.bool_],
        rows_e: NDArray[np.int64],
    ) -> tuple[Tensor, Tensor]:
        """Return the losses L_i(x_k) and distances ||x_k - x_i^(t-1)|| [e, n]; infinite where not tried."""
        clients, score, n = self.clients, self.score(t), len(part_n)
        shape, device = (len(before_cd), n), before_cd.device
        losses_cn, distances_cn = (
            torch.full(shape, torch.inf, dtype=torch.float64, device=device) for _ in range(2)
        )
        rows, tried = to_device(rows_e, device), self.config.tried(n)

        def try_rows(peer_c: NDArray[np.int64], x_cd: Tensor, b_cd: Tensor) -> None:
            """Try the model in each row at that row's client."""
            rows_k = np.flatnonzero(peer_c != NOBODY)
            at = to_device(rows_k, device), to_device(peer_c[rows_k], device)
            losses_cn[at] = score_each(score, x_cd, b_cd, rows_k)
            distances_cn[at] = (x_cd - before_cd).norm(dim=1)[at[0]].double()

        if tried < n - 1:
            ids = np.array(clients.ids)
            try_rows(np.where(part_n[ids], ids, NOBODY), clients.x_cd, clients.b_cd)
            for peer_c in self.choose(t, tried, part_n, rows_e).T:
                try_rows(peer_c, *self.peers.fetch(peer_c, n))
            return losses_cn[rows], distances_cn[rows]
        before_ed, all_models = before_cd[rows], (clients.x_cd, clients.b_cd)
        for ids_k, (x_kd, b_kb) in self.exchange.visits(*all_models, among_n=part_n):
            at = rows[:, None], to_device(ids_k, device)
            losses_cn[at] = score(x_kd, b_kb, rows_e)
            distances_kd = [(before_ed - x_d).norm(dim=1) for x_d in x_kd]
            distances_cn[at] = torch.stack(distances_kd, dim=1).double()
        return losses_cn[rows], distances_cn[rows]

    def score(self, t: int) -> Score:
        """Return the function that tries models on the validation batches of round t."""

        def losses(x_kd: Tensor, b_kb: Tensor, rows_e: NDArray[np.int64]) -> Tensor:
            return self.clients.validation_losses_at(x_kd, b_kb, t, self.config.batch_size, rows_e)

        return losses

    def choose(
        self, t: int, count: int, part_n: NDArray[np.bool_], rows_e: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the clients [c, m] whose models each client that takes part downloads."""
        ids, config = np.array(self.clients.ids), self.config
        peers_cm = np.full((len(ids), count), NOBODY)
        explores = max(0.0, config.exploration - config.exploration_decay * t)
        for row, affinity_n in zip(rows_e, self.affinity.rows(rows_e), strict=True):
            key = seeds.key(self.context.seed, "downloads", t, int(ids[row]))
            drawn = seeds.permutation(key, len(part_n)).tolist()
            others = [k for k in drawn if part_n[k] and k != ids[row]]
            explore_key = seeds.key(self.context.seed, "exploration", t, int(ids[row]))
            random = int((seeds.uniforms(explore_key, count) < explores).sum())
            best = sorted(others, key=lambda k: -affinity_n[k])[: count - random]
            found = best + [k for k in others if k not in best][:random]
            peers_cm[row, : len(found)] = found
        return peers_cm

    def weigh(
        self, before_e: Tensor, losses_en: Tensor, distances_en: Tensor
    ) -> NDArray[np.float64]:
        """Return w [e, n] from the losses of the models before local work, and of those tried."""
        gains_en = (before_e[:, None] - losses_en) / distances_en
        # The same model gains nothing; nor does one that is not finite.
        gains_en = gains_en.where(distances_en > 0.0, 0.0).clamp(min=0.0)
        w_en: NDArray[np.float64] = gains_en.nan_to_num(nan=0.0, posinf=0.0).cpu().numpy()
        total_e1 = w_en.sum(axis=1, keepdims=True)
        return w_en / np.where(total_e1 > 0.0, total_e1, 1.0)

    def state(self) -> AlgorithmState:
        """Return P."""
        return AlgorithmState(pairs={"affinity": self.affinity})
