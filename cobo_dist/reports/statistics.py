"""Statistics over seeds and over rounds, and which of the logged rounds a figure shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from cobo_dist.maths.confidence import half_width
from cobo_dist.reports.reading.series import Series

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Mean over seeds and how sure it is, at every round that some seed has. All [k]."""

    rounds: npt.NDArray[np.int64]
    mean: Array
    std: Array  # sample standard deviation; NaN where a single seed has the round
    ci95: Array  # half the width of the mean's 95% confidence interval; NaN likewise
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


def statistics_over_seeds(values: pd.Series[float]) -> pd.DataFrame:
    """Return `mean`, `std`, `ci95` and `seeds` (count) for each label of the index.

    `std` is the sample standard deviation, `ci95` half the width of the mean's 95% confidence interval.
    There is one value a seed; a seed that has no such value has no entry. A NaN among the values makes all
    three NaN: a seed that diverged is not averaged away. A single value has NaN for the last two.

    >>> statistics_over_seeds(pd.Series([1.0, 3.0, 5.0], index=["loss", "loss", "accuracy"]))
              mean       std       ci95  seeds
    accuracy   5.0       NaN        NaN      1
    loss       2.0  1.414214  12.706205      2
    """
    groups = values.groupby(level=0)
    found = groups.agg(["mean", "std", "size"]).rename(columns={"size": "seeds"})
    found.loc[groups.count() < found["seeds"], ["mean", "std"]] = np.nan
    found.insert(2, "ci95", half_width(found["std"], found["seeds"]))
    return found


def over_seeds(runs: Sequence[Series]) -> Curve:
    """Return the mean of several runs of one method, round by round."""
    rounds = [round_ for series in runs for round_ in series]
    values = [value for series in runs for value in series.values()]
    found = statistics_over_seeds(pd.Series(values, index=rounds, dtype=np.float64))
    return Curve(*(found.reset_index()[name].to_numpy() for name in ("index", *found.columns)))


def running_mean(series: Series) -> Series:
    """Return the mean up to and including each round: what Theorem 1 bounds, as a curve in T.

    From a NaN on, all is NaN.
    """
    rounds = sorted(series)
    with np.errstate(invalid="ignore"):
        sums = np.cumsum([series[number] for number in rounds])
    return {number: float(sums[i]) / (i + 1) for i, number in enumerate(rounds)}


def running_median(values: Array, window: int) -> Array:
    """Return the median of the finite values in a centered window, shorter at the ends. [k] -> [k]."""
    finite = pd.Series(np.where(np.isfinite(values), values, np.nan))
    return finite.rolling(window, center=True, min_periods=1).median().to_numpy()


def moving_average(rounds: npt.NDArray[np.int64], values: Array, memory: float) -> Array:
    """Exponential moving average over rounds that need not be evenly spaced. [k], [k, ...] -> [k, ...].

    It starts at the first value; a value `memory` rounds ago counts 1/e of a new one. From a NaN on, all
    is NaN (the reason why this is not `DataFrame.ewm`, which leaves NaN out).
    """
    smooth = values.copy()
    kept = np.exp(-np.diff(rounds) / memory)
    for k in range(1, len(values)):
        smooth[k] = values[k] + kept[k - 1] * (smooth[k - 1] - values[k])
    return smooth


def spread_rounds(rounds: Sequence[int], count: int = 5) -> list[int]:
    """Return at most `count` of the logged rounds: first, last, and geometrically spread ones."""
    if len(rounds) <= count:
        return list(rounds)
    chosen = {rounds[0], rounds[-1]}
    # Steps of equal ratio from the second logged round on: W moves most in the early rounds.
    start = max(rounds[1], 1)
    for target in np.geomspace(start, max(rounds[-1], start), count - 1)[:-1]:
        left = [number for number in rounds if number not in chosen]
        chosen.add(min(left, key=lambda number: abs(np.log(max(number, 0.5) / target))))
    return sorted(chosen)


def rounds_to_draw(rounds: Sequence[int], count: int) -> list[int]:
    """Return `spread_rounds` without round 0 if enough others were logged: W^0 is always the same."""
    later = [number for number in rounds if number > 0]
    return spread_rounds(later if len(later) >= count else rounds, count)
