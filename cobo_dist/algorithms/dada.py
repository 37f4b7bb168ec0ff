"""Dada: joint learning of models and a collaboration graph (Zantedeschi, Bellet, Tommasi, AISTATS 2020).

Outer problem, as CoBo's: models of linked clients are pulled together. The graph is learned from distances
of the models, where CoBo asks whether gradients align.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.algorithms.algorithm import Algorithm, AlgorithmSection, Finding, HealthFacts
from cobo_dist.algorithms.base import (
    AlgorithmState,
    Clients,
    Exchange,
    Newcomers,
    RoundResult,
    RunContext,
)
from cobo_dist.algorithms.learned_rows import products_and_squares
from cobo_dist.lazy import Tensor, torch
from cobo_dist.maths.distances import squared_distances
from cobo_dist.maths.flat import upload
from cobo_dist.maths.weights import Weights
from cobo_dist.registry import register

Floats = NDArray[np.float64]


class DadaConfig(AlgorithmSection):
    """Learns models and a graph of near models together."""

    name: Literal["dada"] = "dada"
    mu1: float = Field(
        1.0, ge=0, le=1e15, description="penalty on the squared distance of linked models"
    )
    mu2: float = Field(
        0.5, gt=0, le=1e15, description="strength of the graph's regularizer (authors' code: mu1/2)"
    )
    lambda_: float = Field(
        0.5,
        ge=0,
        le=1e15,
        alias="lambda",
        description="price of large weights, lambda ||w||^2; the larger, the more links (authors: tuned)",
    )
    delta: float = Field(
        0.1,
        gt=0,
        description="added to degrees in the logarithm, so that a client may be without links (authors' "
        "code: 0)",
    )
    graph_every: int = Field(
        1, ge=1, description="rounds from one learning of the graph to the next"
    )
    graph_steps: int = Field(
        10, ge=1, le=10_000, description="projected gradient steps each time the graph is learned"
    )
    costs: Literal["relative", "absolute"] = Field(
        "relative",
        description="whether the cost of a link is divided by the round's median over pairs of clients, so "
        "that mu2, lambda and delta suit losses of any unit, or is as it is (paper)",
    )
    confidence: Literal["equal", "examples"] = Field(
        "equal",
        description="c_i, how much a client's own loss counts: 1, or its training examples relative to the "
        "most that a client has (paper)",
    )

    def equal_share(self, clients: int) -> float:
        """Return the share of each of the others."""
        return 1.0 / max(1, clients - 1)

    def comparisons(self, t: int, context: RunContext) -> float:
        """All models are compared with one another when it is time."""
        return 0.0 if t % self.graph_every else float(context.clients**2)

    def representative_rounds(self, rounds: int) -> list[tuple[int, int]]:
        """One round with the graph and one without."""
        learned = -(-rounds // self.graph_every)
        parts = [(0, learned), (1, rounds - learned)]
        return [(t, count) for t, count in parts if count]

    @property
    def step_keys(self) -> tuple[str, ...]:
        """The penalty's factor."""
        return ("algorithm.mu1",)

    def check_settings(self, facts: HealthFacts) -> Iterator[Finding]:
        """Check that a step does not overshoot by its pull alone."""
        if facts.lr * self.mu1 >= 1.0:
            yield Finding(
                "pull",
                f"optimizer.lr={facts.lr:g} times algorithm.mu1={self.mu1:g} is {facts.lr * self.mu1:g}, and "
                "from 1 on the pull moves two linked models past each other and apart; set algorithm.mu1 "
                f"below {1.0 / facts.lr:.3g}",
            )

    def check_round(self, facts: HealthFacts) -> Iterator[Finding]:
        """Warn where no client has a link."""
        graph = facts.graph
        if graph is None or not graph.pairs or graph.at_0 < graph.count:
            return
        remedy = f"lower algorithm.delta ({self.delta:g}) or raise algorithm.mu2 ({self.mu2:g})"
        if self.costs == "absolute":
            remedy += ", or set algorithm.costs=relative"
        yield Finding("empty", f"all weights are 0: this is Local; links cost too much: {remedy}")


@register.algorithm("dada")
class Dada(Algorithm):
    """min over X, w >= 0: sum_i d_i c_i f_i(x_i) + mu1/2 sum_{i<j} w_ij ||x_i - x_j||^2 + mu2 g(w).

    g(w) = lambda ||w||^2 - sum_i log(d_i + delta), w_ij = w_ji, with degrees d_i = sum_j w_ij.
    A round takes projected gradient steps on w, all models fixed, then one step for each model, w fixed:
        x_i <- x_i - eta (c_i g_i + mu1 sum_j w_ij/d_i (x_i - x_j)),
    the gradient divided by d_i. A step on w is 1/L long, L being the curvature at the present degrees.
    W shows w_ij/d_i, in rows that sum to 1, or are 0 for clients without links, which then are Local.
    With relative costs, what w_ij multiplies, c_i f_i + c_j f_j + mu1/2 ||x_i - x_j||^2, is divided by its
    median over the pairs of the round: the graph is the same in any unit of the loss. `mu1=0` is Local.
    Only clients that take part are compared and pulled, by each other; w of others stays.
    With several local steps, the sum of their directions takes the place of g_i, as CoBo does.
    """

    Config = DadaConfig
    title, color, marker, place = "Dada", "#b2182b", ">", 44
    learns_weights = True
    config: DadaConfig

    def __init__(
        self, config: DadaConfig, clients: Clients, exchange: Exchange, context: RunContext
    ) -> None:
        n = context.clients
        self.w_nn: Floats = (1.0 - np.eye(n)) / max(1, n - 1)  # the same on every rank
        super().__init__(config, clients, exchange, context)
        self.confidence_n = np.ones(n)
        if self.config.confidence == "examples":
            examples_n = np.asarray(self.context.examples, np.float64)
            self.confidence_n = examples_n / max(1.0, examples_n.max())

    def first_weights(self) -> Weights:
        """Return this rank's rows of W: w_ij/d_i."""
        w_cn = self.w_nn[list(self.clients.ids)]
        degrees_c1 = w_cn.sum(axis=1, keepdims=True)
        rows_cn = w_cn / np.where(degrees_c1 > 0, degrees_c1, 1.0)
        return Weights.of_rows(self.clients.ids, rows_cn.astype(self.weight_type))

    def round(self, t: int) -> RoundResult:
        """Learn the graph from x^t, then train the models with it."""
        part_n = self.context.taking_part(t)
        losses_c = self.clients.gradients(t)
        learns = t % self.config.graph_every == 0
        if learns:
            absent_n = ~self.context.members(t)
            self.w_nn[absent_n] = self.w_nn[:, absent_n] = 0.0
            self.learn_graph(part_n, losses_c)
            self.weights = self.first_weights()
        self.train_models(t, part_n)
        return RoundResult(losses_c, weights_replaced=learns)

    def join(self, t: int, newcomers: Newcomers) -> None:
        """Give newcomers an equal share of their first weights, and others the same for them."""
        everyone = range(self.context.clients)
        rows, others, w_e = newcomers.entries(everyone, self.context.clients)
        members_n = self.context.members(t)
        here_e = members_n[rows] & members_n[others]
        self.w_nn[rows[here_e], others[here_e]] = w_e[here_e] / max(1, members_n.sum() - 1)
        self.weights = self.first_weights()

    def learn_graph(self, part_n: NDArray[np.bool_], losses_c: Tensor) -> None:
        """Take projected gradient steps on the weights of clients that take part, on every rank alike."""
        ids_c = np.array(self.clients.ids)
        products_cn, squares_n = products_and_squares(self.exchange, ids_c, self.clients.x_cd)
        s_cn = squared_distances(products_cn, squares_n, ids_c)
        losses_c1 = losses_c.double().cpu().numpy()[:, None]
        gathered_nk = self.exchange.all_gather(np.concatenate([s_cn, losses_c1], axis=1)).astype(
            np.float64
        )
        costs_n = self.confidence_n * gathered_nk[:, -1]
        part = np.flatnonzero(part_n & np.isfinite(costs_n))  # a skipped loss is NaN
        if not len(part):
            return
        costs_mm = self.config.mu1 / 2.0 * gathered_nk[np.ix_(part, part)]
        costs_mm += np.add.outer(costs_n[part], costs_n[part])
        if self.config.costs == "relative":
            pairs = costs_mm[np.triu_indices(len(part), 1)]
            median = float(np.median(pairs)) if len(pairs) else 0.0
            costs_mm /= median if median > 0 else 1.0
        for _ in range(self.config.graph_steps):
            self.w_nn[np.ix_(part, part)] = self.graph_step(part, costs_mm)

    def graph_step(self, part: NDArray[np.int64], costs_mm: Floats) -> Floats:
        """Return w [m, m] of the clients `part` after a projected gradient step.

        The slope along w_ij is cost_ij + mu2 (2 lambda w_ij - 1/(d_i + delta) - 1/(d_j + delta)), with
        cost_ij = mu1/2 ||x_i - x_j||^2 + c_i f_i + c_j f_j, over their median where costs are relative.
        """
        mu2, lambda_, delta = self.config.mu2, self.config.lambda_, self.config.delta
        degrees_n = self.w_nn.sum(axis=1)
        inverse_m = 1.0 / (degrees_n[part] + delta)
        w_mm = self.w_nn[np.ix_(part, part)]
        slope_mm = costs_mm + mu2 * (2.0 * lambda_ * w_mm - (inverse_m[:, None] + inverse_m))
        others = max(1, len(part) - 1)
        curvature = 2.0 * mu2 * (lambda_ + others * float(inverse_m.max()) ** 2)
        moved_mm: Floats = np.maximum(w_mm - slope_mm / curvature, 0.0)
        np.fill_diagonal(moved_mm, 0.0)
        return moved_mm

    def train_models(self, t: int, part_n: NDArray[np.bool_]) -> None:
        """x_i <- x_i (1 - eta mu1 sum_j p_ij) + eta (mu1 sum_j p_ij x_j - c_i g_i), p_ij = w_ij/d_i."""
        clients, weights = self.clients, self.weights
        if not part_n.all():
            weights = weights.among(part_n)
        x_cd, eta, mu1 = clients.x_cd, clients.eta(t), self.config.mu1
        confidence_c = self.confidence_n[list(clients.ids)]
        kept_c1 = upload(torch.from_numpy(1.0 - eta * mu1 * weights.sums())[:, None], x_cd)
        own_c1 = upload(torch.from_numpy(eta * confidence_c)[:, None], x_cd)
        direction_cd = clients.direction()
        for at, sum_cd in self.exchange.mix(weights, x_cd):
            x_cd[:, at].mul_(kept_c1).add_(sum_cd, alpha=eta * mu1)
            x_cd[:, at].addcmul_(direction_cd[:, at], own_c1, value=-1.0)

    def state(self) -> AlgorithmState:
        """Return w."""
        return AlgorithmState(shared={"graph": torch.from_numpy(self.w_nn)})

    def possible_weights(self) -> dict[str, Weights | None]:
        """Return what `plan` counts beside W^0: no two weights equal."""
        return {"any W, at most": None}
