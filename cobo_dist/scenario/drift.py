"""Concept drift: clients that change cluster during a run. A pure function of (config, round).

Shapes: n clients.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from cobo_dist.errors import ConfigError
from cobo_dist.maths import seeds
from cobo_dist.settings import Section, as_tuple

Ids = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(as_tuple)]


class DriftEvent(Section):
    """Clients that belong to another cluster from a round on: named ones, or drawn ones."""

    round: int = Field(ge=1, description="the first round with the new data")
    clients: Ids = Field((), description="the clients that change cluster")
    count: int = Field(0, ge=0, description="in place of clients: so many, drawn from data.seed")
    cluster: int | None = Field(
        None, ge=0, description="their new cluster; null: another one, drawn for each client"
    )
    until: int | None = Field(
        None, ge=1, description="each client changes in a round of its own, drawn up to this one"
    )


def _as_events(value: object) -> object:
    return as_tuple([value] if isinstance(value, dict) else value)


DriftEvents = Annotated[tuple[DriftEvent, ...], BeforeValidator(_as_events)]
"""What `task.drift` holds: a list of events, or one."""


class Move(NamedTuple):
    """One client that changes cluster before a round."""

    round: int
    client: int
    cluster: int


def why_refused(events: Sequence[DriftEvent], rounds: int) -> str:
    """Return one line about events that contradict themselves or each other, or a run of so many rounds."""
    seen: set[tuple[int, int]] = set()
    for event in events:
        at = f"task.drift of round {event.round}"
        if bool(event.clients) == bool(event.count):
            return f"{at} names {'both' if event.count else 'neither'} clients and count; give one of them"
        if len(set(event.clients)) < len(event.clients):
            return f"{at}: clients={list(event.clients)} names a client twice; name each once"
        last = event.round if event.until is None else event.until
        if last < event.round:
            return f"{at}: until={last} is before it; raise until, or drop it"
        if last > rounds:
            key = "round" if event.until is None else "until"
            return f"{at}: {key}={last} is after the last round, run.rounds={rounds}; lower it"
        for client in event.clients if event.until is None else ():
            if (event.round, client) in seen:
                return f"{at} moves client {client} twice; drop one of the events"
            seen.add((event.round, client))
    return ""


class Drift:
    """The cluster of each of n clients in each round r = 1 .. T; r = 0 is before round 1.

    >>> drift = Drift([0, 0, 1, 1], [Move(5, 0, 1)])
    >>> [drift.clusters(r).tolist() for r in (4, 5)], drift.donors(5).tolist(), drift.rounds
    ([[0, 0, 1, 1], [1, 0, 1, 1]], [2, 1, 2, 3], (5,))
    """

    def __init__(self, clusters: Sequence[int], moves: Sequence[Move] = ()) -> None:
        """Start in `clusters`; the moves come by round, ascending."""
        self.rounds = tuple(sorted({move.round for move in moves}))
        """Rounds before which some client changes cluster, ascending."""
        self._clusters, self._donors = [np.array(clusters, dtype=np.int64)], []
        first_n = self._clusters[0]
        self._donors.append(np.arange(len(first_n)))
        members = {int(k): np.flatnonzero(first_n == k) for k in np.unique(first_n)}
        for r in self.rounds:
            cluster_n, donor_n = self._clusters[-1].copy(), self._donors[-1].copy()
            for _, client, cluster in (move for move in moves if move.round == r):
                cluster_n[client] = cluster
                own = members[cluster]
                donor_n[client] = client if first_n[client] == cluster else own[client % len(own)]
            self._clusters.append(cluster_n)
            self._donors.append(donor_n)

    def phase(self, r: int) -> int:
        """Return how many of `rounds` are not after round r."""
        return bisect_right(self.rounds, r)

    def clusters(self, r: int) -> NDArray[np.int64]:
        """Return the cluster of each client in round r, [n]."""
        return self._clusters[self.phase(r)]

    def donors(self, r: int) -> NDArray[np.int64]:
        """Return the client whose concept each client has in round r, [n]: its own, or a first member's.

        A member of the new cluster at the start of the run; different clients get different ones where the
        cluster has several.
        """
        return self._donors[self.phase(r)]

    def moves(self) -> Iterator[tuple[int, int]]:
        """Yield each client with each other client whose concept it has in some round, once."""
        n = len(self._donors[0])
        pairs = {(i, int(d)) for donor_n in self._donors for i, d in enumerate(donor_n) if i != d}
        yield from sorted(pairs, key=lambda pair: pair[0] * n + pair[1])

    def to_text(self) -> str:
        """Return what a user wants to know: who moves and when."""
        count = sum(
            int((after != before).sum())
            for before, after in zip(self._clusters, self._clusters[1:], strict=False)
        )
        shown = ", ".join(map(str, self.rounds[:4])) + (", ..." if len(self.rounds) > 4 else "")
        return (
            f"{count} change{'s' * (count != 1)} of cluster, before round"
            f"{'s' * (len(self.rounds) != 1)} {shown}"
        )


def drift_of(events: Sequence[DriftEvent], clusters: Sequence[int], seed: int) -> Drift:
    """Return the drift of clients that start in these clusters.

    Raises:
        ConfigError: unknown clients or clusters, more drawn clients than there are, two moves of a client
            before one round, or a move that changes nothing.
    """
    known, moves = sorted(set(clusters)), list[Move]()
    if events and len(known) < 2:
        raise ConfigError(
            "task.drift moves clients to another cluster, and there is one cluster only; add clusters, or "
            "drop task.drift"
        )
    planned = sorted(
        (
            (r, client, event, number)
            for number, event in enumerate(events)
            for r, client in _planned(event, number, clusters, seed)
        ),
        key=lambda one: one[:2],
    )
    now = list(clusters)
    for r, client, event, number in planned:
        if moves and moves[-1][:2] == (r, client):
            raise ConfigError(
                f"task.drift moves client {client} twice before round {r}; change one of the events"
            )
        cluster = event.cluster
        if cluster is None:
            others = [one for one in known if one != now[client]]
            key = seeds.key(seed, "drift cluster", number, client)
            cluster = others[int(seeds.permutation(key, len(others))[0])]
        if cluster == now[client]:
            raise ConfigError(
                f"task.drift of round {event.round} moves client {client} to cluster {cluster}, where it is "
                "already; name another cluster or client"
            )
        now[client] = cluster
        moves.append(Move(r, client, cluster))
    return Drift(clusters, moves)


def _planned(
    event: DriftEvent, number: int, clusters: Sequence[int], seed: int
) -> Iterator[tuple[int, int]]:
    """Yield the round and the client of each change of an event."""
    n, at = len(clusters), f"task.drift of round {event.round}"
    if event.cluster is not None and event.cluster not in clusters:
        raise ConfigError(
            f"{at}: there is no cluster {event.cluster}; clusters are {_shown(sorted(set(clusters)))}"
        )
    if unknown := [client for client in event.clients if client >= n]:
        raise ConfigError(f"{at}: there is no client {unknown[0]}; clients are 0 to {n - 1}")
    named: Sequence[int] = event.clients
    if event.count:
        order = seeds.permutation(seeds.key(seed, "drift clients", number), n).tolist()
        # One that is in the new cluster from the start cannot move there.
        order = [client for client in order if clusters[client] != event.cluster]
        if event.count > len(order):
            raise ConfigError(
                f"{at}: count={event.count} is more than the {len(order)} clients that can move; lower it"
            )
        named = order[: event.count]
    for client in named:
        r, later = event.round, (event.until or event.round) - event.round
        if later:
            key = seeds.key(seed, "drift round", number, client)
            r += int(float(seeds.uniforms(key, 1)[0]) * (later + 1))
        yield r, client


def _shown(clusters: Sequence[int]) -> str:
    few = clusters if len(clusters) <= 12 else (*clusters[:8], "...", clusters[-1])
    return ", ".join(map(str, few))
