"""What a run would send and hold, told without running it.

The algorithm itself goes through rounds over stand-ins for its clients, and `comm.counting` works out from
the exchange's own plans what the ranks would send: nothing here knows how an algorithm communicates. The
pairs are those that the run will draw. W stays at W^0, since no gradient moves it; what other W cost is asked
apart.

Shapes: n clients, c clients of a rank, d parameters that a client trains, R ranks.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cobo_dist.algorithms.base import RunContext
from cobo_dist.algorithms.cobo import CoBo, CoBoConfig
from cobo_dist.algorithms.finetuned_fedavg import FinetunedFedAvgConfig
from cobo_dist.algorithms.ifca import IfcaConfig
from cobo_dist.algorithms.registry import build_algorithm, equal_share
from cobo_dist.algorithms.validation_based import ValidationBasedConfig
from cobo_dist.comm.placement import Placement
from cobo_dist.comm.placement_search import propose
from cobo_dist.comm.traffic_counter import TRAINING
from cobo_dist.config import Config
from cobo_dist.maths.graph import link_threshold
from cobo_dist.maths.weights import Weights
from cobo_dist.planning.counting_exchange import CountingExchange
from cobo_dist.planning.fake_clients import BUFFERS, MODEL, FakeClients
from cobo_dist.planning.memory_estimate import Held, Model, Part, parts_of, state_rows
from cobo_dist.planning.round_cost import Ints, Load, Mixing, Ranks, Sent, Told
from cobo_dist.tasks.base import Task
from cobo_dist.training.preparation import refuse_unfit


class DryRun:
    """A run on R ranks, rehearsed."""

    def __init__(self, config: Config, task: Task, ranks: int) -> None:
        """Build the algorithm over stand-ins for the task's clients.

        Raises:
            ConfigError: more ranks than clients, or a task that does not fit the config.
        """
        refuse_unfit(config.algorithm, config.run, task)
        self.config, self.task = config, task
        self.rounds = max(1, config.run.rounds)
        self.placement = Placement.contiguous(task.clients, ranks)
        self.model = Model.of(config, task)
        self.clients = FakeClients(
            self.placement, task.clusters, self.model.buffers > 0, self.model.dtype
        )
        self.exchange = self._counting(self.placement)
        context = RunContext(task.clients, task.clusters, config.run.seed, self.rounds)
        self.algorithm = build_algorithm(config.algorithm, self.clients, self.exchange, context)

    def _counting(self, placement: Placement) -> CountingExchange:
        return CountingExchange(
            placement,
            {MODEL: self.model.size, BUFFERS: self.model.buffers},
            self.model.dtype,
            deterministic=self.config.comm.deterministic,
            wire=self.model.wire,
        )

    # -- what ranks do ----------------------------------------------------------------------------

    def load(self, t: int) -> Load:
        """Return what every rank does in round t = 0 .. T-1; rounds are asked for in ascending order.

        With W at W^0 messages and bytes are what the ledgers of the run will say. IFCA's clients are taken
        to pick their true clusters, and federated clustering to find them.
        """
        before, begun = _ledger(self.exchange), _worked(self.exchange)
        self.clients.passes, self.clients.forwards = [], np.zeros_like(self.clients.forwards)
        pairs = self.algorithm.round(t).pairs
        messages, nbytes = _since(before, self.exchange)
        worked = _worked(self.exchange) - begun
        mixing = Mixing(messages.pop("mixing"), nbytes.pop("mixing"), *worked)
        passes, forwards = self.clients.passes, self.clients.forwards
        return Load(pairs, messages, nbytes, mixing, passes, forwards)

    def round(self, r: int) -> Sent:
        """Return what round r = 1 .. T sends."""
        return self.load(r - 1).sent()

    def told(self) -> Told:
        """Return the rounds that stand for all."""
        return [(self.load(t), count) for t, count in telling_rounds(self.config)]

    def mixing_at(self, weights: Weights | None, placement: Placement | None = None) -> Mixing:
        """Return what CoBo's penalty term alone costs at some W, with clients where they are or elsewhere.

        None: a W with no two weights alike.
        """
        exchange = self._counting(placement) if placement else self.exchange
        before, begun = _ledger(exchange), _worked(exchange)
        x_nd, symmetric = self.clients.x_cd, not self._simplex
        if weights is None:
            itemsize = self.algorithm.weights.dtype.itemsize
            exchange.mix_unlike(x_nd, itemsize, symmetric=symmetric)
        else:
            exchange.mix(weights, x_nd, symmetric=symmetric)
        messages, nbytes = _since(before, exchange)
        return Mixing(messages["mixing"], nbytes["mixing"], *(_worked(exchange) - begun))

    def moved(self, weights: Weights | None) -> Placement | None:
        """Return where clients would move at some W; None if they stay (comm.placement)."""
        if weights is None or self.config.comm.placement == "static":
            return None
        level = link_threshold(equal_share(self.config.algorithm, self.task.clients))
        found = propose(
            weights, self.placement, level, self.algorithm.sums,
            deterministic=self.config.comm.deterministic,
        )  # fmt: skip
        return found.placement if found else None

    def other_mixings(self) -> dict[str, Mixing]:
        """Return what CoBo's penalty term costs at other W that it may come to."""
        found = {}
        for name, weights in self.other_weights().items():
            found[name] = self.mixing_at(weights)
            if placement := self.moved(weights):
                found[f"{name}, moved"] = self.mixing_at(weights, placement)
        return found

    def other_weights(self) -> dict[str, Weights | None]:
        """Return W that CoBo may come to, by what to call them; none for other algorithms."""
        if not isinstance(self.algorithm, CoBo):
            return {}
        found: dict[str, Weights | None] = {}
        every, dtype = range(self.task.clients), self.algorithm.weights.dtype.type
        if self.task.clusters is not None:
            same = Weights(every, self.task.clusters, dtype=dtype)
            if self._simplex:
                shared_nn = self._shared_out(same.dense().astype(np.float64))
                same = Weights.of_rows(every, shared_nn.astype(dtype))
            found["W = true clusters"] = same
        return found | {"any W, at most": None}

    def _shared_out(self, links_nn: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return rows that sum to 1 over the links of each client, or over all where it has none."""
        # Of W^0: all, or all others.
        allowed_nn = (self.algorithm.weights.dense() > 0).astype(np.float64)
        links_nn = links_nn * allowed_nn
        alone_n1 = links_nn.sum(axis=1, keepdims=True) == 0
        links_nn = np.where(alone_n1, allowed_nn, links_nn)
        # A client alone in the world has no other to give anything to.
        return np.asarray(links_nn / np.maximum(links_nn.sum(axis=1, keepdims=True), 1.0))

    @property
    def _simplex(self) -> bool:
        algorithm = self.config.algorithm
        return isinstance(algorithm, CoBoConfig) and algorithm.domain == "simplex"

    def ranks(self) -> Ranks:
        """Return what does not change from round to round."""
        counts = [len(clients) for clients in self.placement.by_rank]
        return Ranks(
            np.array(counts),
            self.config.algorithm.name,
            self.model.row,
            self.model.dtype.itemsize,
            state_rows(self.config.optimizer, 1, self.model.dtype),
            np.array([self.algorithm.weights.bytes_of(count) for count in counts]),
        )

    # -- memory -----------------------------------------------------------------------------------

    def memory(self) -> list[Part]:
        """Return what the fullest rank holds after the rounds asked for so far.

        Left out is what depends on the machine: activations of a batch, evaluation, and the program itself.
        """
        ranks = [self.memory_of(rank) for rank in range(self.placement.ranks)]
        return max(ranks, key=lambda parts: sum(part.bytes for part in parts))

    def memory_of(self, rank: int) -> list[Part]:
        """Return what one rank holds after the rounds asked for so far."""
        count, kept = len(self.placement.by_rank[rank]), self.exchange.room[rank]
        mixed = sum(
            held for name, held in kept.items() if name.startswith(("mixed ", "sums ", "term"))
        )
        held = Held(
            clients=count,
            others=self.clients.others,
            taken=int(self.clients.gradients_r[rank]),
            apart=int(self.clients.apart_r[rank]),
            midpoints=kept["midpoints"],
            mixed=mixed,
            messages=sum(kept.values()) - mixed - kept["midpoints"],
            weights=self.algorithm.weights.bytes_of(count),
            weights_row=self.task.clients * self.algorithm.weights.dtype.itemsize,
        )
        return parts_of(held, self.model, self.config, self.task)


def _ledger(exchange: CountingExchange) -> Ints:
    """Return messages and bytes so far of each purpose and rank, [2, purposes, R]."""
    traffic = exchange.traffic
    return np.array(
        [
            [[held[purpose] for held in kind] for purpose in TRAINING]
            for kind in ([one.messages for one in traffic], [one.bytes for one in traffic])
        ],
        dtype=np.int64,
    )


def _since(before: Ints, exchange: CountingExchange) -> tuple[dict[str, Ints], dict[str, Ints]]:
    """Return messages and bytes since then, [R] by purpose."""
    messages, nbytes = _ledger(exchange) - before
    return dict(zip(TRAINING, messages, strict=True)), dict(zip(TRAINING, nbytes, strict=True))


def _worked(exchange: CountingExchange) -> Ints:
    """Return additions, numbers added and numbers multiplied so far, [3, R]."""
    kinds = ("additions", "added", "multiplied")
    return np.array([[one[k] for one in exchange.work] for k in kinds], dtype=np.int64)


def telling_rounds(config: Config) -> list[tuple[int, int]]:
    """Return rounds t = 0 .. T-1 and for how many rounds each stands: all that differ, or T // 40 at once.

    Where pairs are drawn, the early rounds, in which time-dependent sampling changes fastest, stand for
    fewer.
    """
    algorithm, rounds = config.algorithm, max(1, config.run.rounds)
    if isinstance(algorithm, FinetunedFedAvgConfig):
        together = min(rounds, math.ceil(algorithm.fedavg_share * rounds))
        kinds = [(0, together), (rounds - 1, rounds - together)]
    elif isinstance(algorithm, ValidationBasedConfig):
        averaged = rounds // algorithm.every
        kinds = [(0, rounds - averaged), (algorithm.every - 1, averaged)]
    elif (
        isinstance(algorithm, CoBoConfig)
        and (algorithm.sampling.name != "all" or algorithm.sampling.rate < 1)
    ) or (isinstance(algorithm, IfcaConfig) and algorithm.client_share < 1):
        kinds, begin = [], 0
        while begin < rounds:
            count = min(rounds - begin, max(1, min(begin // 8, rounds // 40)))
            kinds.append((begin + count // 2, count))
            begin += count
    else:
        kinds = [(0, rounds)]
    return [(t, count) for t, count in kinds if count]
