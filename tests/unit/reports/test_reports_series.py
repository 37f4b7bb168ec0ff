"""The arithmetic of series: over seeds, over rounds, and rounds to reach a level."""

from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from cobo_dist.reports.figures.curves import draw_curve, limit_bands
from cobo_dist.reports.figures.style import LineStyle
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
    np.testing.assert_allclose(curve.ci95, [12.7062047, NAN, NAN])  # t(0.975, 1) sqrt(2) / sqrt(2)
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


@pytest.mark.parametrize(
    ("scale", "limits"),
    [("linear", (1 - 0.5 * 7.5, 8.5 + 0.5 * 7.5)), ("log", (8.5**-0.5, 8.5**1.5))],
)
def test_a_wide_band_does_not_flatten_the_lines(scale: str, limits: tuple[float, float]) -> None:
    """Two seeds, 4 and 13, have a band of 8.5 ± 57; the axis shows half of the means' span beyond them."""
    axes = Figure().add_subplot()
    axes.set_yscale(scale)
    curve = over_seeds([{0: 1.0, 5: 4.0}, {0: 1.0, 5: 13.0}])
    draw_curve(axes, curve, LineStyle("", (0.0, 0.0, 0.0), "-", 1.0, 1.0))
    assert axes.get_ylim()[1] > 8.5 + 57
    limit_bands(axes, [curve.mean])
    bottom, top = axes.get_ylim()
    assert top == pytest.approx(limits[1])
    assert limits[0] - 1e-9 <= bottom < 1.0


def test_without_bands_the_axis_stays() -> None:
    axes = Figure().add_subplot()
    curve = over_seeds([{0: 1.0, 5: 8.0}])
    draw_curve(axes, curve, LineStyle("", (0.0, 0.0, 0.0), "-", 1.0, 1.0))
    limits = axes.get_ylim()
    limit_bands(axes, [curve.mean])
    assert axes.get_ylim() == pytest.approx(limits)
    limit_bands(axes, [np.array([NAN])])
    assert axes.get_ylim() == pytest.approx(limits)
