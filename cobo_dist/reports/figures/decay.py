"""The decay of Theorem 1: consensus distance and gradient norm on logarithmic axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from cobo_dist.reports.figures.curves import HEADER, curve_rows
from cobo_dist.reports.figures.style import canvas, log_axis, look, save
from cobo_dist.reports.grouping.groups import Group
from cobo_dist.reports.statistics import Curve, over_seeds, running_mean
from cobo_dist.reports.writing import write_csv

_DECAYS = {
    "consensus_distance": "consensus distance within clusters",
    "gradient_norm": "squared gradient norm",
}


def draw_decay(groups: Sequence[Group], path: Path) -> list[Path]:
    """Draw consensus distance and squared gradient norm on logarithmic axes, with the CSV.

    Bold is the mean over rounds 1..T, the quantity that Theorem 1 bounds by O(1/T); faint the
    value of each round. Returns the files written: none where no run has these quantities.
    """
    panels: dict[str, dict[Group, tuple[Curve, Curve]]] = {}
    rows: list[tuple[object, ...]] = []
    for quantity in _DECAYS:
        for group in groups:
            series = [run.rounds[quantity] for run in group.runs if quantity in run.rounds]
            each, mean = over_seeds(series), over_seeds([running_mean(values) for values in series])
            if each.drawable and (each.mean > 0).any():
                panels.setdefault(quantity, {})[group] = (each, mean)
                rows += curve_rows(group.label, quantity, each)
                rows += curve_rows(group.label, f"{quantity}_mean_to_round", mean)
    if not panels:
        return []
    with canvas(2.9 * len(panels) + 1.2, 2.4) as figure:
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (quantity, curves) in zip(grid, panels.items(), strict=True):
            _draw_decay_panel(axes, curves)
            axes.set_title(_DECAYS[quantity])
        grid[0].set_ylabel("mean over rounds 1..T (faint: at T)")
        handles: dict[str, Artist] = {}
        for axes in grid:
            found, labels = axes.get_legend_handles_labels()
            handles |= dict(zip(labels, found, strict=True))
        figure.legend(list(handles.values()), list(handles), loc="outside right center")
        return [save(figure, path), write_csv(path.with_suffix(".csv"), HEADER, rows)]


def _draw_decay_panel(axes: Axes, curves: Mapping[Group, tuple[Curve, Curve]]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for group, (each, mean) in curves.items():
        style = look(group)
        # A value that has reached 0 exactly has no place on this axis: the line ends there.
        raw = np.where(each.mean > 0, each.mean, np.nan)
        bold = np.where(mean.mean > 0, mean.mean, np.nan)
        axes.plot(each.rounds, raw, color=style.colour, linewidth=0.7, alpha=0.45)
        axes.plot(
            mean.rounds,
            bold,
            label=style.title,
            color=style.colour,
            linestyle=style.dashes,
            linewidth=style.width,
            zorder=style.layer,
            marker="o" if len(bold) == 1 else None,
        )
    _draw_guide(axes, [mean for _, mean in curves.values() if mean.last > 0])
    axes.set_xlabel("round T")
    for axis in (axes.xaxis, axes.yaxis):
        log_axis(axis)


def _draw_guide(axes: Axes, means: Sequence[Curve]) -> None:
    """A line of slope -1 under the end of the lowest curve, to compare slopes by eye."""
    lowest = min(means, key=lambda curve: curve.last, default=None)
    if lowest is None:
        return
    last = float(lowest.rounds[-1])
    rounds = np.array([max(last / 30.0, 1.0), last])
    guide = 0.4 * lowest.last * last / rounds
    axes.plot(rounds, guide, color="#333333", linestyle=":", linewidth=1.2, label="guide: 1/T")
    # The values of single rounds may decay to the smallest float; the axis follows the means.
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 0.02 * lowest.last))
