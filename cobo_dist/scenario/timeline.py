"""Virtual time: who acts in which round, when that is, and how old the models are that others read.

Time is cut into ticks. A client whose work ends in ((m - 1) tick, m tick] acts at m tick, and all that act at
one tick are one round. Ticks with nobody are skipped. The end of a client's k-th unit of work without a wait
is k times its seconds, so rounding to ticks does not add up.

Every rank computes the same moments in order, from config, seed and members alone. Shapes: n clients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cobo_dist.maths.participation import Mask
from cobo_dist.scenario.clock import ClientTimes, ClockConfig

KEPT_NUMBERS = 1 << 19
"""Clients times rounds whose moments are kept; logging looks back some rounds."""

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Moment:
    """One round in virtual time.

    `versions_n`: the round at whose start the model was the client's own that others read in this round.
    In this round others begin to read the client's model as it is (`arrives_n`), or the copy that was
    on its way (`lands_n`); a copy of its model sets out (`departs_n`), and is on its way at the end.
    """

    seconds: float  # virtual, at the end of the round
    acts_n: Bools
    work_n: Floats  # virtual seconds of each client's work of a round
    begins_n: Bools  # whose work begins at the start of the round
    waits_n: Bools  # who computes nothing, because it is too far ahead
    members_n: Bools
    versions_n: Ints
    arrives_n: Bools
    lands_n: Bools
    departs_n: Bools


class Timeline(ABC):
    """The moments of a run, in the order of rounds."""

    def __init__(self, clients: int) -> None:
        self.clients = clients
        self._kept: deque[Moment] = deque(maxlen=64 + KEPT_NUMBERS // max(1, clients))
        self._next = 0  # round after the last one kept

    @property
    def reads_late(self) -> bool:
        """Whether a model may still be on its way when others act."""
        return False

    @property
    def discounts(self) -> bool:
        """Whether old models count less."""
        return False

    @property
    def overlaps(self) -> bool:
        """Whether some clients act while others are at work."""
        return False

    @abstractmethod
    def acts(self, t: int) -> Bools:
        """Return who could act in round t, [n], whatever the size of messages is."""

    @abstractmethod
    def set_message_bytes(self, size: int) -> None:
        """Say how large a model is, before the first moment is asked for."""

    def at(self, t: int) -> Moment:
        """Return round t. Rounds are computed in order; an earlier one than those kept, from the start."""
        if t < self._next - len(self._kept):
            self._kept.clear()
            self._next = 0
            self._restart()
        while self._next <= t:
            self._kept.append(self._moment(self._next))
            self._next += 1
        return self._kept[t - self._next]

    def seconds(self, t: int) -> float:
        """Return the virtual seconds at the end of round t."""
        return self.at(t).seconds

    def staleness(self, t: int) -> Ints:
        """Return how many rounds ago the models that others read in round t were made, [n]."""
        return np.maximum(t - self.at(t).versions_n, 0)

    def heard(self, t: int) -> Floats:
        """Return what the models that others read in round t count, [n] in [0, 1]."""
        return self.at(t).acts_n.astype(np.float64)

    @abstractmethod
    def _moment(self, t: int) -> Moment:
        """Compute round t, after the one before."""

    @abstractmethod
    def _restart(self) -> None:
        """Go back to the start of the run."""


class SyncTimeline(Timeline):
    """Every round lasts as long as the slowest of those that take part works and sends."""

    def __init__(self, times: ClientTimes, taking_part: Mask, members: Mask) -> None:
        super().__init__(len(times.work_n))
        self.times, self._taking_part, self._members = times, taking_part, members
        self._seconds, self._rounds_n = 0.0, times.work_n + times.message_seconds(0)

    def set_message_bytes(self, size: int) -> None:
        """Say how large a model is."""
        self._rounds_n = self.times.work_n + self.times.message_seconds(size)

    def acts(self, t: int) -> Bools:
        """Everybody could."""
        return np.ones(self.clients, dtype=bool)

    def _moment(self, t: int) -> Moment:
        part_n, nobody_n = self._taking_part(t), np.zeros(self.clients, dtype=bool)
        self._seconds += float(self._rounds_n[part_n].max(initial=0.0))
        return Moment(
            self._seconds, part_n, self.times.work_n, part_n, nobody_n, self._members(t),
            np.full(self.clients, t), nobody_n, nobody_n, nobody_n,
        )  # fmt: skip

    def _restart(self) -> None:
        self._seconds = 0.0


class AsyncTimeline(Timeline):
    """Clients act when their own work ends, and read the models of others as they last arrived.

    Each client has one message on its way at most. When it arrives, the newest model sets out.
    """

    def __init__(self, config: ClockConfig, times: ClientTimes, members: Mask) -> None:
        super().__init__(len(times.work_n))
        self.times, self._members = times, members
        self.tick = config.tick or float(times.work_n.min())
        self._ahead = config.staleness if config.policy == "bounded" else None
        self._discount = config.discount
        self._work = _Work(times.work_n / self.tick, self._ahead)
        self._mail = _Mail(times.message_seconds(0) / self.tick)

    @property
    def overlaps(self) -> bool:
        """Whether some clients act while others are at work: not where all work equally long."""
        return bool(np.ptp(self._work.ratio_n) > 0)

    @property
    def discounts(self) -> bool:
        """Whether old models count less."""
        return self._discount != "none"

    @property
    def reads_late(self) -> bool:
        """Whether a model may still be on its way a tick after it was made."""
        return bool((self._mail.delay_n > 1.0).any())

    def set_message_bytes(self, size: int) -> None:
        """Say how large a model is."""
        self._mail = _Mail(self.times.message_seconds(size) / self.tick)
        self._kept.clear()
        self._next = 0
        self._restart()

    def acts(self, t: int) -> Bools:
        """Return whose work ends."""
        return self.at(t).acts_n

    def heard(self, t: int) -> Floats:
        """Return 1 for every member, or 1/sqrt(1 + tau) where old models count less."""
        factors_n = self.at(t).members_n.astype(np.float64)
        if self.discounts:
            factors_n /= np.sqrt(1.0 + self.staleness(t))
        return factors_n

    def _moment(self, t: int) -> Moment:
        before, members_n, work = self._work.tick, self._members(t), self._work
        begins_n, joins_n = work.begin(members_n)
        acts_n = work.finish()
        arrives_n, lands_n, departs_n = self._mail.carry(t, before, work.tick, joins_n)
        versions_n = self._mail.read_n.copy()
        self._mail.made_n[acts_n] = t + 1
        return Moment(
            work.tick * self.tick, acts_n, self.times.work_n, begins_n, work.waits_n.copy(), members_n,
            versions_n, arrives_n, lands_n, departs_n,
        )  # fmt: skip

    def _restart(self) -> None:
        self._work = _Work(self._work.ratio_n, self._ahead)
        self._mail = _Mail(self._mail.delay_n)


class _Work:
    """When the work of each client ends, in ticks."""

    def __init__(self, ratio_n: Floats, ahead: int | None) -> None:
        n = len(ratio_n)
        self.ratio_n, self.ahead = ratio_n, ahead
        self.tick = 0
        self.origin_n = np.zeros(n)  # tick from which the units of work are counted
        self.units_n = np.zeros(n, dtype=np.int64)  # finished since then
        self.done_n = np.zeros(n, dtype=np.int64)  # finished in all, to compare clients
        self.idle_n, self.waits_n, self.members_n = (np.zeros(n, dtype=bool) for _ in range(3))

    def begin(self, members_n: Bools) -> tuple[Bools, Bools]:
        """Let everybody begin who has finished and need not wait; return who begins, and who has joined."""
        joins_n, stays_n = members_n & ~self.members_n, members_n & self.members_n
        self.members_n = members_n
        self.done_n[joins_n] = self.done_n[stays_n].min(initial=int(self.done_n.max(initial=0)))
        waits_n = np.zeros_like(joins_n)
        if self.ahead is not None:
            least = self.done_n[members_n].min(initial=int(self.done_n.max(initial=0)))
            waits_n = self.idle_n & stays_n & (self.done_n - least > self.ahead)
        starts_n = joins_n | (self.waits_n & ~waits_n)
        self.origin_n[starts_n], self.units_n[starts_n] = self.tick, 0
        begins_n = joins_n | (self.idle_n & stays_n & ~waits_n)
        self.waits_n = waits_n
        return begins_n, joins_n

    def finish(self) -> Bools:
        """Go on to the next tick at which work ends; return whose."""
        busy_n = self.members_n & ~self.waits_n
        ends_n = self.origin_n + (self.units_n + 1) * self.ratio_n
        # Multiples of a client's seconds may be a rounding error above a whole number of ticks.
        due_n = np.ceil(ends_n - 1e-9 - 1e-12 * ends_n)
        self.tick = int(due_n[busy_n].min())
        acts_n = busy_n & (due_n == self.tick)
        self.units_n[acts_n] += 1
        self.done_n[acts_n] += 1
        self.idle_n = acts_n | self.waits_n
        found: Bools = acts_n
        return found


class _Mail:
    """Which model of each client others read, and which is on its way."""

    def __init__(self, delay_n: Floats) -> None:
        n = len(delay_n)
        self.delay_n = delay_n  # ticks
        self.made_n, self.read_n, self.sent_n = (np.zeros(n, dtype=np.int64) for _ in range(3))
        self.lands_n = np.full(n, np.inf)  # tick; infinity: nothing is on its way

    def carry(self, t: int, before: int, now: int, joins_n: Bools) -> tuple[Bools, Bools, Bools]:
        """Let messages travel from one round to the next; return what arrives, lands and departs."""
        self.made_n[joins_n] = self.sent_n[joins_n] = t
        self.lands_n[joins_n] = np.inf
        tolerance = 1e-9
        landed_n = self.lands_n <= now + tolerance
        free_n = np.isinf(self.lands_n)
        newer_n = self.made_n > self.sent_n
        # The newest model sets out at once, or when the one before it arrives.
        sets_out_n = newer_n & (free_n | landed_n)
        start_n = np.where(free_n, before, self.lands_n)
        reach_n = start_n + self.delay_n
        through_n = sets_out_n & (reach_n <= now + tolerance)
        departs_n = sets_out_n & ~through_n
        arrives_n = joins_n | through_n | (landed_n & ~newer_n)
        lands_n = landed_n & departs_n
        self.read_n = np.where(landed_n, self.sent_n, self.read_n)
        self.sent_n = np.where(sets_out_n, self.made_n, self.sent_n)
        self.read_n = np.where(through_n | joins_n, self.made_n, self.read_n)
        self.lands_n = np.where(
            departs_n, reach_n, np.where(landed_n | through_n, np.inf, self.lands_n)
        )
        return arrives_n, lands_n, departs_n


def new_timeline(
    config: ClockConfig, seed: int, members: Mask, taking_part: Mask, clients: int
) -> Timeline | None:
    """Return the timeline of a run of so many clients; None without virtual time.

    Args:
        config: the section `clock`.
        seed: of the run.
        members: who is in the run in each round.
        taking_part: who is drawn in each round, where every round waits for all.
        clients: number n of clients that are ever in the run.
    """
    if not config.is_virtual:
        return None
    times = config.times(seed, clients)
    if config.waits_for_all:
        return SyncTimeline(times, taking_part, members)
    return AsyncTimeline(config, times, members)
