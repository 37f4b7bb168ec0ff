"""CoBo: Collaborative Learning via Bilevel Optimization (Hashemi, He, Jaggi, NeurIPS 2024), Algorithm 1.

Outer problem (model training), W fixed:
    min over x_1..x_n   sum_i f_i(x_i) + rho/2 sum_{i<j} w_ij ||x_i - x_j||^2
Inner problem (client selection), X fixed:
    max over w_ij in [0, 1]   w_ij <grad f_i(z_ij), grad f_j(z_ij)>,   z_ij = (x_i + x_j)/2

`rho=0` is Local. W fixed block-diagonal and rho -> infinity is Oracle; W all ones, FedAvg.

The domain of W is the box [0, 1] for each weight, or a simplex for each client's row (Remark 1; language):
{w_ij >= 0, sum_j w_ij = 1}, where w_ij and w_ji are two weights and the inner problem's maximizer gives
all weight to one client. `cobo_dist.reference` has the algorithm on one array.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.algorithms import cobo_health
from cobo_dist.algorithms.algorithm import Algorithm, AlgorithmSection, Finding, HealthFacts
from cobo_dist.algorithms.base import (
    Clients,
    Exchange,
    PairEnds,
    RoundResult,
    RunContext,
    WeightUpdates,
    sampled_rounds,
)
from cobo_dist.algorithms.statistics import StatisticName, statistic_of
from cobo_dist.lazy import Tensor, torch
from cobo_dist.maths import projections, seeds
from cobo_dist.maths.flat import upload
from cobo_dist.maths.sampling import draw_pairs, pair_probability
from cobo_dist.maths.weights import Weights
from cobo_dist.registry import register
from cobo_dist.settings import Section


class SamplingConfig(Section):
    """Which pairs meet in a round (Table 1)."""

    name: Literal["constant", "time", "mixed", "all", "published"] = Field(
        "constant",
        description="probability of an unordered pair: constant 1/n, time 1/t, mixed 1/n at first "
        "and then 1/t, all 1; published (the authors' code) 2/n for 800 rounds, then 1/sqrt(t)",
    )
    rate: float = Field(1.0, ge=0, description="factor on that probability; 0 draws none")
    switch_fraction: float = Field(
        0.002, ge=0, le=1, description="mixed: share of the rounds before 1/t (paper: 0.2%)"
    )

    def probability(self, t: int, clients: int, rounds: int) -> float:
        """Return the probability of one unordered pair in round t."""
        return pair_probability(
            self.name, t, clients, rounds, rate=self.rate, switch_fraction=self.switch_fraction
        )


class CoBoConfig(AlgorithmSection):
    """Learns models and collaboration weights together."""

    name: Literal["cobo"] = "cobo"
    rho: float = Field(
        0.2, ge=0, le=1e15, description="penalty on the distance of collaborators' models"
    )
    gamma: float = Field(0.01, ge=0, description="step size of the collaboration weights")
    domain: Literal["box", "simplex"] = Field(
        "box",
        description="domain of the weights: box is [0, 1] each; simplex: a client's weights are 0 or more "
        "and sum to 1 (language)",
    )
    own_weight: Literal["excluded", "included"] = Field(
        "excluded",
        description="simplex: whether w_ii belongs to client i's row. The penalty does not see it and "
        "the authors start at 1/(n-1) off the diagonal: excluded; included, it takes the weight that a "
        "client gives to no other",
    )
    sampling: SamplingConfig = SamplingConfig()
    alignment: StatisticName = Field(
        "inner",
        description="what changes a weight: inner product of the midpoint gradients (paper), their "
        "cosine, which does not shrink with the gradients, or a statistic of a plug-in",
    )
    start: Literal["ones", "zeros"] = Field(
        "ones",
        description="W^0: all ones (paper) or zeros, which lets collaboration grow; on a simplex, ones "
        "is one weight for all that sums to 1",
    )
    order: Literal["weights_first", "models_first"] = Field(
        "weights_first",
        description="within a round: client selection, then models with the new weights (paper), or "
        "models with the old weights, then selection (the authors' code); both read x^t",
    )
    midpoint_data: Literal["fresh", "shared"] = Field(
        "fresh",
        description="a client's examples at midpoints: a stream of their own, or the batch of its "
        "local step (the paper leaves it open)",
    )
    penalty: Literal["scheduled", "fixed"] = Field(
        "scheduled",
        description="the penalty's step: eta(t) rho at x^t (paper), or optimizer.lr rho whatever "
        "optimizer.schedule says, at the models after their gradient step (the authors' language "
        "code: its 0.001 is rho 0.5 at lr 2e-3)",
    )

    def contradiction(self) -> str:
        """Return which keys do not go together with the domain."""
        if self.domain == "simplex" and self.start == "zeros":
            return (
                "algorithm.start=zeros is outside algorithm.domain=simplex, where weights sum to 1; "
                "use algorithm.start=ones, which is one weight for all"
            )
        if self.domain == "box" and self.own_weight == "included":
            return (
                "algorithm.own_weight=included means nothing to algorithm.domain=box, where each "
                "weight stands alone; drop it or set algorithm.domain=simplex"
            )
        return ""

    @property
    def batch_streams(self) -> int:
        """Midpoints may have a stream of their own."""
        return 1 + (self.midpoint_data == "fresh")

    def equal_share(self, clients: int) -> float:
        """Return a simplex's equal weights."""
        if self.domain == "box":
            return 0.0
        return 1.0 / max(1, clients - (self.own_weight == "excluded"))

    @property
    def weight_step(self) -> float:
        """Gamma."""
        return self.gamma

    @property
    def needs_rounds(self) -> tuple[str, ...]:
        """The share of the rounds before mixed sampling switches."""
        if self.sampling.name != "mixed":
            return ()
        return ("algorithm.sampling.name=mixed switches after a share of them",)

    @property
    def step_keys(self) -> tuple[str, ...]:
        """The penalty's factor."""
        return ("algorithm.rho",)

    def check_settings(self, facts: HealthFacts) -> Iterator[Finding]:
        """Check the penalty's step."""
        check = (
            cobo_health.penalty_on_box if self.domain == "box" else cobo_health.penalty_on_simplex
        )
        yield from check(self, facts)

    def check_round(self, facts: HealthFacts) -> Iterator[Finding]:
        """Check weights when pairs have met, and at the end."""
        if facts.graph is None or not facts.graph.pairs:
            return
        if facts.drawn_now:
            yield from cobo_health.saturation(self, facts, facts.graph)
        if facts.r == facts.rounds:
            yield from cobo_health.at_the_end(self, facts, facts.graph)

    def comparisons(self, t: int, context: RunContext) -> float:
        """Return the expected number of pairs; on a simplex every weight of W is kept by itself."""
        n = context.clients
        if self.domain == "simplex":
            return float(n * n)
        return self.sampling.probability(t, n, context.rounds) * n * (n - 1) / 2

    def representative_rounds(self, rounds: int) -> list[tuple[int, int]]:
        """Rounds differ unless all pairs meet in each."""
        if self.sampling.name == "all" and self.sampling.rate >= 1:
            return [(0, rounds)]
        return sampled_rounds(rounds)


@register.algorithm("cobo")
class CoBo(Algorithm):
    """Alternates client selection and model training; both read x^t, and selection comes first.

    On the box both owners of a pair compute the same new weight, so W stays symmetric. On a simplex each
    owner changes its own row, and projects it once, after all pairs of the round: the order of the pairs
    then makes no difference.

    Clients that do not take part in a round have no pairs and no weights in it; they keep their models, and
    their weights for later rounds.
    With several local steps, the sum of their directions takes the place of g_i in the step. Alignments are
    of single gradients at midpoints of x^t, and the penalty acts once a round, at x^t.
    """

    Config = CoBoConfig
    title, color, marker, place = "CoBo", "#d55e00", "o", 8
    role, learns_weights = "emphasized", True
    config: CoBoConfig

    def __init__(
        self, config: CoBoConfig, clients: Clients, exchange: Exchange, context: RunContext
    ) -> None:
        super().__init__(config, clients, exchange, context)
        self.statistic = statistic_of(config.alignment)

    def first_weights(self) -> Weights:
        """Return this rank's rows of W^0."""
        config, ids, n = self.config, self.clients.ids, self.context.clients
        dtype = self.weight_type
        if config.domain == "simplex":
            w_cn = self.onto_simplex(np.ones((len(ids), n), dtype=dtype), np.arange(len(ids)))
            return Weights.of_rows(ids, w_cn.astype(dtype))
        # The diagonal is never drawn. On the box it has no effect and stays as it is.
        w_0 = 1.0 if config.start == "ones" else 0.0
        return Weights(ids, (0,) * n, w_0, dtype, symmetric=True)

    def round(self, t: int) -> RoundResult:
        """Algorithm 1, lines 2 to 5, for this rank's clients."""
        pairs_m2 = self.draw(t)
        self.exchange.send_models(self.clients.x_cd, pairs_m2)
        losses_c = self.clients.gradients(t)  # independent of W: computed while models are sent
        self.exchange.receive_models()
        weights = self.weights
        if self.config.order == "models_first":
            weights = weights.copy()  # selection changes W in place; models use the old weights
        # At most n pairs at a time, to bound the memory of midpoints. A weight depends only on x^t and
        # its own old value, so splitting the list does not change it.
        pieces = torch.split(pairs_m2, self.context.clients)
        if self.config.domain == "box":
            selections = [self.client_selection(t, pairs_k2) for pairs_k2 in pieces]
        else:
            selections = self.row_selection(t, pieces)
        if not self.context.all_take_part:
            weights = weights.among(self.context.taking_part(t))
        self.model_training(t, weights)
        return RoundResult(losses_c, len(pairs_m2), selections)

    def draw(self, t: int) -> Tensor:
        """Return the pairs of round t, int64 [m, 2]: the same on every rank.

        A drawn pair counts if both clients take part.
        """
        n = self.context.clients
        probability = self.config.sampling.probability(t, n, self.context.rounds)
        pairs_m2 = draw_pairs(seeds.key(self.context.seed, "pairs", t), n, probability)
        if self.context.all_take_part:
            return pairs_m2
        part_n = torch.from_numpy(self.context.taking_part(t))
        return pairs_m2[part_n[pairs_m2].all(dim=1)]

    def client_selection(self, t: int, pairs_k2: Tensor) -> WeightUpdates:
        """w_ij <- Proj(w_ij + gamma <g_i(z_ij), g_j(z_ij)>), each gradient on its owner's data."""
        ends, alignment_e = self.alignments(t, pairs_k2)
        moved_e = self.weights.at(ends.rows, ends.partners) + self.config.gamma * alignment_e
        w_e = projections.box(torch.from_numpy(moved_e)).numpy().astype(self.weights.dtype)
        self.weights.put(ends.rows, ends.partners, w_e)
        once = ends.first
        return WeightUpdates(ends.ids[once], ends.partners[once], w_e[once], alignment_e[once])

    def row_selection(self, t: int, pieces: Sequence[Tensor]) -> list[WeightUpdates]:
        """w_i <- Proj(w_i + gamma sum_j <g_i(z_ij), g_j(z_ij)> e_j) over the partners j of the round."""
        old_cn = self.weights.dense()
        moved_cn = old_cn.astype(np.float64)
        met_c = np.zeros(len(moved_cn), dtype=bool)
        alignments = []
        for pairs_k2 in pieces:
            ends, alignment_e = self.alignments(t, pairs_k2)
            moved_cn[ends.rows, ends.partners] += self.config.gamma * alignment_e
            met_c[ends.rows] = True
            alignments.append(alignment_e[ends.first])
        rows = np.flatnonzero(met_c)
        new_kn = self.onto_simplex(moved_cn[rows], rows).astype(old_cn.dtype)
        self.weights.put_rows(rows, new_kn)
        row, other = np.nonzero(new_kn != old_cn[rows])  # a whole row moves with one weight
        ids = np.asarray(self.clients.ids)[rows[row]]
        return [WeightUpdates(ids, other, new_kn[row, other], np.concatenate(alignments))]

    def alignments(self, t: int, pairs_k2: Tensor) -> tuple[PairEnds, NDArray[np.float64]]:
        """Return this rank's ends of the pairs, and <g_i(z_ij), g_j(z_ij)> for each."""
        ends, z_ed = self.exchange.midpoints(pairs_k2)  # z_ij = (x_i + x_j)/2
        stream = "midpoint" if self.config.midpoint_data == "fresh" else "local"
        g_ed = self.clients.gradients_at(z_ed, ends.rows, t, stream, in_place=True)
        return ends, self.exchange.alignment(g_ed, self.statistic)

    def onto_simplex(
        self, moved_kn: NDArray[np.floating], rows: NDArray[np.intp]
    ) -> NDArray[np.float64]:
        """Project the weights of the clients in `rows`, [k, n]."""
        outside_kn = None
        if self.config.own_weight == "excluded":
            own_k1 = torch.tensor(self.clients.ids)[torch.from_numpy(rows), None]
            outside_kn = torch.arange(self.context.clients) == own_k1
        return projections.simplex(torch.from_numpy(moved_kn), outside_kn).numpy()

    def model_training(self, t: int, weights: Weights) -> None:
        """x_i <- x_i - eta (g_i + rho sum_k w_ik (x_i - x_k)) with these rows of W.

        Written as x_i (1 - eta rho deg_i) + eta (rho sum_k w_ik x_k - g_i), deg_i = sum_k w_ik,
        which needs no memory beyond the sums that `mix` yields for some columns of X at a time. The penalty
        does not enter the optimizer's moments.
        """
        x_cd, eta, rho = self.clients.x_cd, self.clients.eta(t), self.config.rho
        pull_c1 = torch.from_numpy(rho * weights.sums())[:, None]
        if self.config.penalty == "scheduled":
            direction_cd, kept_c1 = self.clients.direction(), upload(1.0 - eta * pull_c1, x_cd)
            for at, mixed in self.exchange.mix(weights, x_cd):
                step = mixed.mul_(rho).sub_(direction_cd[:, at]).mul_(eta)
                x_cd[:, at].mul_(kept_c1).add_(step)
        else:
            x_cd.add_(self.clients.direction(), alpha=-eta)
            lr = self.clients.lr
            kept_c1 = upload(1.0 - lr * pull_c1, x_cd)
            for at, mixed in self.exchange.mix(weights, x_cd):
                x_cd[:, at].mul_(kept_c1).add_(mixed.mul_(lr * rho))

    def possible_weights(self) -> dict[str, Weights | None]:
        """Return W of the true clusters, if the task knows them, and a W with no two equal weights."""
        found: dict[str, Weights | None] = {}
        if self.context.clusters is not None:
            same = Weights(
                self.clients.ids,
                self.context.clusters,
                dtype=self.weights.dtype.type,
                symmetric=True,
            )
            if self.config.domain == "simplex":
                same = self.shared_within(same.dense() > 0)
            found["W = true clusters"] = same
        return found | {"any W, at most": None}

    def shared_within(self, linked_nn: NDArray[np.bool_]) -> Weights:
        """Return rows that share 1 equally among linked clients, or among all where none is linked."""
        allowed_nn = self.first_weights().dense() > 0
        linked_nn = linked_nn & allowed_nn
        linked_nn = np.where(linked_nn.any(axis=1, keepdims=True), linked_nn, allowed_nn)
        # A client that is alone in the run has no other to share with.
        w_nn = linked_nn / np.maximum(linked_nn.sum(axis=1, keepdims=True), 1.0)
        return Weights.of_rows(self.clients.ids, w_nn.astype(self.weights.dtype))
