"""Clients that join and leave: who is in the run in each round, from a file or drawn from the seed.

A client that is absent keeps its id, its data and its row of X, so no other client's random streams move.
Shapes: n clients that are ever in the run, k events.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.errors import ConfigError
from cobo_dist.maths import seeds
from cobo_dist.scenario.tables import read_table, whole_number
from cobo_dist.settings import Section, Text

COLUMNS = ("round", "client", "event")
_JOIN, _LEAVE = "join", "leave"


class Event(NamedTuple):
    """A client joins, or else leaves, before a round trains. Rounds count from 1."""

    round: int
    client: int
    joins: bool
    place: str = ""  # where it was read, for messages


class MembershipConfig(Section):
    """Clients that join and leave in the middle of the run. membership=FILE is short for membership.file."""

    text_key: ClassVar[str] = "file"

    file: Text = Field(
        "",
        description="events as CSV with the header round,client,event, or as a YAML or JSON list of groups "
        "with these keys. event is join or leave, and takes place before that round, from 1, trains. A "
        "client whose first event is join is absent before it; all others are in the run from the start",
    )
    joins: int = Field(
        0,
        ge=0,
        description="in place of a file: number of clients, drawn by run.seed, that join late",
    )
    leaves: int = Field(
        0,
        ge=0,
        description="in place of a file: number of other clients, drawn by run.seed, that leave",
    )
    first: int = Field(2, ge=1, description="first round before which drawn clients join or leave")
    last: int = Field(0, ge=0, description="last such round; 0: run.rounds")
    start: Literal["common", "mean", "best_component", "nearest"] = Field(
        "common",
        description="a newcomer's model. common: x^0; mean: the mean of all models; best_component: the mean "
        "of a connected component of the links, or of all, with the least loss on the newcomer's validation "
        "data (on a training batch where there are none); nearest: that of the client whose gradient at its "
        "own model has the largest cosine with the newcomer's there. Methods with a common model give that",
    )
    weights: Literal["ones", "zeros", "component"] = Field(
        "ones",
        description="a newcomer's row and column of a learned W: 1, 0, or 1 for the clients whose models its "
        "own was made of and 0 for others",
    )
    sampling_factor: float = Field(
        1.0,
        ge=1,
        description="factor on the probability that a pair with a newcomer is drawn, in its first rounds",
    )
    sampling_rounds: int = Field(
        100, ge=1, description="number of first rounds in which membership.sampling_factor holds"
    )

    @property
    def given(self) -> bool:
        """Whether any client joins or leaves."""
        return bool(self.file or self.joins or self.leaves)

    @property
    def needs_rounds(self) -> tuple[str, ...]:
        """Events that are drawn up to the last round."""
        drawn = (self.joins or self.leaves) and not self.last
        return ("membership.last=0 draws events up to run.rounds",) if drawn else ()

    def contradiction(self) -> str:
        """Return which keys exclude one another."""
        if self.file and (self.joins or self.leaves):
            key, value = ("joins", self.joins) if self.joins else ("leaves", self.leaves)
            return (
                f"membership.file={self.file} and membership.{key}={value} both say who joins and leaves; "
                "drop one of them"
            )
        if self.last and self.first > self.last:
            return (
                f"membership.first={self.first} comes after membership.last={self.last}; lower "
                "membership.first"
            )
        return ""

    def of(self, seed: int, clients: int, rounds: int) -> Membership | None:
        """Return who is in a run of so many clients and rounds; None where all always are.

        Raises:
            ConfigError: the file or the numbers do not fit the run; one line.
        """
        if not self.given:
            return None
        events = self._read(clients, rounds) if self.file else self._draw(seed, clients, rounds)
        found = Membership(clients, events)
        source = f"membership.file={self.file}" if self.file else "membership"
        if gone := found.rounds_without(rounds, 1):
            raise ConfigError(
                f"{source}: no client is in the run in round {gone}; let one stay or join earlier"
            )
        return found

    def _read(self, clients: int, rounds: int) -> list[Event]:
        events = []
        for row in read_table(self.file, "membership.file", COLUMNS):
            r, client = whole_number(row, "round", least=1), whole_number(row, "client")
            event = str(row.values["event"]).strip()
            if event not in (_JOIN, _LEAVE):
                raise ConfigError(f"{row.place}: event is {event!r:.50}; write join or leave")
            if client >= clients:
                raise ConfigError(
                    f"{row.place}: client {client} is none of the {clients} clients, 0 to {clients - 1}"
                )
            if r > rounds:
                raise ConfigError(
                    f"{row.place}: round {r} comes after the last, run.rounds={rounds}; raise run.rounds or "
                    "remove the event"
                )
            events.append(Event(r, client, event == _JOIN, row.place))
        return _in_order(events)

    def _draw(self, seed: int, clients: int, rounds: int) -> list[Event]:
        first, last = self.first, self.last or rounds
        if self.joins + self.leaves > clients:
            raise ConfigError(
                f"membership.joins={self.joins} and membership.leaves={self.leaves} are more than the "
                f"{clients} clients; lower one of them"
            )
        if last > rounds or first > rounds:
            key, value = ("last", last) if last > rounds else ("first", first)
            raise ConfigError(
                f"membership.{key}={value} comes after the last round, run.rounds={rounds}; lower it"
            )
        count = self.joins + self.leaves
        drawn_k = seeds.permutation(seeds.key(seed, "membership"), clients)[:count].tolist()
        at_k = seeds.uniforms(seeds.key(seed, "membership rounds"), count).tolist()
        return _in_order(
            [
                Event(first + int(at * (last - first + 1)), client, k < self.joins)
                for k, (client, at) in enumerate(zip(drawn_k, at_k, strict=True))
            ]
        )


def _in_order(events: Sequence[Event]) -> list[Event]:
    """Return the events by round, then client.

    Raises:
        ConfigError: a client joins or leaves twice in a row, or has two events in one round.
    """
    last: dict[int, Event] = {}
    ordered = sorted(events, key=lambda event: (event.round, event.client))
    for event in ordered:
        before = last.get(event.client)
        word = _JOIN if event.joins else _LEAVE
        if before is not None and before.round == event.round:
            raise ConfigError(
                f"{event.place}: client {event.client} has two events in round {event.round}; keep one"
            )
        if before is not None and before.joins == event.joins:
            raise ConfigError(
                f"{event.place}: client {event.client} has a second {word}, in round {event.round}, after "
                f"that in round {before.round}; put a {_LEAVE if event.joins else _JOIN} between them, or "
                "remove one"
            )
        last[event.client] = event
    return ordered


class Membership:
    """Which of n clients are in the run in each round t = 0 .. T-1: a pure function of the events.

    >>> members = Membership(3, [Event(2, 1, True), Event(3, 0, False)])
    >>> [members(t).tolist() for t in range(3)]
    [[True, False, True], [True, True, True], [False, True, True]]
    """

    def __init__(self, clients: int, events: Sequence[Event]) -> None:
        """Take the events of some clients in order; each client's events alternate."""
        self.clients, self.events = clients, tuple(events)
        self._round_k = np.array([event.round for event in events], dtype=np.int64)
        self._client_k = np.array([event.client for event in events], dtype=np.int64)
        self._joins_k = np.array([event.joins for event in events], dtype=bool)
        self.first_n = np.ones(clients, dtype=bool)
        for event in reversed(self.events):  # a client's first event decides
            self.first_n[event.client] = not event.joins

    def __call__(self, t: int) -> NDArray[np.bool_]:
        """Return whether each client is in the run in round t, [n]."""
        count = int(np.searchsorted(self._round_k, t + 1, side="right"))
        changes_n = np.bincount(self._client_k[:count], minlength=self.clients)
        found: NDArray[np.bool_] = self.first_n ^ (changes_n % 2 == 1)
        return found

    def at(self, t: int) -> list[Event]:
        """Return the events that take place before round t trains, by client."""
        begin, end = np.searchsorted(self._round_k, (t + 1, t + 2))
        return list(self.events[begin:end])

    def returns(self, event: Event) -> bool:
        """Return whether a client that joins was in the run before."""
        return bool(self.first_n[event.client]) or any(
            one.client == event.client and one.round < event.round for one in self.events
        )

    def recent(self, t: int, rounds: int) -> NDArray[np.bool_]:
        """Return who joined before round t or one of the `rounds` - 1 rounds before it, [n]."""
        begin, end = np.searchsorted(self._round_k, (t + 2 - rounds, t + 2))
        found_n = np.zeros(self.clients, dtype=bool)
        found_n[self._client_k[begin:end][self._joins_k[begin:end]]] = True
        return found_n & self(t)

    def rounds_without(self, rounds: int, least: int) -> int:
        """Return the first round, from 1, with fewer than `least` clients; 0: there is none."""
        for r in (1, *sorted({event.round for event in self.events})):
            if r <= rounds and int(self(r - 1).sum()) < least:
                return r
        return 0

    @property
    def fingerprint(self) -> str:
        """Return the events as text: equal for equal scenarios."""
        return repr([event[:3] for event in self.events])
