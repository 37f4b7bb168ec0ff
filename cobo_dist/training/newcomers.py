"""Clients that join and leave: the models that newcomers get; those of absent clients stay as they are.

Shapes: n clients that are ever in the run, c on this rank, k that join before a round, e of these on this
rank, d parameters, b floating-point buffers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobo_dist.algorithms.base import Newcomers
from cobo_dist.maths.alignment import cosine, dots, squared_norms
from cobo_dist.maths.flat import to_device
from cobo_dist.maths.graph import component_labels
from cobo_dist.scenario.membership import Event, Membership, MembershipConfig
from cobo_dist.storage.schema import JoinedRow, LeftRow
from cobo_dist.tracking.metrics_buffer import MetricsBuffer
from cobo_dist.tracking.weight_snapshots import gather_weights
from cobo_dist.training.learner import Learner

MAX_COMPONENTS = 10
"""The largest components of W whose mean models newcomers try, beside the mean of all."""
VALIDATION_EXAMPLES = 128
"""Validation examples on which a newcomer tries a model; of fewer, all."""

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]


class MembershipKeeper:
    """Lets clients join and leave before rounds; without a membership it does nothing."""

    def __init__(
        self,
        config: MembershipConfig,
        membership: Membership | None,
        learner: Learner,
        metrics: MetricsBuffer,
        link_threshold: float,
    ) -> None:
        """Serve the clients of `learner`; a weight of at least `link_threshold` is a link."""
        self.config, self.membership, self.learner = config, membership, learner
        self.metrics, self.link_threshold = metrics, link_threshold

    def is_due(self, r: int) -> bool:
        """Return whether clients join or leave after round r, so that all ranks must flush before."""
        return self.membership is not None and bool(self.membership.at(r))

    @contextmanager
    def round(self, t: int) -> Iterator[None]:
        """Let clients join and leave, then run round t inside; models of absent clients do not move in it."""
        membership = self.membership
        if membership is None:
            yield
            return
        if events := membership.at(t):
            self._change(t, events)
        clients = self.learner.clients
        absent = np.flatnonzero(~membership(t)[list(clients.ids)])
        at = to_device(absent, clients.x_cd.device)
        matrices = [one for one in (clients.x_cd, clients.b_cd) if len(absent) and one.shape[1]]
        kept = [one.index_select(0, at) for one in matrices]
        yield
        for rows_cd, kept_ed in zip(matrices, kept, strict=True):
            rows_cd.index_copy_(0, at, kept_ed)

    def _change(self, t: int, events: Sequence[Event]) -> None:
        """Carry out the events before round t: all ranks call this, with all rows flushed."""
        assert self.membership is not None, "it has events"
        algorithm = self.learner.algorithm
        ids_k = np.array([event.client for event in events if event.joins], dtype=np.int64)
        company_kn = np.zeros((len(ids_k), self.membership.clients), dtype=bool)
        start = algorithm.newcomers_start or self.config.start
        if len(ids_k):
            returns_k = np.array([self.membership.returns(one) for one in events if one.joins])
            before_n = self.membership(t)
            before_n[ids_k] = False
            models = StartModels(self.learner, t, before_n, self.link_threshold)
            # A model that clients share is also that of a client that returns.
            gets_k = np.ones_like(returns_k) if algorithm.newcomers_start else ~returns_k
            company_kn[gets_k] = models.give(start, ids_k[gets_k])
            algorithm.join(t, Newcomers(ids_k, returns_k, company_kn, self.config.weights))
        self.metrics.members_changed(t)
        if self.metrics.run_logger is None:
            return
        company_of = dict(zip(ids_k.tolist(), company_kn, strict=True))
        told = start not in ("common", "group")
        for r, client, joins, _ in events:
            source = np.flatnonzero(company_of[client]).tolist() if joins and told else []
            self.metrics.run_logger.joined_or_left(
                JoinedRow(
                    round=r,
                    client=client,
                    start=start if company_of[client].any() else "own",
                    models=len(source),
                    first_model=source[0] if source else None,
                )
                if joins
                else LeftRow(round=r, client=client)
            )


class StartModels:
    """The models that newcomers before round t start from, made of those of `before_n`, [n]."""

    def __init__(self, learner: Learner, t: int, before_n: Mask, link_threshold: float) -> None:
        self.learner, self.t = learner, t
        self.before_n, self.link_threshold = before_n, link_threshold

    def give(self, start: str, ids_k: Ids) -> Mask:
        """Write the models of newcomers into X; return the clients [k, n] whose models they are made of.

        Without another client, or with `common`, a newcomer keeps the model that it has.
        """
        company_kn = np.tile(self.before_n, (len(ids_k), 1))
        if start in ("common", "group") or not self.before_n.any() or not len(ids_k):
            return company_kn
        if start == "nearest":
            return self._nearest(ids_k)
        candidates_mn = self.before_n[None] if start == "mean" else self._candidates()
        return candidates_mn[self._best_mean(candidates_mn, ids_k)]

    def _rows(self, ids_k: Ids) -> tuple[Ids, Ids]:
        """Return the newcomers of this rank: their places among all newcomers, and their rows of X, [e]."""
        exchange = self.learner.exchange
        mine = np.flatnonzero(exchange.placement.owner_n[ids_k] == exchange.transport.rank)
        return mine, exchange.placement.row_n[ids_k[mine]]

    def _agree(self, choice_e: Ids, rows_e: Ids, ids_k: Ids) -> Ids:
        """Return the choices of all newcomers [k] on every rank."""
        choice_c = np.zeros(len(self.learner.clients.ids))
        choice_c[rows_e] = choice_e
        return self.learner.exchange.all_gather(choice_c)[ids_k].astype(np.int64)

    # -- means ------------------------------------------------------------------------------------

    def _candidates(self) -> Mask:
        """Return the clients of the largest components of two or more, and all clients, [m, n].

        Rank 0 finds the components and tells the others.
        """
        exchange = self.learner.exchange
        whole, _ = gather_weights(exchange, self.learner.algorithm.weights, "mixing")
        record = b""
        if whole is not None:
            labels_n = component_labels(whole.among(self.before_n), self.link_threshold)
            record = labels_n.astype(np.int64).tobytes()
        labels_n = np.frombuffer(exchange.transport.broadcast(record), dtype=np.int64)
        sizes = np.bincount(labels_n[self.before_n])
        largest = [label for label in np.argsort(-sizes, kind="stable") if sizes[label] > 1]
        found = [self.before_n & (labels_n == label) for label in largest[:MAX_COMPONENTS]]
        if len(found) != 1 or not np.array_equal(found[0], self.before_n):
            found.append(self.before_n)
        return np.stack(found)

    def _best_mean(self, candidates_mn: Mask, ids_k: Ids) -> Ids:
        """Give each newcomer the mean model with the least loss on its data; return its number, [k].

        One mean at a time is on a rank.
        """
        clients, exchange = self.learner.clients, self.learner.exchange
        mine, rows_e = self._rows(ids_k)
        best_e, choice_e = np.full(len(mine), np.inf), np.zeros(len(mine), dtype=np.int64)
        for number, among_n in enumerate(candidates_mn):
            mean_1n = (among_n / among_n.sum())[None]
            buffers_1b = clients.b_cd[:1]
            if clients.b_cd.shape[1]:
                buffers_1b = exchange.all_reduce(mean_1n, clients.b_cd).clone()
            mean_1d = exchange.all_reduce(mean_1n, clients.x_cd)
            if len(candidates_mn) == 1:
                better_e = np.ones(len(mine), dtype=bool)
            else:
                losses_e = self._losses(mean_1d, buffers_1b, rows_e)
                better_e = (losses_e < best_e) | ((number == 0) & ~np.isfinite(losses_e))
                best_e = np.where(losses_e < best_e, losses_e, best_e)
            choice_e[better_e] = number
            at = to_device(rows_e[better_e], clients.x_cd.device)
            clients.x_cd[at] = mean_1d
            if clients.b_cd.shape[1]:
                clients.b_cd[at] = buffers_1b
        return self._agree(choice_e, rows_e, ids_k)

    def _losses(self, model_1d: Tensor, buffers_1b: Tensor, rows_e: Ids) -> NDArray[np.float64]:
        """Return the losses [e] of a model on newcomers' validation data, or on training batches."""
        if not len(rows_e):
            return np.empty(0)
        clients, task = self.learner.clients, self.learner.task
        if "validation" in task.splits:
            losses_e1 = clients.validation_losses_at(
                model_1d, buffers_1b, self.t, VALIDATION_EXAMPLES, rows_e
            )
        else:
            losses_e1 = clients.losses_at(model_1d, buffers_1b, rows_e, self.t)
        found_e: NDArray[np.float64] = losses_e1[:, 0].cpu().numpy()
        return found_e

    # -- the nearest client -------------------------------------------------------------------------

    def _nearest(self, ids_k: Ids) -> Mask:
        """Give each newcomer j the model of the client i with the largest cosine of g_i(x_i) and g_j(x_i)."""
        clients, exchange = self.learner.clients, self.learner.exchange
        mine, rows_e = self._rows(ids_k)
        here = np.flatnonzero(self.before_n[list(clients.ids)])
        g_cd = torch.zeros_like(clients.x_cd)
        at = to_device(here, g_cd.device)
        g_cd[at] = clients.gradients_at(clients.x_cd[at], here, self.t, "local")
        best_e, choice_e = np.full(len(mine), -np.inf), np.zeros(len(mine), dtype=np.int64)
        matrices = [clients.x_cd, g_cd, *([clients.b_cd] if clients.b_cd.shape[1] else [])]
        for visitors, rows in exchange.visits(*matrices, among_n=self.before_n):
            x_kd, g_kd = rows[:2]
            for e, row in enumerate(rows_e.tolist()):
                own_kd = clients.gradients_at(x_kd, np.full(len(x_kd), row), self.t, "local")
                cosines_k = _cosines(own_kd, g_kd)
                k = int(
                    cosines_k.argmax()
                )  # of equal ones the lowest client, in any order of visits
                if (cosines_k[k], -visitors[k]) > (best_e[e], -choice_e[e]):
                    best_e[e], choice_e[e] = cosines_k[k], visitors[k]
                    # Newcomers visit nobody, so their rows are free.
                    for own_cd, other_kd in zip(
                        (clients.x_cd, clients.b_cd), rows[::2], strict=False
                    ):
                        own_cd[row] = other_kd[k]
        choice_k = self._agree(choice_e, rows_e, ids_k)
        company_kn: Mask = choice_k[:, None] == np.arange(len(self.before_n))
        return company_kn


def _cosines(a_kd: Tensor, b_kd: Tensor) -> NDArray[np.float64]:
    """Return the cosine of each row of a with that of b, [k]; -1 where it is not finite."""
    products_k, a_k, b_k = (
        one.double().cpu().numpy()
        for one in (dots(a_kd, b_kd), squared_norms(a_kd), squared_norms(b_kd))
    )
    return np.nan_to_num(cosine(products_k, a_k, b_k), nan=-1.0)
