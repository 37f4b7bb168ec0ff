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

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cobo_dist.algorithms.algorithm import Algorithm
from cobo_dist.algorithms.base import (
    AlgorithmState,
    Clients,
    Columns,
    Exchange,
    Newcomers,
    PairEnds,
    RoundResult,
    RunContext,
    WeightUpdates,
)
from cobo_dist.algorithms.cobo_config import CoBoConfig
from cobo_dist.algorithms.cobo_difference import DifferenceSelection
from cobo_dist.algorithms.cobo_privacy import Releases
from cobo_dist.algorithms.cobo_selection import EvidenceSelection, GradientSelection, Selection
from cobo_dist.algorithms.named_columns import named_columns
from cobo_dist.algorithms.neighbors import NeighborModels
from cobo_dist.algorithms.statistics import statistic_of
from cobo_dist.lazy import Tensor, torch
from cobo_dist.maths import coupling, projections, seeds
from cobo_dist.maths.flat import upload
from cobo_dist.maths.sampling import add_pairs_of, draw_pairs
from cobo_dist.maths.weights import Weights
from cobo_dist.registry import register


@register.algorithm("cobo")
class CoBo(Algorithm):
    """Alternates client selection and model training; both read x^t, and selection comes first.

    On the box both owners of a pair compute the same new weight, so W stays symmetric. On a simplex each
    owner changes its own row, and projects it once, after all pairs of the round: the order of the pairs
    then makes no difference.

    Clients that do not take part in a round have no pairs and no weights in it; they keep their models, and
    their weights for later rounds. In virtual time (`clock.policy` bounded or free), those that take part are
    pulled to the models of all members as these last arrived (`neighbors.py`).
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
        self.neighbors = NeighborModels(clients, exchange, context)
        self.statistic = statistic_of(config.alignment)
        self.compared: Columns | None = None  # all columns
        if config.alignment_columns:
            self.compared = named_columns(clients, "alignment_columns", config.alignment_columns)
        self.stream = "midpoint" if config.midpoint_data == "fresh" else "local"
        self.selection: Selection = (
            EvidenceSelection(config.evidence, self.weights)
            if config.selection == "evidence"
            else GradientSelection(config, self.weights)
        )
        self.releases = Releases(context) if config.privacy.noise else None
        self.difference: DifferenceSelection | None = None
        if config.selection == "difference":
            self.difference = DifferenceSelection(
                config, clients, exchange, context, self.weights, self.stream
            )

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
        self.neighbors.begin_round(t)
        pairs_m2 = self.draw(t)
        self.exchange.send_models(self.neighbors.known_to_pairs, pairs_m2)
        losses_c = self.clients.gradients(t)  # independent of W: computed while models are sent
        self.exchange.receive_models()
        weights = self.weights
        if self.config.order == "models_first":
            weights = weights.copy()  # selection changes W in place; models use the old weights
        # At most n pairs at a time, to bound the memory of midpoints. A weight depends only on x^t and
        # its own old value, so splitting the list does not change it.
        pieces = torch.split(pairs_m2, self.context.clients)
        if self.difference is not None:
            selections = self.difference.select(t)
        elif self.config.domain == "box":
            selections = [self.client_selection(t, pairs_k2) for pairs_k2 in pieces]
        else:
            selections = self.row_selection(t, pieces)
        degrees_n = self.gather(t, len(pairs_m2), weights)
        if self.config.coupling == "capped":
            self.capped_training(t, weights, degrees_n)
        else:
            self.model_training(t, weights)
        return RoundResult(
            losses_c,
            len(pairs_m2),
            selections,
            numbers=self.revealed(t, pairs_m2),
            met_m2=pairs_m2.numpy(),
        )

    def draw(self, t: int) -> Tensor:
        """Return the pairs of round t, int64 [m, 2]: the same on every rank.

        A drawn pair counts if both clients take part. Selection by differences needs none.
        """
        n = self.context.clients
        if self.difference is not None:
            return torch.empty((0, 2), dtype=torch.int64)
        probability = self.config.sampling.probability(t, n, self.context.rounds)
        pairs_m2 = draw_pairs(seeds.key(self.context.seed, "pairs", t), n, probability)
        if self.context.all_take_part:
            return pairs_m2
        if self.context.raised is not None:
            pairs_m2 = add_pairs_of(
                pairs_m2,
                np.flatnonzero(self.context.raised(t)).tolist(),
                n,
                probability,
                self.context.raised_factor,
                lambda client: seeds.key(self.context.seed, "newcomer pairs", t, client),
            )
        part_n = torch.from_numpy(self.context.taking_part(t))
        return pairs_m2[part_n[pairs_m2].all(dim=1)]

    def client_selection(self, t: int, pairs_k2: Tensor) -> WeightUpdates:
        """w_ij <- Proj(w_ij + gamma <g_i(z_ij), g_j(z_ij)>), each gradient on its owner's data.

        That is the paper's; `cobo_selection` has the alternatives.
        """
        ends, alignment_e = self.alignments(t, pairs_k2)
        w_e = self.selection.select(ends, alignment_e).astype(self.weights.dtype)
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
        members_n = self.context.members(t)
        new_kn = self.onto_simplex(moved_cn[rows], rows, members_n).astype(old_cn.dtype)
        self.weights.put_rows(rows, new_kn)
        row, other = np.nonzero(new_kn != old_cn[rows])  # a whole row moves with one weight
        ids = np.asarray(self.clients.ids)[rows[row]]
        return [WeightUpdates(ids, other, new_kn[row, other], np.concatenate(alignments))]

    def alignments(self, t: int, pairs_k2: Tensor) -> tuple[PairEnds, NDArray[np.float64]]:
        """Return this rank's ends of pairs whose <g_i(z_ij), g_j(z_ij)> is known, and it.

        With `alignment_columns`, of these columns of the gradients: only they travel. With `sketch`, of few
        random sums of them.
        """
        ends, z_ed = self.exchange.midpoints(pairs_k2)  # z_ij = (x_i + x_j)/2
        g_ed = self.clients.gradients_at(z_ed, ends.rows, t, self.stream, in_place=True)
        if self.compared is not None:
            g_ed = self.compared.take(g_ed)
        sketch = self.config.sketch_of(self.context.seed, t)
        return self.exchange.alignment(g_ed, self.statistic, sketch)

    def onto_simplex(
        self,
        moved_kn: NDArray[np.floating],
        rows: NDArray[np.intp],
        members_n: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float64]:
        """Project the weights of the clients in `rows`, [k, n], onto a simplex of members; None: of all."""
        outside_kn = None
        if self.config.own_weight == "excluded":
            own_k1 = torch.tensor(self.clients.ids)[torch.from_numpy(rows), None]
            outside_kn = torch.arange(self.context.clients) == own_k1
        if members_n is not None and not members_n.all():
            absent_kn = torch.from_numpy(~members_n).expand(len(rows), -1)
            outside_kn = absent_kn if outside_kn is None else outside_kn | absent_kn
        return projections.simplex(torch.from_numpy(moved_kn), outside_kn).numpy()

    def gather(self, t: int, pairs: int, weights: Weights) -> NDArray[np.float64] | None:
        """Exchange one or a few numbers a client where selection or coupling needs them.

        Returns the degrees deg_i = sum over k != i of w_ik of all clients, [n], if the coupling is capped.
        """
        columns, count = self.selection.numbers(), len(self.selection.numbers())
        is_capped = self.config.coupling == "capped"
        if is_capped:
            heard = self.heard(t, weights)
            columns = [*columns, coupling.degrees(heard, self.neighbors.factors(t))]
        if not columns:
            return None
        gathered_nk = self.exchange.all_gather(np.stack(columns, axis=1))
        self.selection.learn(pairs, gathered_nk[:, :count].sum(axis=0))
        return gathered_nk[:, -1].astype(np.float64) if is_capped else None

    def heard(self, t: int, weights: Weights) -> Weights:
        """Return the weights between all clients that are heard in round t."""
        if self.context.all_take_part:
            return weights
        return weights.among(self.context.heard(t) > 0)

    def capped_training(
        self, t: int, weights: Weights, degrees_n: NDArray[np.float64] | None
    ) -> None:
        """x_i <- y_i + sum_k a_ik (y_k - y_i), y_i = x_i - eta g_i, with the weights of `maths.coupling`."""
        assert degrees_n is not None, "the coupling is capped"
        x_cd, eta = self.clients.x_cd, self.clients.eta(t)
        x_cd.add_(self.clients.direction(), alpha=-eta)
        self.neighbors.publish(t)
        pull = self.config.rho * (eta if self.config.penalty == "scheduled" else self.clients.lr)
        if not pull:
            return
        factors_n = self.neighbors.factors(t)
        b, keep_c, scale = coupling.capped(self.heard(t, weights), degrees_n, pull, factors_n)
        part_c = self.context.taking_part(t)[list(self.clients.ids)]
        kept_c1 = upload(torch.from_numpy(np.where(part_c, keep_c, 1.0))[:, None], x_cd)
        for at, mixed in self.neighbors.mix(self.neighbors.among(b, t), t):
            x_cd[:, at].mul_(kept_c1).add_(mixed.mul_(scale))

    def model_training(self, t: int, weights: Weights) -> None:
        """x_i <- x_i - eta (g_i + rho sum_k w_ik (x_i - x_k)) with these rows of W.

        Written as x_i (1 - eta rho deg_i) + eta (rho sum_k w_ik x_k - g_i), deg_i = sum_k w_ik,
        which needs no memory beyond the sums that `mix` yields for some columns of X at a time. The penalty
        does not enter the optimizer's moments.
        """
        x_cd, eta, rho = self.clients.x_cd, self.clients.eta(t), self.config.rho
        weights = self.neighbors.among(weights, t)
        pull_c1 = torch.from_numpy(rho * weights.sums(self.neighbors.factors(t)))[:, None]
        if self.config.penalty == "scheduled":
            direction_cd, kept_c1 = self.clients.direction(), upload(1.0 - eta * pull_c1, x_cd)
            for at, mixed in self.neighbors.mix(weights, t):
                step = mixed.mul_(rho).sub_(direction_cd[:, at]).mul_(eta)
                x_cd[:, at].mul_(kept_c1).add_(step)
        else:
            x_cd.add_(self.clients.direction(), alpha=-eta)
            lr = self.clients.lr
            kept_c1 = upload(1.0 - lr * pull_c1, x_cd)
            for at, mixed in self.neighbors.mix(weights, t):
                x_cd[:, at].mul_(kept_c1).add_(mixed.mul_(lr * rho))

    def revealed(self, t: int, pairs_m2: Tensor) -> dict[str, float]:
        """Count what the comparisons of round t reveal; return the `epsilon` so far if they are noised."""
        if self.releases is None:
            return {}
        self.releases.add(t, pairs_m2)
        privacy = self.config.privacy
        return {"epsilon": self.releases.epsilon(privacy.noise, privacy.delta)}

    def settle(self, t: int) -> None:
        """Let the alignments that other ranks told last move the weights of their pairs."""
        none = torch.empty((0, 2), dtype=torch.int64)
        if self.config.domain == "box":
            self.client_selection(t, none)
        else:
            self.row_selection(t, [none])

    def join(self, t: int, newcomers: Newcomers) -> None:
        """Give newcomers their rows and columns of W, and what selection keeps of their pairs.

        On a simplex, all rows are then projected, and others first give a newcomer an equal share.
        """
        rows, others, w_e = newcomers.entries(self.clients.ids, self.context.clients)
        if self.config.domain == "box":
            self.weights.put(rows, others, w_e.astype(self.weights.dtype))
            (self.difference or self.selection).restart(rows, others, w_e)
            return
        members_n, every = self.context.members(t), np.arange(len(self.clients.ids))
        moved_cn = self.weights.dense()
        moved_cn[rows, others] = w_e / members_n.sum()
        w_cn = self.onto_simplex(moved_cn, every, members_n)
        self.weights.put_rows(every, w_cn.astype(self.weights.dtype))

    def state(self) -> AlgorithmState:
        """Return what selection keeps of pairs beside W, its count of comparisons, and what others read."""
        kept = (self.difference or self.selection).state()
        if self.releases is not None:
            kept.shared["privacy.releases"] = self.releases.counts_n3
        return replace(kept, rows=kept.rows | self.neighbors.rows)

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
