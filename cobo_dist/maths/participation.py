"""Which clients take part in a round: drawn by every rank alike, without a message."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cobo_dist.maths import seeds

Mask = Callable[[int], NDArray[np.bool_]]
"""Some of n clients in round t, [n]: a pure function of t, so all ranks compute the same."""


class Moment(Protocol):
    """One round in virtual time; masks are [n] (`scenario.timeline`)."""

    @property
    def seconds(self) -> float:
        """Virtual seconds at the end of the round."""

    @property
    def acts_n(self) -> NDArray[np.bool_]:
        """Whose work ends in the round."""

    @property
    def begins_n(self) -> NDArray[np.bool_]:
        """Whose work begins at the start of the round."""

    @property
    def work_n(self) -> NDArray[np.float64]:
        """Virtual seconds of each client's work of a round."""

    @property
    def waits_n(self) -> NDArray[np.bool_]:
        """Who computes nothing, because it is too far ahead."""

    @property
    def arrives_n(self) -> NDArray[np.bool_]:
        """Whose model others begin to read as it is."""

    @property
    def lands_n(self) -> NDArray[np.bool_]:
        """Whose copy that was on its way others begin to read."""

    @property
    def departs_n(self) -> NDArray[np.bool_]:
        """Of whose model a copy sets out."""


class Timing(Protocol):
    """When rounds are in virtual time, and how old the models are that others read."""

    @property
    def overlaps(self) -> bool:
        """Whether some clients act while others are at work."""

    @property
    def reads_late(self) -> bool:
        """Whether a model may still be on its way when others act."""

    @property
    def discounts(self) -> bool:
        """Whether old models count less."""

    def set_message_bytes(self, size: int) -> None:
        """Say how large a model is, before the first round."""

    def acts(self, t: int) -> NDArray[np.bool_]:
        """Return who could act in round t, [n]."""

    def at(self, t: int) -> Moment:
        """Return round t."""

    def staleness(self, t: int) -> NDArray[np.int64]:
        """Return how many rounds ago the models that others read in round t were made, [n]."""

    def heard(self, t: int) -> NDArray[np.float64]:
        """Return what the models that others read in round t count, [n] in [0, 1]."""


class Participation:
    """Which of n clients take part in each round: a pure function of (seed, "clients", t).

    >>> Participation(seed=0, clients=5, count=2)(7).tolist()
    [False, False, True, True, False]
    """

    def __init__(
        self,
        seed: int,
        clients: int,
        count: int,
        members: Mask | None = None,
        ready: Mask | None = None,
        share: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        """Draw at most `count` of those of `clients` that are members and ready in each round.

        Args:
            seed: that of the run.
            clients: number n of clients that are ever in the run.
            count: how many take part in a round at most.
            members: who is in the run; None: everybody, always.
            ready: who could take part if it is a member; None: everybody, always.
            share: in place of `count`, that of the members that take part at most, at least one.
            dropout: the probability that a client that was drawn fails in a round; one never does.
        """
        self.seed, self.clients, self.count = seed, clients, count
        self.share, self.dropout = share, dropout
        self._members, self._ready = members, ready
        self.timing: Timing | None = None
        """When rounds are; None: there is no virtual time."""
        self.stands_for: int | None = None
        """The round whose draw is returned for any round; a dry run samples rounds so. None: each its own."""
        self._last: tuple[int, NDArray[np.bool_]] | None = None

    @property
    def is_partial(self) -> bool:
        """Whether some clients do not take part in some round."""
        draws = self.count < self.clients or self.share < 1.0
        return draws or bool(self._members or self._ready or self.dropout)

    def with_count(self, count: int) -> Participation:
        """Return the participation of the same members, ready alike, of which `count` take part at most."""
        found = copy(self)
        found.count, found.share, found._last = count, 1.0, None
        return found

    def timed(self, timing: Timing) -> Participation:
        """Return the same draws in virtual time; where work overlaps, among those that act in a round."""
        found, ready = copy(self), self._ready
        found.timing, found._last = timing, None
        if timing.overlaps:
            found._ready = timing.acts if ready is None else lambda t: ready(t) & timing.acts(t)
        return found

    def heard(self, t: int) -> NDArray[np.float64]:
        """Return what each client's model counts for those that take part in round t, [n] in [0, 1].

        Without virtual time it is 1 for those that take part, and 0 for the others.
        """
        if self.timing is None:
            return self(t).astype(np.float64)
        return self.timing.heard(t if self.stands_for is None else self.stands_for)

    def members(self, t: int) -> NDArray[np.bool_]:
        """Return whether each client is in the run in round t, [n]: the same on every rank."""
        if self._members is None:
            return np.ones(self.clients, dtype=bool)
        return self._members(t if self.stands_for is None else self.stands_for)

    def __call__(self, t: int) -> NDArray[np.bool_]:
        """Return whether each client takes part in round t, [n]: the same on every rank."""
        t = t if self.stands_for is None else self.stands_for
        if self._last is None or self._last[0] != t:
            part_n = members_n = self.members(t)
            if self._ready is not None:
                part_n = part_n & self._ready(t)
            count = min(self.count, max(1, round(self.share * int(members_n.sum()))))
            if count < self.clients:
                order_n = seeds.permutation(
                    seeds.key(self.seed, "clients", t), self.clients
                ).numpy()
                drawn_k = order_n[part_n[order_n]][:count]
                part_n = np.zeros(self.clients, dtype=bool)
                part_n[drawn_k] = True
            if self.dropout:
                part_n = self._without_failed(part_n, t)
            self._last = t, part_n
        return self._last[1]

    def _without_failed(self, part_n: NDArray[np.bool_], t: int) -> NDArray[np.bool_]:
        """Return those of the drawn clients that do not fail in round t, [n]; at least one of them."""
        luck_n = seeds.uniforms(seeds.key(self.seed, "dropout", t), self.clients).numpy()
        luck_n = np.where(part_n, luck_n, -1.0)
        stays_n: NDArray[np.bool_] = (luck_n >= self.dropout) | (luck_n == luck_n.max())
        return part_n & stays_n
