"""PENS and DAC: clients sample peers, and prefer those whose models do well on their own training data.

Shapes: c clients on this rank, n in all, m sampled peers of a client.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.algorithms.algorithm import Algorithm, RunSettings
from cobo_dist.algorithms.base import (
    AlgorithmState,
    Clients,
    Exchange,
    RoundResult,
    RunContext,
    sampled_rounds,
)
from cobo_dist.algorithms.fedavg import WeightedAveragingConfig
from cobo_dist.algorithms.local import local_step
from cobo_dist.algorithms.peers import NOBODY, PeerModels, average, counts, score_each
from cobo_dist.lazy import Tensor, torch
from cobo_dist.maths import seeds
from cobo_dist.maths.weights import Weights
from cobo_dist.registry import register

LEAST_LOSS = 1e-12
"""A smaller loss counts as this one, so that its inverse is finite."""


class PeerSamplingConfig(WeightedAveragingConfig):
    """What methods have in common that sample peers."""

    peers: int = Field(5, ge=1, description="models that a client asks for in a round")

    def equal_share(self, clients: int) -> float:
        """Return one share among all others."""
        return 1.0 / max(1, clients - 1)

    def comparisons(self, t: int, context: RunContext) -> float:
        """Each client keeps a number of every other, and draws among all."""
        return float(context.clients**2)

    def representative_rounds(self, rounds: int) -> list[tuple[int, int]]:
        """Rounds differ: peers are drawn."""
        return sampled_rounds(rounds)


class PeerSampling(Algorithm):
    """A local step, then x_i <- the mean of x_i and of the models of some of the peers that i sampled.

    Peers are drawn without replacement. A model is tried on the batch of the client's first local step.
    Clients that do not take part are not sampled. Rows of W sum to 1 over the others; at first all are equal.
    """

    learns_weights = True

    def __init__(
        self, config: PeerSamplingConfig, clients: Clients, exchange: Exchange, context: RunContext
    ) -> None:
        super().__init__(config, clients, exchange, context)
        self.ids, self.n = np.array(clients.ids), context.clients
        self.peer_models = PeerModels(clients.ids, exchange, clients.x_cd, clients.b_cd)

    def first_weights(self) -> Weights:
        """Return equal shares among all others."""
        ids, n = np.array(self.clients.ids), self.context.clients
        others_cn = (ids[:, None] != np.arange(n)) / max(1, n - 1)
        return Weights.of_rows(ids, others_cn.astype(self.weight_type))

    def round(self, t: int) -> RoundResult:
        """Work locally, choose among sampled peers, and average with them."""
        losses_c = local_step(self.clients, t)
        part_n = self.context.taking_part(t)
        others_cn = part_n & part_n[self.ids, None] & (self.ids[:, None] != np.arange(self.n))
        used_cn = self.choose(t, others_cn).astype(np.float64)
        used_cn[np.arange(len(self.ids)), self.ids] = 1.0
        used_cn *= counts(self.context, t, self.config.weighting)
        used_cn /= used_cn.sum(axis=1, keepdims=True)
        used = Weights.of_rows(self.ids, used_cn.astype(self.weight_type))
        average(self.clients, self.exchange, used, self.config.buffers)
        return RoundResult(losses_c, weights_replaced=True)

    @abstractmethod
    def choose(self, t: int, others_cn: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the clients whose models each client averages with its own, and update W."""

    def sample(
        self,
        t: int,
        among_cn: NDArray[np.bool_],
        logits_cn: NDArray[np.float64] | None = None,
    ) -> NDArray[np.int64]:
        """Draw peers of each client with probabilities softmax(logits), without replacement [c, m]."""
        count = min(self.config.peers, self.n - 1)
        names = seeds.keys(self.context.seed, "peers", torch.tensor(t), torch.from_numpy(self.ids))
        # The largest of logits with Gumbel noise are such a draw.
        noise_cn = -np.log(-np.log(seeds.uniform_rows(names, self.n).numpy()))
        values_cn = noise_cn if logits_cn is None else logits_cn + noise_cn
        values_cn = np.where(among_cn, values_cn, -np.inf)
        peers_cm = np.argsort(-values_cn, axis=1, kind="stable")[:, :count]
        return np.where(np.take_along_axis(among_cn, peers_cm, axis=1), peers_cm, NOBODY)

    def losses_of(self, t: int, peers_cm: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the losses [c, m] of the peers' models on the clients' data; infinite for `NOBODY`.

        A loss that is NaN (`run.on_nan=skip_client`) is infinite, too: no method can compare it.
        """

        def score(x_kd: Tensor, b_kb: Tensor, rows_e: NDArray[np.int64]) -> Tensor:
            return self.clients.losses_at(x_kd, b_kb, rows_e, t)

        found = []
        for peer_c in peers_cm.T:
            rows_e = np.flatnonzero(peer_c != NOBODY)
            models, buffers = self.peer_models.fetch(peer_c, self.n)
            found.append(score_each(score, models, buffers, rows_e))
        losses_cm = np.full(peers_cm.shape, np.inf)
        if found:
            # Column by column, as they were found.
            losses_k = torch.cat(found).cpu().numpy()
            losses_cm.T[peers_cm.T != NOBODY] = np.where(np.isnan(losses_k), np.inf, losses_k)
        return losses_cm


def marked(peers_cm: NDArray[np.int64], n: int) -> NDArray[np.bool_]:
    """Return which of n clients are among the peers of each client, [c, n].

    >>> marked(np.array([[2, 0], [1, -1]]), 3).tolist()
    [[True, False, True], [False, True, False]]
    """
    found_cn: NDArray[np.bool_] = (peers_cm[:, :, None] == np.arange(n)).any(axis=1)
    return found_cn


class PensConfig(PeerSamplingConfig):
    """Peers that were often among the best of a sample."""

    name: Literal["pens"] = "pens"
    best: int = Field(
        2,
        ge=1,
        description="sampled models with the least loss that a client averages with its own",
    )
    selection_share: float = Field(
        0.2,
        gt=0,
        le=1,
        description="share of the rounds in which peers are found; then clients average with sampled ones of "
        "them (paper: a number of rounds)",
    )

    @property
    def needs_rounds(self) -> tuple[str, ...]:
        """The share of the rounds in which peers are found."""
        share = f"algorithm.selection_share={self.selection_share:g}"
        return (f"{share}: PENS finds peers in a share of them",)

    def contradiction(self) -> str:
        """Say that all sampled models are among the best."""
        if self.best < self.peers:
            return ""
        return (
            f"algorithm.best={self.best} of algorithm.peers={self.peers} sampled models leaves none out; "
            "lower algorithm.best, or raise algorithm.peers"
        )

    def unsuited(self, settings: RunSettings) -> str:
        """Refuse samples in a round that are all among the best: no peer is chosen more often than others."""
        others = settings.taking_part - 1
        sampled = min(self.peers, others)
        if self.best < sampled:
            return ""
        remedy = (
            f"lower algorithm.best to {sampled - 1} or less"
            if sampled > 1
            else "let 3 clients or more take part, or set algorithm.name=fedavg"
        )
        return (
            f"algorithm.best={self.best} leaves none out of the {sampled} models that a client can sample in "
            f"a round (algorithm.peers={self.peers}, and {settings.taking_part} clients take part), so PENS "
            f"would find no peers; {remedy}"
        )


@register.algorithm("pens")
class Pens(PeerSampling):
    """PENS: performance-based neighbor selection (Onoszko, Karlsson, Mogren, Listo Zec, 2021).

    At first, each client averages its model with the `best` of the sampled ones, and counts whose these
    were. Later it samples among those only that it counted more often than by chance, and averages with
    all that it sampled. The rows of W are the counts, divided by their sum.
    """

    Config = PensConfig
    title, color, marker, place = "PENS", "#e31a1c", "8", 53

    def __init__(
        self, config: PensConfig, clients: Clients, exchange: Exchange, context: RunContext
    ) -> None:
        super().__init__(config, clients, exchange, context)
        self.chosen = Weights(clients.ids, range(self.n), 0.0, np.float64)

    def choose(self, t: int, others_cn: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the best of a sample, or a sample of those that often were."""
        chosen_cn = self.chosen.dense()
        total_c1 = chosen_cn.sum(axis=1, keepdims=True)
        if t >= self.config.selection_share * self.context.rounds:
            by_chance_c1 = total_c1 / max(1, self.n - 1)
            return marked(self.sample(t, others_cn & (chosen_cn > by_chance_c1)), self.n)
        peers_cm = self.sample(t, others_cn)
        order_cm = np.argsort(self.losses_of(t, peers_cm), axis=1, kind="stable")
        best_cn = marked(
            np.take_along_axis(peers_cm, order_cm[:, : self.config.best], axis=1), self.n
        )
        chosen_cn, rows = chosen_cn + best_cn, np.flatnonzero(others_cn.any(axis=1))
        self.chosen.put_rows(rows, chosen_cn[rows])
        self.weights.put_rows(rows, chosen_cn[rows] / chosen_cn[rows].sum(axis=1, keepdims=True))
        return best_cn

    def state(self) -> AlgorithmState:
        """Return the counts."""
        return AlgorithmState(pairs={"chosen": self.chosen})


class DacConfig(PeerSamplingConfig):
    """Peers sampled by the similarity of their tasks."""

    name: Literal["dac"] = "dac"
    tau: float = Field(
        30.0, ge=0, description="of the softmax over similarities 1/loss; 0 samples all peers alike"
    )
    tau_growth: float = Field(
        0.0,
        ge=0,
        description="how fast tau grows from 1 in round 1 to 1 + tau (DAC-var; the authors' code: 0.2); "
        "0: it is tau in all rounds",
    )

    def tau_of(self, t: int) -> float:
        """Return tau in round t = 0 .. T-1."""
        return (
            1.0 + self.tau * float(np.tanh(self.tau_growth * t / 2))
            if self.tau_growth
            else self.tau
        )


@register.algorithm("dac")
class Dac(PeerSampling):
    """DAC: decentralized adaptive clustering (Listo Zec, Ekblom, Willbo, Mogren, Girdzijauskas, 2022).

    Each client samples peers with probabilities softmax_j(tau s_ij), and averages its model with theirs.
    s_ij is 1/loss of model j on i's data when i last had it. Where i never had it, and a peer k that it
    sampled has s_kj, i takes over that of its most similar such peer; before that s_ij is 0. The rows of W
    are the probabilities.
    """

    Config = DacConfig
    title, color, marker, place = "DAC", "#762a83", "H", 54

    def __init__(
        self, config: DacConfig, clients: Clients, exchange: Exchange, context: RunContext
    ) -> None:
        super().__init__(config, clients, exchange, context)
        self.similarity, self.measured = (
            Weights(clients.ids, range(self.n), 0.0, np.float64) for _ in range(2)
        )

    def choose(self, t: int, others_cn: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return a sample by similarity; learn similarities from it, and from what its peers know."""
        s_cn, measured_cn = self.similarity.dense(), self.measured.dense() > 0
        known_nn = self.exchange.all_gather(s_cn)
        peers_cm = self.sample(t, others_cn, self.config.tau_of(t) * s_cn)
        losses_cm = self.losses_of(t, peers_cm)
        rows = np.flatnonzero(others_cn.any(axis=1))
        for row in rows:
            sampled = peers_cm[row] != NOBODY
            peers_k = peers_cm[row, sampled]
            s_cn[row, peers_k] = 1.0 / np.maximum(losses_cm[row, sampled], LEAST_LOSS)
            measured_cn[row, peers_k] = True
            unknown_n = ~measured_cn[row]
            unknown_n[self.ids[row]] = False
            for k in peers_k[
                np.argsort(s_cn[row, peers_k], kind="stable")
            ]:  # the most similar last
                taken_n = unknown_n & (known_nn[k] > 0)
                s_cn[row, taken_n] = known_nn[k, taken_n]
        self.similarity.put_rows(rows, s_cn[rows])
        self.measured.put_rows(rows, measured_cn[rows].astype(np.float64))
        self.weights.put_rows(
            rows, self.probabilities(rows, self.config.tau_of(t + 1) * s_cn[rows])
        )
        return marked(peers_cm, self.n)

    def probabilities(
        self, rows_e: NDArray[np.int64], logits_en: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the softmax over all others [e, n] of the clients in some rows."""
        logits_en[np.arange(len(rows_e)), self.ids[rows_e]] = -np.inf
        parts_en = np.exp(logits_en - logits_en.max(axis=1, keepdims=True))
        found_en: NDArray[np.float64] = parts_en / parts_en.sum(axis=1, keepdims=True)
        return found_en

    def state(self) -> AlgorithmState:
        """Return the similarities, and whose models clients had."""
        return AlgorithmState(pairs={"similarity": self.similarity, "measured": self.measured})
