"""When clients act: no drift, no empty round, bounded waits, and the same whatever is asked first."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cobo_dist.scenario.clock import ClientTimes, ClockConfig
from cobo_dist.scenario.timeline import AsyncTimeline


def everybody(n: int):  # type: ignore[no-untyped-def]
    return lambda t: np.ones(n, dtype=bool)


def timeline(
    seconds: list[float], latency: float = 0.0, members: object = None, **keys: object
) -> AsyncTimeline:
    n = len(seconds)
    times = ClientTimes(np.array(seconds), np.full(n, latency), np.full(n, np.inf))
    config = ClockConfig.model_validate({"name": "virtual", "policy": "free"} | keys)
    return AsyncTimeline(config, times, members or everybody(n))  # type: ignore[arg-type]


def test_the_last_of_many_units_of_work_ends_where_it_should() -> None:
    """0.1 s twenty thousand times: adding them up would be off by a tick in the end."""
    line = timeline([0.1, 0.3])
    rounds = 20_000
    acts = np.array([line.at(t).acts_n for t in range(rounds)])
    assert acts[:, 0].all()
    assert np.array_equal(np.flatnonzero(acts[:, 1]) + 1, np.arange(3, rounds + 1, 3))
    assert line.seconds(rounds - 1) == pytest.approx(rounds * 0.1, rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    seconds=st.lists(st.floats(0.1, 20), min_size=1, max_size=6),
    ahead=st.integers(0, 5),
    latency=st.floats(0, 50),
)
def test_what_holds_in_every_round(seconds: list[float], ahead: int, latency: float) -> None:
    line = timeline(seconds, latency, policy="bounded", staleness=ahead)
    done: NDArray[np.int64] = np.zeros(len(seconds), dtype=np.int64)
    read, before = np.zeros(len(seconds), dtype=np.int64), 0.0
    for t in range(60):
        moment = line.at(t)
        assert moment.acts_n.any()
        assert moment.seconds > before
        assert not (moment.acts_n & moment.waits_n).any()
        done += moment.acts_n
        assert done.max() - done.min() <= ahead + 1
        assert (moment.versions_n >= read).all(), "a newer model is never replaced by an older one"
        assert (line.staleness(t) >= 0).all()
        read, before = moment.versions_n, moment.seconds


def test_a_round_is_the_same_whatever_was_asked_before() -> None:
    seconds = [1.0, 1.7, 5.0]
    in_order = timeline(seconds, 2.0)
    expected = [in_order.at(t) for t in range(40)]
    other = timeline(seconds, 2.0)
    other._kept = type(other._kept)(maxlen=4)
    for t in (39, 3, 38, 0, 20, 39):
        mine, theirs = other.at(t), expected[t]
        assert mine.seconds == theirs.seconds
        for name in ("acts_n", "versions_n", "arrives_n", "lands_n", "departs_n"):
            assert np.array_equal(getattr(mine, name), getattr(theirs, name)), name


def test_who_joins_begins_then_and_who_left_is_not_waited_for() -> None:
    """Client 2 is there in rounds 0 to 3; client 3 from round 4. Client 2 is the slowest."""

    def members(t: int) -> NDArray[np.bool_]:
        return np.array([True, True, t < 4, t >= 4])

    line = timeline([1.0, 1.0, 6.0, 2.0], policy="bounded", staleness=2, members=members)
    acts = [np.flatnonzero(line.at(t).acts_n).tolist() for t in range(8)]
    assert acts[:4] == [[0, 1], [0, 1], [0, 1], [2]]
    assert [line.seconds(t) for t in range(4)] == [1.0, 2.0, 3.0, 6.0]
    assert acts[4:] == [[0, 1], [0, 1, 3], [0, 1], [0, 1, 3]]
    assert line.heard(3).tolist() == [1, 1, 1, 0]
    assert line.heard(4).tolist() == [1, 1, 0, 1]
    assert line.staleness(4)[3] == 0
    assert line.at(4).begins_n.tolist() == [True, True, False, True]


def test_many_clients_and_rounds_are_cheap() -> None:
    line = timeline(np.random.default_rng(0).lognormal(0, 1, 1000).tolist(), policy="bounded")
    began = time.process_time()
    line.at(1_999)
    assert time.process_time() - began < 5, "10,000 rounds take about 1 s"
