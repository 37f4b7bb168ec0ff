"""The graph of links over the rounds: strengths, decided weights, components, alignment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cobo_dist.reports.figures.curves import HEADER, curve_rows, draw_curve
from cobo_dist.reports.figures.style import Look, canvas, round_axis, save
from cobo_dist.reports.grouping.groups import Group
from cobo_dist.reports.statistics import Curve, over_seeds, running_median
from cobo_dist.reports.writing import write_csv

_BLUE, _RED, _GREEN = (0.0, 0.447, 0.698), (0.835, 0.369, 0.0), (0.0, 0.5, 0.38)

# Panel title -> the quantities in it, with their names in the legend and their colours.
_PANELS = {
    "mean weight": {
        "within": ("within clusters", _BLUE),
        "across": ("across clusters", _RED),
        "all pairs": ("all pairs", _BLUE),
    },
    "share of weights": {"weights_at_0": ("at 0", _RED), "weights_at_1": ("at 1", _BLUE)},
    "components": {"components": ("connected components", _GREEN)},
    "alignment": {"alignment": ("inner product of drawn pairs", _GREEN)},
}


def draw_graph(group: Group, path: Path) -> list[Path]:
    """Draw how the graph of links forms, averaged over the seeds of one group, with the CSV.

    Returns the files written: none where there is nothing to draw.
    """
    curves = _curves(group)
    panels = [
        (title, {name: curves[name] for name in quantities if name in curves})
        for title, quantities in _PANELS.items()
    ]
    panels = [(title, found) for title, found in panels if found]
    if not panels:
        return []
    # The axis of weights ends where their scale of colours does.
    top = max((run.weights.top for run in group.runs if run.weights is not None), default=1.0)
    with canvas(3.5, 0.95 * len(panels) + 0.35) as figure:
        grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
        for axes, (title, found) in zip(grid, panels, strict=True):
            _draw_panel(axes, title, found, top)
            if title == "components":
                _draw_truth(axes, group)
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
        rows = [row for name in curves for row in curve_rows(group.label, name, curves[name])]
        return [save(figure, path), write_csv(path.with_suffix(".csv"), HEADER, rows)]


def _curves(group: Group) -> dict[str, Curve]:
    """The quantities of all panels that have a finite value, averaged over seeds."""
    strengths = [
        run.weights.links
        for run in group.runs
        # The mean over all pairs of weights that sum to 1 is an equal share, whatever they do.
        if run.weights is not None and not (run.weights.share and run.weights.clusters is None)
    ]
    curves: dict[str, Curve] = {}
    for name in (name for quantities in _PANELS.values() for name in quantities):
        series = [
            found[name] for found in (*strengths, *(r.rounds for r in group.runs)) if name in found
        ]
        curve = over_seeds(series)
        if curve.drawable:
            curves[name] = curve
    return curves


def _draw_panel(axes: Axes, title: str, curves: dict[str, Curve], top: float) -> None:
    for name, curve in curves.items():
        label, colour = _PANELS[title][name]
        style = Look(label, colour, "-", 1.4, 3.0)
        if title != "alignment":
            draw_curve(axes, curve, style, label)
            continue
        # One pair's inner product is noise: the line to read is its running median.
        window = max(5, len(curve.mean) // 40) | 1  # odd, so that it has a centre
        axes.plot(curve.rounds, curve.mean, color=colour, linewidth=0.6, alpha=0.3)
        smooth = running_median(curve.mean, window)
        axes.plot(
            curve.rounds,
            smooth,
            color=colour,
            linewidth=1.4,
            label=f"{label} (running median of {window})",
        )
        axes.axhline(0.0, color="#555555", linewidth=0.6, zorder=2)
        _scale_alignment(axes, curve)
    if title == "share of weights" or (title == "mean weight" and top == 1.0):
        axes.set_ylim(-0.05, 1.05)
        axes.set_yticks([0.0, 0.5, 1.0])
    elif title == "mean weight":
        axes.set_ylim(-0.05 * top, 1.05 * top)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=title == "components"))
    axes.set_ylabel(title.replace(" of ", " of\n"))


def _scale_alignment(axes: Axes, curve: Curve) -> None:
    """Cut the axis at the middle 98% of the values: one outlier would flatten all the rest."""
    known = curve.mean[np.isfinite(curve.mean)]
    low, high = (float(edge) for edge in np.percentile(known, [1.0, 99.0]))
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    axes.set_ylim(min(low, 0.0) - margin, max(high, 0.0) + margin)


def _draw_truth(axes: Axes, group: Group) -> None:
    """The number of true clusters, where the runs know them and agree."""
    counts = {
        len(np.unique(run.weights.clusters))
        for run in group.runs
        if run.weights is not None and run.weights.clusters is not None
    }
    if len(counts) == 1:
        axes.axhline(
            counts.pop(), color="#555555", linewidth=0.9, linestyle=":", label="true clusters"
        )
    axes.set_ylim(0.0, 1.12 * axes.get_ylim()[1])
