"""The arithmetic of series: over seeds, over rounds, and rounds to reach a level."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cobo_dist.reports.statistics import (
    over_seeds,
    rounds_to_draw,
    running_mean,
    running_median,
    spread_rounds,
)

NAN = float("nan")


def test_over_seeds_counts_who_has_the_round() -> None:
    """Rounds that one seed lacks are averaged over the rest; a NaN is not averaged away."""
    curve = over_seeds([{0: 1.0, 5: 2.0, 10: NAN}, {0: 3.0, 10: 1.0}])
    assert curve.rounds.tolist() == [0, 5, 10]
    np.testing.assert_allclose(curve.mean, [2.0, 2.0, NAN])
    np.testing.assert_allclose(curve.std, [math.sqrt(2.0), NAN, NAN])
    assert curve.seeds.tolist() == [2, 1, 2]


def test_running_mean_and_median() -> None:
    """Mean from the first round on; median over the finite values of a centred window."""
    assert running_mean({1: 4.0, 2: 2.0, 3: 0.0}) == {1: 4.0, 2: 3.0, 3: 2.0}
    smooth = running_median(np.array([1.0, 9.0, 2.0, NAN, 4.0]), 3)
    np.testing.assert_allclose(smooth, [5.0, 2.0, 5.5, 3.0, 4.0])


@pytest.mark.parametrize(
    ("logged", "shown"),
    [
        ([0], [0]),
        ([0, 50, 100], [0, 50, 100]),
        ([0, 300, 1000, 5000, 15000, 20000, 40000], [0, 300, 1000, 5000, 40000]),
        (list(range(0, 101, 10)), [0, 10, 20, 50, 100]),
    ],
)
def test_spread_rounds(logged: list[int], shown: list[int]) -> None:
    """First, last, and steps of about equal ratio between."""
    assert spread_rounds(logged) == shown


@pytest.mark.parametrize(
    ("logged", "shown"),
    [
        ([0], [0]),
        ([0, 50, 100], [0, 50, 100]),
        ([0, 300, 1000, 5000, 15000, 20000], [300, 1000, 5000, 20000]),
    ],
)
def test_rounds_to_draw(logged: list[int], shown: list[int]) -> None:
    """W^0, which is known beforehand, is left out where four other rounds were logged."""
    assert rounds_to_draw(logged, 4) == shown
