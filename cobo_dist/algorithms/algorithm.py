"""The base class of every algorithm, and of its config section.

An algorithm is one file: its section and its class, which also hold all that others must know of it.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np

from cobo_dist.algorithms.base import (
    AlgorithmState,
    Clients,
    Exchange,
    Newcomers,
    RoundResult,
    RunContext,
)
from cobo_dist.lazy import torch
from cobo_dist.maths.weights import Weights
from cobo_dist.registry import class_of, register, takes
from cobo_dist.settings import Section


class Graph(Protocol):
    """The collaboration graph after a round; weights are those off the diagonal."""

    share: float  # one client's equal share of a row, where rows sum to 1; else 0
    pairs: int
    count: int  # of weights: one a pair, or two where W is directed
    links: int
    at_0: int
    at_1: int

    def is_uniform(self) -> bool:
        """Return whether all weights are still equal."""


@dataclass(frozen=True)
class HealthFacts:
    """What health checks look at. Before round 1, `r` is 0 and there is no graph."""

    clients: int
    rounds: int
    lr: float  # optimizer.lr
    taking_part: int  # clients in a round
    r: int = 0
    loss_growth: float = 1.0  # mean training loss of round r over that of round 1
    drawn: int = 0  # pairs so far
    drawn_now: int = 0  # pairs of this round
    jumps: Sequence[float] = ()  # |weight_step * alignment| of recently drawn pairs
    graph: Graph | None = None


class Finding(NamedTuple):
    """One warning: its kind, which is told once, and a line that names the key to change."""

    kind: str
    message: str


@dataclass(frozen=True)
class RunSettings:
    """What other sections of the config say, for an algorithm that not every value suits."""

    clients: int  # n
    lr: float  # optimizer.lr, the peak of eta(t)
    optimizer: str  # optimizer.name
    momentum: float  # optimizer.momentum
    work_key: str  # local.steps or local.epochs, whichever counts
    work: int  # its value
    most_steps: int  # local steps in a round of the client that takes most
    clip_norm: float  # local.clip_norm; 0: none
    taking_part: int  # clients in a round

    def without_size(self, name: str, factor: str) -> str:
        """Return why AdamW does not suit an algorithm that multiplies gradients; empty for other optimizers.

        AdamW divides a gradient by its size, so the factor has no effect.
        """
        if self.optimizer != "adamw":
            return ""
        return (
            f"algorithm.name={name} multiplies gradients by {factor}, which has no effect with "
            "optimizer.name=adamw, as it divides gradients by their size; set optimizer.name=sgd"
        )


class AlgorithmSection(Section):
    """The config of an algorithm, and what others ask of it before the algorithm is built.

    The defaults suit an algorithm that does the same in every round.

    `presets`: by name, keys of the whole config, nested, that suit each other (the key `preset`).
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    name: str = ""

    @property
    def needs_clusters(self) -> bool:
        """Whether the task must know the true clusters."""
        return False

    @property
    def needs_validation(self) -> bool:
        """Whether clients score models on validation data."""
        return False

    @property
    def needs_inputs(self) -> bool:
        """Whether clients show something of their inputs, which must be numbers."""
        return False

    @property
    def needs_predictions(self) -> bool:
        """Whether clients show what their models predict."""
        return False

    @property
    def takes_one_step(self) -> bool:
        """Whether it needs single gradients, so that clients take one local step a round."""
        return False

    @property
    def weighs_examples(self) -> bool:
        """Whether averages weigh clients by their training examples."""
        return False

    @property
    def draws_clients(self) -> str:
        """The key by which the algorithm itself says how many clients take part; empty where it does not."""
        return ""

    @property
    def draws_pairs(self) -> bool:
        """Whether rounds draw pairs of clients, and those of newcomers may be drawn more often."""
        return False

    @property
    def runs_asynchronously(self) -> bool:
        """Whether ranks may take its rounds at their own pace (`comm.mode`).

        Of the exchange it then uses pairs, `mix` and `all_gather` alone, and rounds may be left out.
        """
        return False

    @property
    def compresses_models(self) -> bool:
        """Whether clients read others' models through `NeighborModels` alone, as comm.compression asks."""
        return False

    @property
    def batch_streams(self) -> int:
        """How many streams of batches a client reads."""
        return 1

    def equal_share(self, clients: int) -> float:
        """Return one client's equal share of a row of W where rows sum to 1, and 0 where they do not."""
        return 0.0

    def comparisons(self, t: int, context: RunContext) -> float:
        """Return how often round t = 0 .. T-1 compares a client with another client or model, on average.

        The memory and time of a round grow with it, so `cobo_dist.plan` refuses rounds with too many.
        """
        return 0.0

    def representative_rounds(self, rounds: int) -> list[tuple[int, int]]:
        """Return rounds t = 0 .. T-1, ascending, and how many of the T rounds each one stands for.

        Rounds that send the same number of bytes need one representative.
        """
        return [(0, rounds)]

    @property
    def weight_step(self) -> float:
        """How far an alignment of 1 moves a weight of W; 0 where alignments move none."""
        return 0.0

    @property
    def step_keys(self) -> tuple[str, ...]:
        """The keys, beside optimizer.lr, that make models diverge when they are too large."""
        return ()

    def unsuited(self, settings: RunSettings) -> str:
        """Return one line about keys of other sections that do not suit it; empty if all do."""
        return ""

    def check_settings(self, facts: HealthFacts) -> Iterator[Finding]:
        """Yield what is likely to fail with these settings, before round 1."""
        yield from ()

    def check_round(self, facts: HealthFacts) -> Iterator[Finding]:
        """Yield what goes wrong, after a round; each kind of finding is told once."""
        yield from ()


class Algorithm(ABC):
    """One call of `round` for each round; the loop is in `training`.

    A subclass has at least `round`. Settings are the fields of its `Config`. The attributes below say what
    others must know of it; the defaults suit an algorithm with a fixed W. docs/EXTENDING.md has an example.

    Attributes:
        Config: its config section.
        title, color, marker, place: how reports show it: its name, a color as #rrggbb, a marker of
            matplotlib, and its place in tables and legends, ascending. With `role` they are not inherited.
        role: `alone` for the method that collaboration must beat, `upper_bound` for one that knows the
            truth, `emphasized` for one that figures show first and in front.
        learns_weights: whether W is worth a figure.
        all_linked: whether W^0 is all ones, in place of the identity.
        newcomers_start: in place of `membership.start`, where the method itself says which model a newcomer
            gets: `best_component`, or `group`, which `join` gives; empty: the key decides.
        sums: the method of the exchange that computes its sums with W; `none`: what is sent does not depend
            on W.
        user_notice: what a user should know before it starts.
        weights: this rank's rows of the collaboration matrix W.
    """

    Config: ClassVar[type[AlgorithmSection]] = AlgorithmSection
    title: ClassVar[str] = ""
    color: ClassVar[str] = ""
    marker: ClassVar[str] = ""
    place: ClassVar[int] = 100
    role: ClassVar[Literal["", "alone", "upper_bound", "emphasized"]] = ""
    learns_weights: ClassVar[bool] = False
    all_linked: ClassVar[bool] = False
    newcomers_start: ClassVar[str] = ""
    sums: ClassVar[Literal["mix", "all_reduce", "none"]] = "mix"

    def __init__(
        self, config: Any, clients: Clients, exchange: Exchange, context: RunContext
    ) -> None:
        """Start at W^0; `config` is an instance of `Config`."""
        self.config, self.clients, self.exchange, self.context = config, clients, exchange, context
        self.user_notice = ""
        self.weights = self.first_weights()

    @property
    def weight_type(self) -> type[np.floating[Any]]:
        """The type of learned weights: that of the models."""
        return np.float64 if self.clients.x_cd.dtype == torch.float64 else np.float32

    def first_weights(self) -> Weights:
        """Return this rank's rows of W^0: here the identity, every client alone, or with `all_linked` ones.

        Weights are directed unless they are made with `symmetric=True`.
        """
        if self.all_linked:
            return Weights(self.clients.ids, (0,) * self.context.clients, symmetric=True)
        return Weights(self.clients.ids, range(self.context.clients), dtype=self.weight_type)

    @abstractmethod
    def round(self, t: int) -> RoundResult:
        """Go from x^t to x^(t+1); t counts from 0."""

    def join(self, t: int, newcomers: Newcomers) -> None:  # noqa: B027
        """Take in clients that join before round t; newcomers have their models already.

        All ranks call it. An algorithm gives newcomers what else it keeps of a client: weights, groups, a
        common model.
        """

    def settle(self, t: int) -> None:  # noqa: B027
        """Take in what other ranks told last, after round t; only with `comm.mode=asynchronous`."""

    def state(self) -> AlgorithmState:
        """Return what a resumed run needs beside the clients and `weights`."""
        return AlgorithmState()

    def matrices(self) -> dict[str, Weights]:
        """Return this rank's rows of W and of the state's `pairs`, by their names in checkpoints."""
        pairs = self.state().pairs.items()
        return {"weights": self.weights} | {f"algorithm.{name}": one for name, one in pairs}

    def possible_weights(self) -> dict[str, Weights | None]:
        """Return W that the run may reach and that change what `mix` sends, by a name for people.

        None stands for a W with no two equal weights. Asked where `clients` are all n clients.
        """
        return {}


def own(algorithm: type[Algorithm], name: str) -> Any:
    """Return an attribute that a class does not inherit, or the base class's."""
    return vars(algorithm).get(name, getattr(Algorithm, name))


def _check(target: Any) -> str:
    if why := class_of(Algorithm)(target):
        return why
    if inspect.isabstract(target):
        return f"{target.__name__} has no method round(self, t)"
    if why := takes(target.round, None, 0):
        return why
    if why := takes(target, None, None, None, None):
        return why
    if not (isinstance(target.Config, type) and issubclass(target.Config, AlgorithmSection)):
        return f"{target.__name__}.Config does not derive from AlgorithmSection"
    return ""


register.new_kind(
    "algorithm",
    "a class derived from cobo_dist.Algorithm",
    check=_check,
    section_of=lambda target: target.Config,
    place=lambda target: own(target, "place"),
)
