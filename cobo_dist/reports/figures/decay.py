"""The decay of Theorem 1: consensus distance and gradient norm on logarithmic axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from cobo_dist.reports.figures.curves import curve_frame
from cobo_dist.reports.figures.events import mark_events
from cobo_dist.reports.figures.style import (
    canvas,
    group_style,
    log_axis,
    save,
    shared_legend,
    side_by_side,
)
from cobo_dist.reports.grouping.groups import Group
from cobo_dist.reports.statistics import Curve, over_seeds, running_mean

_TITLES = {
    "consensus_distance": "consensus distance\nwithin clusters",
    "gradient_norm": "squared gradient norm",
}


def draw_decay(groups: Sequence[Group], path: Path) -> list[Path]:
    """Draw consensus distance and squared gradient norm on logarithmic axes, with the CSV.

    The bold lines are means over rounds 1..T, which Theorem 1 bounds by O(1/T); the faint lines are values
    of single rounds. Returns the files written: none if no run has these quantities.
    """
    panels: dict[str, dict[Group, tuple[Curve, Curve]]] = {}
    frames = []
    for quantity in _TITLES:
        for group in groups:
            series = [run.rounds[quantity] for run in group.runs if quantity in run.rounds]
            each, mean = over_seeds(series), over_seeds([running_mean(values) for values in series])
            if each.drawable and (each.mean > 0).any():
                panels.setdefault(quantity, {})[group] = (each, mean)
                frames.append(curve_frame(group.label, quantity, each))
                frames.append(curve_frame(group.label, f"{quantity}_mean_to_round", mean))
    if not panels:
        return []
    with canvas(2.9 * len(panels), 2.4) as figure:
        grid = side_by_side(figure, len(panels), 2.9)
        for axes, (quantity, curves) in zip(grid, panels.items(), strict=True):
            _draw_decay_panel(axes, curves)
            mark_events(axes, list(curves), labels_at=None)
            axes.set_title(_TITLES[quantity])
        grid[0].set_ylabel("mean over rounds 1..T (faint: at T)")
        shared_legend(figure, grid)
        return save(figure, path, pd.concat(frames))


def _draw_decay_panel(axes: Axes, curves: Mapping[Group, tuple[Curve, Curve]]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for group, (each, mean) in curves.items():
        style = group_style(group)
        # This axis has no 0: a line ends where its values reach it.
        raw = np.where(each.mean > 0, each.mean, np.nan)
        bold = np.where(mean.mean > 0, mean.mean, np.nan)
        axes.plot(each.rounds, raw, color=style.color, linewidth=0.7, alpha=0.45)
        spread = np.unique(np.geomspace(1, len(bold), 8).astype(int)) - 1  # of a logarithmic axis
        axes.plot(
            mean.rounds, bold, markevery=spread.tolist(), **style.points, **style.line
        )  # fmt: skip
    _draw_guide(axes, [mean for _, mean in curves.values() if mean.last > 0])
    axes.set_xlabel("round T")
    for axis in (axes.xaxis, axes.yaxis):
        log_axis(axis)


def _draw_guide(axes: Axes, means: Sequence[Curve]) -> None:
    """Draw a line of slope -1 under the end of the lowest curve, to compare slopes by eye."""
    lowest = min(means, key=lambda curve: curve.last, default=None)
    if lowest is None:
        return
    last = float(lowest.rounds[-1])
    rounds = np.array([max(last / 30.0, 1.0), last])
    guide = 0.4 * lowest.last * last / rounds
    axes.plot(rounds, guide, color="#333333", linestyle=":", linewidth=1.2, label="guide: 1/T")
    # Values of single rounds may fall to the smallest float, so the means set the limit.
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 0.02 * lowest.last))
