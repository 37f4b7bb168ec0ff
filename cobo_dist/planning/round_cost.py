"""What ranks do in a round, and how long that takes: counts, and a few measured constants.

A round lasts as long as its slowest rank, and that rank's time is a sum. A rank has c clients, visits e
foreign points (midpoints; Ditto's global model), and computes in P calls of an engine:

    gradients   P call + (c + e) client             two constants of the engine
    rows        bytes of rows read and written / memory_bandwidth
    products    multiply-adds of W with models / products
    python      round + c client + e end + added rows x addition
    messages    messages sent x latency
    bytes       bytes sent / bandwidth

What a rank receives crosses while it sends about as much, so that only what it sends counts. Messages
that travel during the gradients are counted as if they did not: on a CPU the same cores copy their bytes.
Ranks that share a core take turns: all terms grow by ranks of a host x threads / cores, where that is above
1.

Shapes: R ranks; arrays are [R]. The bytes of a row are those of one model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cobo_dist.comm.traffic_counter import TRAINING
from cobo_dist.errors import ConfigError
from cobo_dist.planning.constants import Constants

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

TERMS = ("gradients", "rows", "products", "python", "messages", "bytes")

STEP = {"cobo": 6}
OTHER_STEP = 4
"""How often an algorithm's step reads or writes a row of each of its clients in memory, what is near not
counted: CoBo reads gradients and, for others and for itself, models, and writes models, and gradients before
that; a local step writes a gradient and a model, and a mean reads and writes them."""
MOMENT = 5  # the same for each row that an optimizer keeps
VISIT = 8  # the same at a foreign point: the partner's copy, the midpoint, the inner product
LOOKS = 16  # how often planning reads or writes the rank's rows of W, as they are kept
FORWARD = 1 / 3  # of a gradient: a loss without one


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
class Mixing:
    """What bringing sums of models costs each rank, [R] each."""

    messages: Ints
    bytes: Ints
    additions: Ints  # rows to which a row is added
    added: Ints  # numbers in them
    multiplied: Ints  # multiply-adds

    @classmethod
    def none(cls, ranks: int) -> Mixing:
        """Return what costs nothing."""
        return cls(*(np.zeros(ranks, dtype=np.int64) for _ in range(5)))

    def __add__(self, other: Mixing) -> Mixing:
        """Return both."""
        return Mixing(
            *(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__)
        )


@dataclass(frozen=True)
class Load:
    """What each rank does in one round, [R] each; messages and bytes are those it sends."""

    pairs: int
    messages: Mapping[str, Ints]  # of `pairs` and `gradients`
    bytes: Mapping[str, Ints]
    mixing: Mixing
    passes: Sequence[Ints]  # clients in each call of gradients, those at their own models first
    forwards: Ints  # losses without a gradient

    def sent(self) -> Sent:
        """Return what all ranks send."""
        messages = {**self.messages, "mixing": self.mixing.messages}
        nbytes = {**self.bytes, "mixing": self.mixing.bytes}
        return Sent(
            self.pairs,
            {purpose: int(messages[purpose].sum()) for purpose in TRAINING},
            {purpose: int(nbytes[purpose].sum()) for purpose in TRAINING},
        )

    def with_mixing(self, mixing: Mixing) -> Load:
        """Return the same round with models mixed at another W."""
        return replace(self, mixing=mixing)


Told = Sequence[tuple[Load, int]]
"""Rounds, and how many each stands for."""


def mean_sent(told: Told) -> Sent:
    """Return the mean of what all ranks send."""
    weighed = [(load.sent(), count) for load, count in told]
    total = sum(count for _, count in weighed)

    def mean(purpose: str, kind: str) -> float:
        return float(sum(getattr(sent, kind)[purpose] * count for sent, count in weighed)) / total

    return Sent(
        sum(sent.pairs * count for sent, count in weighed) / total,
        {purpose: mean(purpose, "messages") for purpose in TRAINING},
        {purpose: mean(purpose, "bytes") for purpose in TRAINING},
    )


@dataclass(frozen=True)
class Ranks:
    """What does not change from round to round: R ranks, their clients, and how wide things are."""

    clients_r: Ints
    algorithm: str
    row: int  # bytes of one model
    number: int  # bytes of one number in it
    moments: float  # rows that an optimizer keeps for each model
    weights_r: Ints  # bytes of the rows of W, as they are kept


@dataclass(frozen=True)
class Seconds:
    """Seconds of a round: of the slowest rank, in all and by term."""

    terms: Mapping[str, float]

    @property
    def total(self) -> float:
        """Seconds of the round."""
        return sum(self.terms.values())


def share_of_core(constants: Constants, ranks: int, hosts: int) -> float:
    """Return how many ranks take turns on a core, 1 or more; hosts have equal numbers of ranks."""
    return max(1.0, -(-ranks // hosts) * constants.threads / constants.cores)


def fewest_hosts(constants: Constants, ranks: int) -> int:
    """Return on how many hosts no two ranks share a core."""
    return -(-ranks * constants.threads // max(constants.cores, constants.threads))


def choose_engine(constants: Constants, wanted: str, clients: int) -> str:
    """Return the engine that a run takes for so many clients of a rank.

    Raises:
        ConfigError: the constants do not have the engine that is asked for.
    """
    passes = constants.passes
    if wanted == "auto":
        return min(passes, key=lambda name: passes[name].call + clients * passes[name].client)
    if wanted not in passes:
        raise ConfigError(
            f"run.engine={wanted} is not among the constants' passes, which have "
            f"{', '.join(passes)}; measure it with --measure"
        )
    return wanted


def seconds_of(
    load: Load, ranks: Ranks, constants: Constants, engine: str, hosts: int = 1
) -> Seconds:
    """Return how long a round takes.

    Raises:
        ConfigError: several ranks, and constants without a link.
    """
    count = len(ranks.clients_r)
    if constants.link is None and count > 1:
        raise ConfigError(
            f"the constants know no link between ranks, but ranks={count}; measure them with "
            "--measure under a launcher with 2 ranks or more"
        )
    share = share_of_core(constants, count, hosts)
    by_rank = {name: share * one for name, one in _terms(load, ranks, constants, engine).items()}
    slowest = int(sum(by_rank.values(), np.zeros(count)).argmax())
    return Seconds({name: float(by_rank[name][slowest]) for name in TERMS})


def _terms(load: Load, ranks: Ranks, constants: Constants, engine: str) -> dict[str, Floats]:
    """Return each rank's seconds of each term, [R]."""
    c, mixing, over = ranks.clients_r, load.mixing, constants.overhead
    visits = sum(load.passes[1:], np.zeros_like(c))
    calls = sum((count > 0 for count in load.passes), np.zeros_like(c))
    one = constants.passes[engine]
    messages = sum(load.messages.values(), mixing.messages)
    nbytes = sum(load.bytes.values(), mixing.bytes)
    step = STEP.get(ranks.algorithm, OTHER_STEP) + MOMENT * ranks.moments
    planned = LOOKS * ranks.weights_r * (mixing.additions + mixing.multiplied > 0)
    moved = (
        ranks.row * (step * c + VISIT * visits)
        + 3 * ranks.number * mixing.added  # two read and one written
        + 2 * nbytes
        + planned
    )
    link = constants.link
    return {
        "gradients": calls * one.call + (c + visits + FORWARD * load.forwards) * one.client,
        "rows": moved / constants.memory_bandwidth,
        "products": mixing.multiplied / constants.products,
        # One addition a client is in the overhead of a client, which is measured on one rank.
        "python": over.round
        + c * over.client
        + visits * over.end
        + np.maximum(0, mixing.additions - c) * over.addition,
        "messages": messages * (link.latency if link else 0.0),
        "bytes": nbytes / (link.bandwidth if link else np.inf),
    }
