"""Where a round's time goes, rank by rank: what `log.profile` measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt

from cobo_dist.reports.figures.style import canvas, save
from cobo_dist.reports.grouping.groups import Group
from cobo_dist.reports.reading.events import Profile
from cobo_dist.reports.writing import write_csv

HEADER = ("method", "seed", "rank", "kind", "milliseconds_a_round", "rounds")
WARM_UP = 10
"""Rounds left out, where there are more: the first ones allocate."""
_MOST_RANKS = 16


def draw_profile(groups: Sequence[Group], path: Path) -> list[Path]:
    """Draw the mean time of a round by kind as one bar a rank, for the first profiled run of each method.

    The first `WARM_UP` rounds do not count, where there are more. Of many ranks the slowest, the fastest
    and some between are drawn; the CSV has all. Returns the files written: none where nothing was profiled.
    """
    bars: list[tuple[str, npt.NDArray[np.float64]]] = []
    rows: list[tuple[object, ...]] = []
    kinds: tuple[str, ...] = ()
    for group in groups:
        run = next((run for run in group.runs if run.profile), None)
        if run is None:
            continue
        kinds, means, count = mean_profile(run.profile)
        rows += [
            (group.label, run.seed, rank, kind, float(means[k, rank]), count)
            for rank in range(means.shape[1])
            for k, kind in enumerate(kinds)
        ]
        for rank in _ranks_to_draw(means.sum(axis=0)):
            bars.append((f"{group.title}, rank {rank}", means[:, rank]))
    if not bars:
        return []
    colours = matplotlib.colormaps["tab10"]
    with canvas(6.4, 0.24 * len(bars) + 0.9) as figure:
        axes = figure.subplots()
        places = np.arange(len(bars))
        left = np.zeros(len(bars))
        for k, kind in enumerate(kinds):
            widths = np.array([means[k] for _, means in bars])
            axes.barh(places, widths, left=left, height=0.72, color=colours(k % 10), label=kind)
            left += widths
        axes.set_yticks(places, [name for name, _ in bars])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("milliseconds a round (mean)")
        figure.legend(loc="outside right center")
        return [save(figure, path), write_csv(path.with_suffix(".csv"), HEADER, rows)]


def mean_profile(profile: Profile) -> tuple[tuple[str, ...], npt.NDArray[np.float64], int]:
    """Return the kinds, their mean milliseconds a round [kinds, ranks], and over how many rounds."""
    rounds = sorted(profile)
    counted = [r for r in rounds if r > rounds[0] + WARM_UP - 1] or rounds
    kinds = tuple(profile[rounds[-1]])
    seconds = np.array([[profile[r][kind] for kind in kinds] for r in counted])
    return kinds, 1000.0 * seconds.mean(axis=0), len(counted)


def _ranks_to_draw(totals: npt.NDArray[np.float64]) -> list[int]:
    if len(totals) <= _MOST_RANKS:
        return list(range(len(totals)))
    spread = np.linspace(0, len(totals) - 1, _MOST_RANKS).round().astype(int)
    return sorted(int(rank) for rank in np.argsort(totals)[spread])
