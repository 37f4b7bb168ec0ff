"""How stable the graph of links is: what changes from one snapshot of W to the next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from cobo_dist.reports.figures.curves import curve_frame, draw_curve
from cobo_dist.reports.figures.events import mark_events
from cobo_dist.reports.figures.style import LineStyle, canvas, round_axis, save
from cobo_dist.reports.grouping import Group
from cobo_dist.reports.reading.graph import stability
from cobo_dist.reports.statistics import Curve, over_seeds

SIZE = (3.5, 2.3)
"""Inches of the figure."""

_BLUE, _RED, _GREEN = (0.0, 0.447, 0.698), (0.835, 0.369, 0.0), (0.0, 0.5, 0.38)
_STYLES = {
    name: LineStyle(title, color, dashes, 1.4, layer, marker)
    for name, title, color, dashes, layer, marker in (
        ("rand_truth", "adjusted Rand, groups and true clusters", _GREEN, "-", 3.0, "o"),
        ("rand_previous", "adjusted Rand, groups and those before", _BLUE, (0, (5, 1.5)), 3.2, "s"),
        ("links_changed", "share of links changed", _RED, (0, (1.2, 1.2)), 3.4, "^"),
    )
}


def stability_curves(group: Group) -> dict[str, Curve]:
    """Return the quantities of `reading.graph.stability` that have a value, averaged over seeds."""
    found = [stability(run.weights) for run in group.runs if run.weights is not None]
    curves = {name: over_seeds([one[name] for one in found if name in one]) for name in _STYLES}
    return {name: curve for name, curve in curves.items() if curve.drawable}


def draw_stability(group: Group, path: Path) -> list[Path]:
    """Draw how the graph changes over the rounds, averaged over the seeds of one group, with the CSV.

    Returns the files written: none where there is one snapshot only.
    """
    curves = stability_curves(group)
    if not curves.keys() - {"rand_truth"}:
        return []
    with canvas(*SIZE) as figure:
        axes = figure.add_subplot()
        plot_stability(axes, curves)
        mark_events(axes, [group])
        frames = [curve_frame(group.label, name, curve) for name, curve in curves.items()]
        return save(figure, path, pd.concat(frames))


def plot_stability(axes: Axes, curves: Mapping[str, Curve]) -> None:
    """Draw the curves into axes."""
    for name, curve in curves.items():
        draw_curve(axes, curve, _STYLES[name])
    round_axis(axes)
    axes.set_ylim(min(-0.04, axes.get_ylim()[0]), 1.04)
    axes.set_ylabel("agreement, share")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=1)
