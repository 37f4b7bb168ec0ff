"""Numbers against rounds: means over seeds, smoothing, and what the weights say of links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cobo_dist.reports.reading.series import Series

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Mean and sample standard deviation over seeds, at every round that some seed has. All [k]."""

    rounds: npt.NDArray[np.int64]
    mean: Array
    std: Array  # NaN where a single seed has the round
    seeds: npt.NDArray[np.int64]  # how many seeds have the round

    @property
    def drawable(self) -> bool:
        """Whether there is a finite value to draw."""
        return bool(np.isfinite(self.mean).any())

    @property
    def last(self) -> float:
        """The last finite mean, or NaN."""
        finite = self.mean[np.isfinite(self.mean)]
        return float(finite[-1]) if len(finite) else float("nan")


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (ddof = 1); the latter is NaN for fewer than two values.

    A NaN among the values makes both NaN: a seed that diverged is not averaged away.
    """
    if not values:
        return float("nan"), float("nan")
    with np.errstate(invalid="ignore", over="ignore"):
        std = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        return float(np.mean(values)), std


def over_seeds(runs: Sequence[Series]) -> Curve:
    """Mean of several runs of one method, round by round."""
    rounds = sorted({number for series in runs for number in series})
    values = [[series[number] for series in runs if number in series] for number in rounds]
    stats = np.array([mean_std(column) for column in values]).reshape(-1, 2)
    counts = np.array([len(column) for column in values], dtype=np.int64)
    return Curve(np.array(rounds, dtype=np.int64), stats[:, 0], stats[:, 1], counts)


def running_mean(series: Series) -> Series:
    """Mean of the values up to and including each round: what Theorem 1 bounds, as a curve in T."""
    rounds = sorted(series)
    with np.errstate(invalid="ignore"):
        sums = np.cumsum([series[number] for number in rounds])
    return {number: float(sums[i]) / (i + 1) for i, number in enumerate(rounds)}


def running_median(values: Array, window: int) -> Array:
    """Median of the finite values in a centred window, shorter at the ends. [k] -> [k]."""
    half = window // 2
    smooth = np.full(len(values), np.nan)
    for i in range(len(values)):
        near = values[max(0, i - half) : i + half + 1]
        near = near[np.isfinite(near)]
        if len(near):
            smooth[i] = np.median(near)
    return smooth


def moving_average(rounds: npt.NDArray[np.int64], values: Array, memory: float) -> Array:
    """Exponential moving average over rounds that need not be evenly spaced. [k], [k, ...] -> [k, ...].

    It starts at the first value; what is `memory` rounds old counts 1/e of what is new. From a NaN on, all
    is NaN.
    """
    smooth = values.copy()
    kept = np.exp(-np.diff(rounds) / memory)
    for k in range(1, len(values)):
        smooth[k] = values[k] + kept[k - 1] * (smooth[k - 1] - values[k])
    return smooth


def spread_rounds(rounds: Sequence[int], count: int = 5) -> list[int]:
    """At most `count` of the logged rounds: first, last, and geometrically spread ones between."""
    if len(rounds) <= count:
        return list(rounds)
    chosen = {rounds[0], rounds[-1]}
    # Steps of equal ratio from the second logged round on: W moves most in the early rounds.
    start = max(rounds[1], 1)
    for target in np.geomspace(start, max(rounds[-1], start), count - 1)[:-1]:
        left = [number for number in rounds if number not in chosen]
        chosen.add(min(left, key=lambda number: abs(np.log(max(number, 0.5) / target))))
    return sorted(chosen)


def telling_rounds(rounds: Sequence[int], count: int) -> list[int]:
    """`spread_rounds` without round 0 where enough others were logged: W^0 is known beforehand."""
    later = [number for number in rounds if number > 0]
    return spread_rounds(later if len(later) >= count else rounds, count)
