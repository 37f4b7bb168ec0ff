"""What a run would send and hold, told without running it.

The algorithm itself goes through rounds over stand-ins for its clients, and `comm.counting` works out from
the exchange's own plans what the ranks would send: nothing here knows how an algorithm communicates. The
pairs are those that the run will draw. W stays at W^0, since no gradient moves it; what other W cost is asked
apart.

Shapes: n clients, c clients of a rank, d parameters that a client trains, R ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cobo_dist.algorithms.base import Setting
from cobo_dist.algorithms.cobo import CoBo, CoBoConfig
from cobo_dist.algorithms.finetuned_fedavg import FinetunedFedAvgConfig
from cobo_dist.algorithms.ifca import IfcaConfig
from cobo_dist.algorithms.registry import build_algorithm
from cobo_dist.algorithms.validation_based import ValidationBasedConfig
from cobo_dist.clients.engines import state_buffers, trained
from cobo_dist.clients.optimisers import OptimizerConfig, build_optimiser
from cobo_dist.comm.counting import CountingExchange
from cobo_dist.comm.ledger import TRAINING
from cobo_dist.comm.placement import Placement
from cobo_dist.config import Config
from cobo_dist.maths.flat import row_bytes
from cobo_dist.maths.weights import Weights
from cobo_dist.tasks.base import Task
from cobo_dist.tasks.language.task import Language
from cobo_dist.tasks.quadratic import Quadratic
from cobo_dist.tasks.supervised import Classification

from .loop import refuse_unfit
from .stand_ins import BUFFERS, MODEL, StandIns


@dataclass(frozen=True)
class Sent:
    """What all ranks together send in a round, by purpose (`comm.ledger.TRAINING`), and the pairs drawn."""

    pairs: float
    messages: Mapping[str, float]
    bytes: Mapping[str, float]

    @property
    def total(self) -> float:
        """Bytes of all purposes."""
        return sum(self.bytes.values())


@dataclass(frozen=True)
class Part:
    """One kind of thing that a rank holds, and its bytes."""

    name: str
    bytes: int


class Forecast:
    """A run on R ranks, rehearsed."""

    def __init__(self, config: Config, task: Task, ranks: int) -> None:
        """Build the algorithm over stand-ins for the task's clients.

        Raises:
            Refusal: more ranks than clients, or a task that does not fit the config.
        """
        refuse_unfit(config, task)
        self.config, self.task = config, task
        self.rounds = max(1, config.run.rounds)
        self.placement = Placement.contiguous(task.clients, ranks)
        self.dtype: torch.dtype = getattr(torch, config.run.dtype)
        model = task.model()
        self.size = sum(one.numel() for _, one in trained(model))
        self.frozen = sum(one.numel() for one in model.parameters() if not one.requires_grad)
        floating = [one for _, one in state_buffers(model) if one.is_floating_point()]
        self.buffers = sum(one.numel() for one in floating)
        self.clients = StandIns(self.placement, task.clusters, self.buffers > 0, self.dtype)
        self.exchange = CountingExchange(
            self.placement,
            {MODEL: self.size, BUFFERS: self.buffers},
            self.dtype,
            deterministic=config.comm.deterministic,
            wire=None if config.comm.dtype == "model" else getattr(torch, config.comm.dtype),
        )
        setting = Setting(task.clients, task.clusters, config.run.seed, self.rounds)
        self.algorithm = build_algorithm(config.algorithm, self.clients, self.exchange, setting)

    # -- traffic ----------------------------------------------------------------------------------

    def round(self, r: int) -> Sent:
        """Return what round r = 1 .. T sends; rounds are asked for in ascending order.

        With W at W^0 that is what the ledger of the run will say. IFCA's clients are taken to pick their
        true clusters, and federated clustering to find them.
        """
        before = self._ledger()
        pairs = self.algorithm.round(r - 1).pairs
        return self._since(before, pairs)

    def mean_round(self) -> Sent:
        """Return the mean over all rounds.

        Where chance decides who meets, over some of them that stand for those around them.
        """
        weighed = [(self.round(t + 1), count) for t, count in telling_rounds(self.config)]
        total = sum(count for _, count in weighed)

        def mean(purpose: str, kind: str) -> float:
            sums = (getattr(sent, kind)[purpose] * count for sent, count in weighed)
            return float(sum(sums)) / total

        return Sent(
            sum(sent.pairs * count for sent, count in weighed) / total,
            {purpose: mean(purpose, "messages") for purpose in TRAINING},
            {purpose: mean(purpose, "bytes") for purpose in TRAINING},
        )

    def mixing_at(self, weights: Weights | None) -> Sent:
        """Return what CoBo's penalty term alone sends at some W; None: one with no two weights alike."""
        before, x_nd, symmetric = self._ledger(), self.clients.x_cd, not self._simplex
        if weights is None:
            itemsize = self.algorithm.weights.dtype.itemsize
            self.exchange.mix_unlike(x_nd, itemsize, symmetric=symmetric)
        else:
            self.exchange.mix(weights, x_nd, symmetric=symmetric)
        return self._since(before, 0)

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

    def _ledger(self) -> list[tuple[int, int]]:
        """Return messages and bytes so far of each purpose, over all ranks."""
        ledgers = self.exchange.ledgers
        return [
            (sum(one.messages[p] for one in ledgers), sum(one.bytes[p] for one in ledgers))
            for p in TRAINING
        ]

    def _since(self, before: list[tuple[int, int]], pairs: int) -> Sent:
        grown = np.subtract(self._ledger(), before).tolist()
        return Sent(
            pairs,
            {purpose: messages for purpose, (messages, _) in zip(TRAINING, grown, strict=True)},
            {purpose: nbytes for purpose, (_, nbytes) in zip(TRAINING, grown, strict=True)},
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
        row, others = row_bytes(self.size, self.dtype), self.clients.others
        buffers = row_bytes(self.buffers, self.dtype)
        state = [_state_rows(self.config.optimizer, rows, self.dtype) for rows in (count, others)]
        taken = int(self.clients.gradients_r[rank])
        mixed = sum(held for name, held in kept.items() if name.startswith(("mixed ", "term ")))
        messages = sum(kept.values()) - mixed - kept["midpoints"]
        batch = self.task.training([0], torch.device("cpu")).batch(0, "local")
        example_bytes = sum(tensor[0].nbytes for tensor in batch)
        parts = {
            f"models, {count} x {self.size:,} numbers": count * (row + buffers),
            f"optimiser, {state[0]:g} x as many": int(state[0] * count) * row,
            "gradients": count * row,
            "models of no client, and their optimiser": int((1 + state[1]) * others) * row
            + others * buffers,
            "midpoints": kept["midpoints"],
            "gradients there and at other foreign models": taken * row,
            "what mixing delivers": mixed,
            "messages, sent and received": messages,
            "weights": self.algorithm.weights.bytes_of(count),
            "batches": max(count, taken) * example_bytes,
            "base, frozen, once": self.frozen * self.dtype.itemsize,
            _data_name(self.task): _data_bytes(self.task),
        }
        return [Part(name, held) for name, held in parts.items() if held]


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


def _state_rows(config: OptimizerConfig, count: int, dtype: torch.dtype) -> float:
    """Return how many rows an optimiser keeps for each model."""
    if not count:
        return 0.0
    like_cd = torch.empty(count, 1, dtype=dtype, device="meta")
    held = build_optimiser(config, like_cd).memory().values()
    return sum(len(one) for one in held if one.is_floating_point()) / count


def _data_name(task: Task) -> str:
    return "tokens of all clients, files mapped" if isinstance(task, Language) else "data, once"


def _data_bytes(task: Task) -> int:
    """Return the bytes of the examples, which every rank has once."""
    if isinstance(task, Classification):
        examples = task.examples
        return sum(one.nbytes for one in (examples.inputs, examples.targets, examples.labels_of))
    if isinstance(task, Language):
        return sum(stream.tokens.nbytes for stream in task.streams)
    if isinstance(task, Quadratic):
        return 2 * int(task.centers_nd.nbytes)  # as it was read, and in run.dtype
    return 0
