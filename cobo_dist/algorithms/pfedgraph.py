"""pFedGraph: personalized learning with inferred collaboration graphs (Ye, Ni, Wu, Chen, Wang, ICML 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.algorithms.algorithm import Finding, Graph, HealthFacts
from cobo_dist.algorithms.base import AlgorithmState, RoundResult
from cobo_dist.algorithms.fedavg import WeightedAveragingConfig
from cobo_dist.algorithms.learned_rows import (
    Floats,
    LearnedRows,
    LearnedRowsConfig,
    products_and_squares,
)
from cobo_dist.algorithms.local import local_step
from cobo_dist.algorithms.two_models import common_start
from cobo_dist.lazy import Tensor, torch
from cobo_dist.maths import projections
from cobo_dist.maths.alignment import cosine
from cobo_dist.maths.flat import some_rows
from cobo_dist.maths.weights import Weights
from cobo_dist.registry import register


class GraphWithWeights(Graph, Protocol):
    """The graph after a round, with all n rows of W."""

    weights: Weights


class PFedGraphConfig(LearnedRowsConfig, WeightedAveragingConfig):
    """Averages of models whose updates point the same way."""

    name: Literal["pfedgraph"] = "pfedgraph"
    alpha: float = Field(
        0.8,
        gt=0,
        le=1e15,
        description="how near a row of W stays to equal shares, or to the clients' shares of the examples "
        "(algorithm.weighting); the larger, the nearer to FedAvg (authors: 0.8)",
    )
    lambda_: float = Field(
        0.01,
        ge=0,
        alias="lambda",
        description="local penalty on the direction of a model (authors: 0.01); 0 sends half as much",
    )
    penalty: Literal["attraction", "repulsion"] = Field(
        "attraction",
        description="whether local steps turn towards the direction of the models that a client averages "
        "(paper), or away from it, as the authors' code does",
    )
    same_above: float = Field(
        1.0,
        ge=-1,
        le=1,
        description="cosine of updates above which two clients count as the same, with cosine 1 (authors' "
        "code: 0.9); 1: none",
    )

    def equal_share(self, clients: int) -> float:
        """Return 1/n: a client's own weight counts."""
        return 1.0 / clients

    @property
    def step_keys(self) -> tuple[str, ...]:
        """`lambda` is the strength of the local penalty."""
        return ("algorithm.lambda",) if self.lambda_ else ()

    def contradiction(self) -> str:
        """Return that a penalty of no strength has no direction."""
        if self.penalty == "repulsion" and not self.lambda_:
            return (
                "algorithm.penalty=repulsion has no effect with algorithm.lambda=0; raise algorithm.lambda, "
                "or drop algorithm.penalty"
            )
        return ""

    def check_round(self, facts: HealthFacts) -> Iterator[Finding]:
        """Warn at the end where the graph is that of FedAvg: all rows of W are the same."""
        graph = cast("GraphWithWeights | None", facts.graph)
        if facts.r < facts.rounds or graph is None or graph.pairs < 2:
            return
        rows_nn = graph.weights.dense()
        if np.allclose(rows_nn, rows_nn[0], rtol=1e-3, atol=0.0):
            yield Finding(
                "uniform",
                "all rows of W are the same, so that all clients average alike, as FedAvg: the updates of "
                "all point the same way; take more local steps (local.epochs), lower algorithm.alpha, or "
                f"raise algorithm.same_above ({self.same_above:g})",
            )


@register.algorithm("pfedgraph")
class PFedGraph(LearnedRows):
    """w_i = argmin over the simplex of sum_j w_j d_ij + alpha ||w - p||^2, d_ij = -cos(x_i - x^0, x_j - x^0).

    Then x_i <- sum_j w_ij x_j, and local steps from there of f_i(x) - lambda <v_i, x> / ||x|| with
    v_i = sum_j w_ij x_j / ||x_j||. w_i is the projection of p - d_i / (2 alpha) onto the simplex, d_ii = -1,
    and p_j is client j's share. An update of 0 has the cosine 0 with all, itself included, so that its row
    is p. Round 1 has nothing to compare, and only works locally. From models of another run
    (`run.init_from`), x^0 is their mean, and round 1 compares them.
    alpha -> infinity with `lambda=0` is FedAvg, with local work last in a round; a small alpha gives all
    weight to those with the largest cosine. Only clients that take part are compared and averaged.
    """

    Config = PFedGraphConfig
    title, color, marker, place = "pFedGraph", "#984ea3", "p", 42
    config: PFedGraphConfig

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.start_1d = common_start(self.clients, self.exchange, self.context.clients)

    def first_weights(self) -> Weights:
        """Return equal weights for all others, as the authors' code begins; they are never used."""
        ids, n = np.array(self.clients.ids, dtype=np.int64), self.context.clients
        rows_cn = (ids[:, None] != np.arange(n)) / max(1, n - 1)
        return Weights.of_rows(self.clients.ids, rows_cn.astype(self.weight_type))

    def round(self, t: int) -> RoundResult:
        """Infer the graph and average along it, then work locally."""
        part_n = self.context.taking_part(t)
        if t == 0 and not self.clients.loaded:
            return RoundResult(local_step(self.clients, t))
        used = self.use_rows(self.graph(part_n), part_n)
        towards_cd = self.directions(used) if self.config.lambda_ else None
        self.average(used, self.clients.x_cd)
        if self.config.buffers == "averaged" and self.clients.b_cd.shape[1]:
            self.average(used, self.clients.b_cd)
        if towards_cd is None:
            return RoundResult(local_step(self.clients, t), weights_replaced=True)
        strength = self.config.lambda_ * (1.0 if self.config.penalty == "attraction" else -1.0)

        def turn(points_kd: Tensor, gradients_kd: Tensor, rows_k: NDArray[np.int64]) -> None:
            """Add the gradient of -strength <v_i, x> / ||x|| in every local step."""
            v_kd = some_rows(towards_cd, rows_k)
            squares_k1 = points_kd.square().sum(dim=1, keepdim=True).clamp_(min=1e-30)
            along_k1 = (points_kd * v_kd).sum(dim=1, keepdim=True) / squares_k1
            factor_k1 = strength / squares_k1.sqrt()
            gradients_kd.addcmul_(v_kd, -factor_k1).addcmul_(points_kd, factor_k1 * along_k1)

        return RoundResult(local_step(self.clients, t, adjust=turn), weights_replaced=True)

    def state(self) -> AlgorithmState:
        """Return the start that updates are measured from: a resumed run has other models in X."""
        return AlgorithmState(shared={"start": self.start_1d})

    def shares(self, part_n: NDArray[np.bool_]) -> Floats:
        """Return p [n]: equal, or by examples, among the clients that take part."""
        equal = self.config.weighting == "equal"
        sizes_n = part_n * (1.0 if equal else np.asarray(self.context.examples, np.float64))
        shares_n: Floats = sizes_n / max(sizes_n.sum(), np.finfo(float).tiny)
        return shares_n

    def graph(self, part_n: NDArray[np.bool_]) -> Floats:
        """Return this rank's rows of the graph [c, n], by the updates since x^0."""
        x_cd = self.clients.x_cd
        update_cd = torch.sub(x_cd, self.start_1d, out=self.scratch.rows("rows", *x_cd.shape))
        products_cn, squares_n = products_and_squares(self.exchange, self.ids_c, update_cd)
        cosines_cn = cosine(products_cn, squares_n[self.ids_c, None], squares_n)
        cosines_cn[cosines_cn > self.config.same_above] = 1.0
        return graph_rows(cosines_cn, self.shares(part_n), self.config.alpha, part_n)

    def directions(self, used: Weights) -> Tensor:
        """Return v_i = sum_j w_ij x_j / ||x_j|| [c, d]."""
        x_cd = self.clients.x_cd
        norms_c1 = torch.linalg.vector_norm(x_cd, dim=1, keepdim=True).clamp_(min=1e-30)
        rows_cd = torch.div(x_cd, norms_c1, out=self.scratch.rows("rows", *x_cd.shape))
        self.average(used, rows_cd)
        return rows_cd

    def average(self, weights: Weights, rows_cd: Tensor) -> None:
        """Replace every client's row by the weighted sum of all rows."""
        for at, sum_cd in self.exchange.mix(weights, rows_cd):
            rows_cd[:, at] = sum_cd


def graph_rows(cosines_cn: Floats, p_n: Floats, alpha: float, part_n: NDArray[np.bool_]) -> Floats:
    """Return argmin of -<w, cos_i> + alpha ||w - p||^2 over the simplex of clients that take part, [c, n].

    >>> graph_rows(np.array([[1.0, 0.5, 0.0]]), np.full(3, 1 / 3), 1.0, np.ones(3, bool)).round(3).tolist()
    [[0.583, 0.333, 0.083]]
    """
    moved_cn = torch.from_numpy(p_n + cosines_cn / (2.0 * alpha))
    outside_cn = torch.from_numpy(np.broadcast_to(~part_n, cosines_cn.shape).copy())
    found: Floats = projections.simplex(moved_cn, outside_cn).numpy()
    return found
