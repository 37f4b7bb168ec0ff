"""Figure 2a: final accuracy against one factor of the problem at a time, a line per method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from cobo_dist.reports.figures.style import canvas, look, save
from cobo_dist.reports.grouping.groups import Group, differing
from cobo_dist.reports.grouping.problems import Problem
from cobo_dist.reports.tables.scores import Row, Score, percent
from cobo_dist.reports.writing import write_csv

FACTORS = {
    "task.data_fraction": "fraction of the data",
    "task.clusters": "number of clusters",
    "task.clients_per_cluster": "clients per cluster",
}
# A seed for each cluster's permutation: the list grows with the number of clusters.
_FOLLOWS = {"task.clusters": "task.label_seeds"}
_NAMES = {"accuracy": "accuracy (%)", "perplexity": "perplexity", "loss": "loss"}

Points = dict[float, tuple[Group, Score, int]]
"""Value of the factor -> the group there, its score, and its number of seeds."""


def draw_factors(results: Mapping[Problem, Sequence[Row]], path: Path) -> list[Path]:
    """Draw the final metric of one task's problems against each factor that varies among them.

    A panel holds the main problem and those that differ from it in that factor alone. Returns the
    files written: none where no factor varies.
    """
    panels = {factor: found for factor in FACTORS if (found := _panel(results, factor))}
    if not panels:
        return []
    row = next(iter(results.values()))[0]
    with canvas(1.9 * len(panels) + 1.5, 2.2) as figure:
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, (factor, lines) in zip(grid, panels.items(), strict=True):
            _draw_panel(axes, lines)
            axes.set_xlabel(FACTORS[factor])
        grid[0].set_ylabel(f"{row.split} {_NAMES[row.metric]}")
        handles: dict[str, Artist] = {}
        for axes in grid:
            found, labels = axes.get_legend_handles_labels()
            handles |= dict(zip(labels, found, strict=True))
        figure.legend(list(handles.values()), list(handles), loc="outside right center")
        image = save(figure, path)
    # As in the other CSVs, accuracies are the fractions they were logged as.
    scale = percent(row.metric)
    rows = [
        (label, row.metric, factor, value, mean / scale, std / scale if seeds > 1 else None, seeds)
        for factor, lines in panels.items()
        for label, points in lines.items()
        for value, (_, (mean, std), seeds) in points.items()
    ]
    header = ("method", "quantity", "factor", "value", "mean", "std", "seeds")
    return [image, write_csv(path.with_suffix(".csv"), header, rows)]


def _panel(results: Mapping[Problem, Sequence[Row]], factor: str) -> dict[str, Points]:
    """The lines of one panel by method, or none where the factor has a single value."""
    main = next(problem for problem in results if problem.main)
    family = {
        problem: float(value)
        for problem in results
        if isinstance(value := problem.values.get(factor), (int, float))
        and {*differing([problem.values, main.values])} <= {factor, _FOLLOWS.get(factor)}
    }
    if len(family) < 2:
        return {}
    lines: dict[str, Points] = {}
    for problem, value in sorted(family.items(), key=lambda pair: pair[1]):
        for row in results[problem]:
            score = row.scores.get(row.metric)
            if score is not None and np.isfinite(score[0]):
                points = lines.setdefault(row.group.label, {})
                points[value] = (row.group, score, len(row.group.scored))
    # A single point says nothing of the factor, and the table has it.
    return {label: points for label, points in lines.items() if len(points) > 1}


def _draw_panel(axes: Axes, lines: Mapping[str, Points]) -> None:
    values = sorted({value for points in lines.values() for value in points})
    # Numbers of clusters double from run to run: equal steps on a logarithmic axis.
    if values[0] > 0 and values[-1] / values[0] >= 4:
        axes.set_xscale("log")
    for points in lines.values():
        group = next(iter(points.values()))[0]
        style = look(group)
        stds = [std for _, (_, std), _ in points.values()]
        axes.errorbar(
            list(points),
            [mean for _, (mean, _), _ in points.values()],
            yerr=None if np.isnan(stds).all() else np.nan_to_num(stds),
            label=style.title,
            color=style.colour,
            linestyle=style.dashes,
            linewidth=style.width,
            elinewidth=0.9,
            capsize=2.0,
            marker=style.marker,
            markersize=3.8,
            markerfacecolor="none" if group.algorithm == "oracle" else None,
            zorder=style.layer,
        )
    axes.xaxis.set_major_locator(FixedLocator(values))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.margins(x=0.1)
