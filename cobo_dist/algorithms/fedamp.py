"""FedAMP and HeurFedAMP: attentive message passing (Huang, Chu, Zhou, Wang, Liu, Pei, Zhang, AAAI 2021)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.algorithms.algorithm import Finding, HealthFacts
from cobo_dist.algorithms.base import AlgorithmState, RoundResult
from cobo_dist.algorithms.learned_rows import (
    Floats,
    LearnedRows,
    LearnedRowsConfig,
    products_and_squares,
)
from cobo_dist.algorithms.local import local_step, pull_to
from cobo_dist.algorithms.two_models import common_start
from cobo_dist.errors import ConfigError
from cobo_dist.lazy import torch
from cobo_dist.maths.alignment import cosine
from cobo_dist.maths.distances import squared_distances
from cobo_dist.maths.weights import Weights
from cobo_dist.registry import register


class MessagePassingConfig(LearnedRowsConfig):
    """A pull towards messages."""

    lambda_: float = Field(
        1.0,
        ge=0,
        le=1e15,
        alias="lambda",
        description="pull towards the message: lambda/2 ||x - u||^2 (the paper's lambda/alpha)",
    )

    @property
    def pull(self) -> float:
        """The factor p of p/2 ||x - u||^2."""
        return self.lambda_

    @property
    def step_keys(self) -> tuple[str, ...]:
        """`lambda` multiplies the distance to the message."""
        return ("algorithm.lambda",) if self.lambda_ else ()

    def check_settings(self, facts: HealthFacts) -> Iterator[Finding]:
        """Check that a step does not overshoot by its pull alone."""
        if facts.lr * self.pull >= 2.0:
            yield Finding(
                "pull",
                f"optimizer.lr={facts.lr:g} times the pull {self.pull:g} of algorithm.lambda="
                f"{self.lambda_:g} is {facts.lr * self.pull:g}, and from 2 on the pull moves models apart; "
                f"set optimizer.lr below {2.0 / self.pull:.3g}, or lower algorithm.lambda",
            )


class FedAmpConfig(MessagePassingConfig):
    """Models near a mean of those models that lie near."""

    name: Literal["fedamp"] = "fedamp"
    lambda_: float = Field(
        1.0,
        ge=0,
        le=1e15,
        alias="lambda",
        description="pull towards the message: lambda/2 ||x - u||^2; with algorithm.alpha it is "
        "lambda/(2 alpha) ||x - u||^2 (paper: 1)",
    )
    sigma: float = Field(
        0.0,
        ge=0,
        description="squared distance at which attention has fallen to 1/e (paper: 1e6 for small networks); "
        "0: the median of the round's squared distances",
    )
    alpha: float = Field(
        0.0,
        ge=0,
        description="step of message passing: equal models get the weight alpha/sigma (paper: 1e4); "
        "0: sigma/(2 (n - 1)), so that a client's own has the weight 1/2 among n equal models",
    )

    @property
    def pull(self) -> float:
        """The factor: lambda/alpha, or lambda where alpha follows the distances."""
        return self.lambda_ / (self.alpha or 1.0)

    def most(self, clients: int) -> float:
        """Return the weight that equal models give each other, alpha/sigma."""
        return self.alpha / self.sigma if self.alpha else 0.5 / max(1, clients - 1)

    def contradiction(self) -> str:
        """Return that alpha has no unit without sigma."""
        if self.alpha and not self.sigma:
            return (
                f"algorithm.alpha={self.alpha:g} is in units of algorithm.sigma, which is 0: the median of "
                "each round's distances; set algorithm.sigma too, or leave algorithm.alpha at 0"
            )
        return ""

    def equal_share(self, clients: int) -> float:
        """Return half of the largest weight, alpha/sigma: a link is a client that lies nearer than others."""
        return 0.5 * self.most(clients)


class MessagePassing(LearnedRows):
    """u_i = sum_j xi_ij x_j, then local steps of f_i(x) + pull/2 ||x - u_i||^2 from x_i. W is xi.

    Only clients that take part send messages to each other and step.
    """

    config: MessagePassingConfig
    symmetric = False  # whether xi_ij = xi_ji

    def first_weights(self) -> Weights:
        """Return the identity; W stays symmetric only where all rows are of one round."""
        symmetric = self.symmetric and self.context.all_take_part
        every = range(self.context.clients)
        return Weights(self.clients.ids, every, dtype=self.weight_type, symmetric=symmetric)

    @abstractmethod
    def attention(self, part_n: NDArray[np.bool_]) -> Floats:
        """Return xi [c, n] among the clients that take part."""

    def round(self, t: int) -> RoundResult:
        """Pass messages, then work locally near them."""
        x_cd, part_n = self.clients.x_cd, self.context.taking_part(t)
        used = self.use_rows(self.attention(part_n), part_n, symmetric=self.symmetric)
        u_cd = self.scratch.rows("messages", *x_cd.shape)
        for at, sum_cd in self.exchange.mix(used, x_cd):
            u_cd[:, at] = sum_cd
        losses_c = local_step(self.clients, t, adjust=pull_to(u_cd, self.config.pull))
        return RoundResult(losses_c, weights_replaced=True)


@register.algorithm("fedamp")
class FedAmp(MessagePassing):
    """min over x_1..x_n of sum_i f_i(x_i) + lambda sum_{i<j} A(||x_i - x_j||^2), A(s) = 1 - exp(-s/sigma).

    u_i = xi_ii x_i + sum_{j != i} xi_ij x_j with xi_ij = alpha A'(||x_i - x_j||^2) and xi_ii = 1 minus the
    others; then local steps of f_i(x) + lambda/(2 alpha) ||x - u_i||^2 from x_i (paper, Algorithm 1).
    A' = exp(-s/sigma)/sigma, so equal models get alpha/sigma each, and an own weight below 0 is refused.
    Without `sigma` and `alpha` both follow the distances of the round; the pull is lambda/2 ||x - u_i||^2.
    `lambda=0` is Local. A sigma far below the distances makes W the identity: Local too, up to the pull
    towards oneself.
    """

    Config = FedAmpConfig
    title, color, marker, place = "FedAMP", "#a65628", "d", 40
    symmetric = True
    config: FedAmpConfig

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        alpha, sigma = self.config.alpha, self.config.sigma
        others = max(1, int(self.context.taking_part(0).sum()) - 1)
        self.most = self.config.most(self.context.clients)  # the largest xi_ij
        if self.most * others > 1.0:
            raise ConfigError(
                f"algorithm.alpha={alpha:g} and algorithm.sigma={sigma:g} give a client's own model the "
                f"weight 1 - {others} alpha/sigma = {1 - self.most * others:g} among equal models; set "
                f"algorithm.alpha to at most {sigma / others:g}, or leave it at 0"
            )

    def attention(self, part_n: NDArray[np.bool_]) -> Floats:
        """Return xi_ij = alpha/sigma exp(-||x_i - x_j||^2 / sigma), and 1 minus their sum for oneself."""
        products_cn, squares_n = products_and_squares(self.exchange, self.ids_c, self.clients.x_cd)
        s_cn = squared_distances(products_cn, squares_n, self.ids_c)
        sigma = self.config.sigma or self.median(s_cn, part_n)
        near_cn = np.exp(-s_cn / sigma) if sigma else (s_cn == 0.0) * 1.0
        xi_cn = np.where(self.others(part_n), self.most * near_cn, 0.0)
        xi_cn[np.arange(len(self.ids_c)), self.ids_c] = 1.0 - xi_cn.sum(axis=1)
        return xi_cn

    def median(self, s_cn: Floats, part_n: NDArray[np.bool_]) -> float:
        """Return the median of the squared distances of two clients that take part, on every rank."""
        part = np.flatnonzero(part_n)
        s_nn = self.exchange.all_gather(s_cn)
        pairs = s_nn[np.ix_(part, part)][np.triu_indices(len(part), 1)]
        return float(np.median(pairs)) if len(pairs) else 0.0


class HeurFedAmpConfig(MessagePassingConfig):
    """Models near a mean of those models that point the same way."""

    name: Literal["heurfedamp"] = "heurfedamp"
    sigma: float = Field(
        10.0,
        ge=0,
        description="sharpness of the softmax over cosines; 0: equal weights for all others",
    )
    self_weight: float = Field(
        0.3, ge=0, le=1, description="weight of a client's own model in its message; 1 is Local"
    )
    compare: Literal["models", "updates"] = Field(
        "models",
        description="what cosines are of: the models (paper), or their differences from x^0 (pFedGraph's "
        "code, which calls this method FedAMP), with run.init_from from the mean of those models",
    )

    def equal_share(self, clients: int) -> float:
        """Return what each of the others has where all are alike."""
        return (1.0 - self.self_weight) / max(1, clients - 1)


@register.algorithm("heurfedamp")
class HeurFedAmp(MessagePassing):
    """FedAMP with xi_ij = (1 - xi_ii) softmax_{j != i}(sigma cos(x_i, x_j)) and a fixed xi_ii, for deep nets.

    `self_weight=1` or `lambda=0` is Local, up to the pull towards oneself. `sigma=0` gives all others equal
    weights.
    """

    Config = HeurFedAmpConfig
    title, color, marker, place = "HeurFedAMP", "#d9a273", "d", 41
    config: HeurFedAmpConfig

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.start_1d = None
        if self.config.compare == "updates":
            self.start_1d = common_start(self.clients, self.exchange, self.context.clients)

    def attention(self, part_n: NDArray[np.bool_]) -> Floats:
        """Return the softmax over the cosines with others that take part, times what xi_ii leaves."""
        rows_cd = self.clients.x_cd
        if self.start_1d is not None:  # into the rows that the messages will overwrite
            out_cd = self.scratch.rows("messages", *rows_cd.shape)
            rows_cd = torch.sub(rows_cd, self.start_1d, out=out_cd)
        products_cn, squares_n = products_and_squares(self.exchange, self.ids_c, rows_cd)
        cosines_cn = cosine(products_cn, squares_n[self.ids_c, None], squares_n)
        others_cn = self.others(part_n)
        best_c1 = np.where(others_cn, cosines_cn, -np.inf).max(axis=1, keepdims=True)
        below_cn = np.where(others_cn, cosines_cn - best_c1, 0.0)
        parts_cn = np.where(others_cn, np.exp(self.config.sigma * below_cn), 0.0)
        totals_c1 = np.maximum(parts_cn.sum(axis=1, keepdims=True), np.finfo(float).tiny)
        xi_cn: Floats = (1.0 - self.config.self_weight) * parts_cn / totals_c1
        xi_cn[np.arange(len(self.ids_c)), self.ids_c] = 1.0 - xi_cn.sum(axis=1)
        return xi_cn

    def state(self) -> AlgorithmState:
        """Return the start that updates are measured from: a resumed run has other models in X."""
        return AlgorithmState(shared={} if self.start_1d is None else {"start": self.start_1d})
