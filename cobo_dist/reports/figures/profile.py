"""Where a round's time goes, rank by rank: what `log.profile` measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd

from cobo_dist.reports.figures.style import canvas, save, shared_legend
from cobo_dist.reports.grouping import Group
from cobo_dist.reports.reading.events import Profile

WARM_UP_ROUNDS = 10
"""First rounds that are left out, if there are more: memory is allocated in them."""
_MAX_DRAWN_RANKS = 16
_HATCHES = ("", "////", "....", "xxxx", "----", "\\\\\\\\", "++++")
_TIME = "milliseconds_a_round"


def draw_profile(groups: Sequence[Group], path: Path) -> list[Path]:
    """Draw the mean time of a round by kind of work, one bar a rank, for the first profiled run of a method.

    The first `WARM_UP_ROUNDS` do not count, if there are more. Of many ranks the slowest, the fastest and
    some between are drawn; the CSV has all. Returns the files written: none if nothing was profiled.
    """
    bars: dict[str, npt.NDArray[np.float64]] = {}
    kinds: list[str] = []
    frames: list[pd.DataFrame] = []
    for group in groups:
        run = next((run for run in group.runs if run.profile), None)
        if run is None:
            continue
        means, count = mean_profile(run.profile)
        kinds = list(means.columns)
        table = means.reset_index(names="rank").melt("rank", var_name="kind", value_name=_TIME)
        table = table.sort_values("rank", kind="stable")
        frames.append(table.assign(method=group.label, seed=run.seed, rounds=count))
        for rank in _ranks_to_draw(means.sum(axis=1)):
            bars[f"{group.title}, rank {rank}"] = means.loc[rank].to_numpy(np.float64)
    if not bars:
        return []
    colors = matplotlib.colormaps["tab10"]
    with canvas(5.2, 0.24 * len(bars) + 0.9) as figure:
        axes = figure.subplots()
        places = np.arange(len(bars))
        left = np.zeros(len(bars))
        for k, kind in enumerate(kinds):
            widths = np.array([means[k] for means in bars.values()])
            axes.barh(
                places,
                widths,
                left=left,
                height=0.72,
                color=colors(k % 10),
                label=kind,
                **_hatch(k),
            )
            left += widths
        axes.set_yticks(places, list(bars))
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("milliseconds a round (mean)")
        shared_legend(figure, [axes])
        table = pd.concat(frames)[["method", "seed", "rank", "kind", _TIME, "rounds"]]
        return save(figure, path, table)


def _hatch(kind: int) -> dict[str, Any]:
    """What tells kinds of work apart without color."""
    return {"hatch": _HATCHES[kind % len(_HATCHES)], "edgecolor": "white", "linewidth": 0.3}


def mean_profile(profile: Profile) -> tuple[pd.DataFrame, int]:
    """Return the mean milliseconds a round [rank, kind], and over how many rounds."""
    first = min(profile)
    counted = [r for r in sorted(profile) if r >= first + WARM_UP_ROUNDS] or sorted(profile)
    kinds = list(profile[max(profile)])
    seconds = np.array([[profile[r][kind] for kind in kinds] for r in counted])
    return pd.DataFrame(1000.0 * seconds.mean(axis=0).T, columns=kinds), len(counted)


def _ranks_to_draw(totals: pd.Series[float]) -> list[int]:
    if len(totals) <= _MAX_DRAWN_RANKS:
        return list(range(len(totals)))
    spread = np.linspace(0, len(totals) - 1, _MAX_DRAWN_RANKS).round().astype(int)
    return sorted(int(rank) for rank in np.argsort(totals.to_numpy())[spread])
