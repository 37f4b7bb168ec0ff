"""The graph of links over the rounds: strengths, decided weights, components, alignment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cobo_dist.reports.figures.curves import curve_frame, draw_curve, limit_bands
from cobo_dist.reports.figures.events import mark_events
from cobo_dist.reports.figures.style import DARK_GREY, Dashes, LineStyle, canvas, round_axis, save
from cobo_dist.reports.grouping import Group
from cobo_dist.reports.statistics import Curve, over_seeds, running_median

_BLUE, _RED, _GREEN = (0.0, 0.447, 0.698), (0.835, 0.369, 0.0), (0.0, 0.5, 0.38)
_LOOKS: tuple[tuple[Dashes, str], ...] = (
    ("-", "o"), ((0, (5.0, 1.5)), "s"), ((0, (1.2, 1.2)), "^"),
)  # fmt: skip
"""Dashes and markers of the quantities of a panel, which has three at most."""

# Panel title -> the quantities in it, with their names in the legend and their colors.
_PANELS = {
    "mean weight": {
        "within": ("within clusters", _BLUE),
        "across": ("across clusters", _RED),
        "all pairs": ("all pairs", _BLUE),
    },
    "links": {
        "link_accuracy": ("right", _GREEN),
        "adjusted_rand": ("adjusted Rand index", _BLUE),
    },
    "share of weights": {"weights_at_0": ("at 0", _RED), "weights_at_1": ("at 1", _BLUE)},
    "components": {"components": ("connected components", _GREEN)},
    "alignment": {"alignment": ("inner product of drawn pairs", _GREEN)},
}


def draw_graph(group: Group, path: Path) -> list[Path]:
    """Draw how the graph of links forms, averaged over the seeds of one group, with the CSV.

    Returns the files written: none if there is nothing to draw.
    """
    curves = _curves(group)
    panels = [
        (title, {name: curves[name] for name in quantities if name in curves})
        for title, quantities in _PANELS.items()
    ]
    panels = [(title, found) for title, found in panels if found]
    if not panels:
        return []
    # The axis of weights ends where their color scale does.
    top = max((run.weights.top for run in group.runs if run.weights is not None), default=1.0)
    with canvas(3.5, 0.95 * len(panels) + 0.35) as figure:
        grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
        for axes, (title, found) in zip(grid, panels, strict=True):
            _draw_panel(axes, title, found, top)
            mark_events(axes, [group], labels_at=0.0 if axes is grid[0] else None)
            if title == "components":
                _draw_true_clusters(axes, group)
            handles, labels = axes.get_legend_handles_labels()
            axes.legend(
                handles,
                labels,
                loc="lower right",
                bbox_to_anchor=(1.0, 0.95),
                ncols=len(labels),
                borderaxespad=0.0,
                columnspacing=1.2,
            )
        round_axis(grid[-1])
        figure.align_ylabels(list(grid))
        frames = [curve_frame(group.label, name, curve) for name, curve in curves.items()]
        return save(figure, path, pd.concat(frames))


def _curves(group: Group) -> dict[str, Curve]:
    """The quantities of all panels that have a finite value, averaged over seeds."""
    sources = [
        run.weights.links
        for run in group.runs
        # The mean over all pairs of weights that sum to 1 is always an equal share.
        if run.weights is not None and not (run.weights.share and run.weights.clusters is None)
    ]
    sources += [run.rounds for run in group.runs]
    names = [name for quantities in _PANELS.values() for name in quantities]
    curves = {name: over_seeds([one[name] for one in sources if name in one]) for name in names}
    return {name: curve for name, curve in curves.items() if curve.drawable}


def _draw_panel(axes: Axes, title: str, curves: dict[str, Curve], top: float) -> None:
    for k, (name, curve) in enumerate(curves.items()):
        label, color = _PANELS[title][name]
        if title != "alignment":
            dashes, marker = _LOOKS[k]
            draw_curve(axes, curve, LineStyle(label, color, dashes, 1.4, 3.0, marker))
            continue
        # The inner product of one pair is noise, so a running median is drawn in bold.
        window = max(5, len(curve.mean) // 40) | 1  # odd, so that it has a center
        axes.plot(curve.rounds, curve.mean, color=color, linewidth=0.6, alpha=0.3)
        axes.plot(
            curve.rounds,
            running_median(curve.mean, window),
            color=color,
            linewidth=1.4,
            label=f"{label} (running median of {window})",
        )
        axes.axhline(0.0, color=DARK_GREY, linewidth=0.6, zorder=2)
        _limit_alignment(axes, curve)
    if title == "links":
        axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
    elif title == "share of weights" or (title == "mean weight" and top == 1.0):
        axes.set_ylim(-0.05, 1.05)
        axes.set_yticks([0.0, 0.5, 1.0])
    elif title == "mean weight":
        axes.set_ylim(-0.05 * top, 1.05 * top)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
    else:
        if title == "components":
            limit_bands(axes, [curve.mean for curve in curves.values()])
        axes.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=title == "components"))
    axes.set_ylabel(title.replace(" of ", " of\n"))


def _limit_alignment(axes: Axes, curve: Curve) -> None:
    """Limit the axis to the middle 98% of the values: with an outlier, all others would look flat."""
    known = curve.mean[np.isfinite(curve.mean)]
    low, high = (float(edge) for edge in np.percentile(known, [1.0, 99.0]))
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    axes.set_ylim(min(low, 0.0) - margin, max(high, 0.0) + margin)


def _draw_true_clusters(axes: Axes, group: Group) -> None:
    """Draw the number of true clusters, if the runs know it and agree."""
    counts = {
        len(np.unique(run.weights.clusters))
        for run in group.runs
        if run.weights is not None and run.weights.clusters is not None
    }
    top = axes.get_ylim()[1]
    if len(counts) == 1:
        (true,) = counts
        top = max(top, true)
        axes.axhline(true, color=DARK_GREY, linewidth=0.9, linestyle=":", label="true clusters")
    axes.set_ylim(0.0, 1.12 * top)
