"""Figure 2a: final accuracy against one factor of the problem at a time, a line per method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from cobo_dist.reports.figures.style import METRIC_LABELS, canvas, group_style, save, shared_legend
from cobo_dist.reports.grouping import Group, Problem
from cobo_dist.reports.grouping.settings import differing
from cobo_dist.reports.metrics import percent
from cobo_dist.reports.tables.scores import GroupResult

FACTORS = {
    "task.data_fraction": "fraction of the data",
    "task.clusters": "number of clusters",
    "task.clients_per_cluster": "clients per cluster",
}
"""The factors of the paper's Figure 2a, with the labels of their axes."""
# There is a seed for each cluster's permutation, so this list grows with the number of clusters.
_CHANGES_TOO = {"task.clusters": "task.label_seeds"}
_LOG_RATIO = 4  # of the largest to the smallest value, from which on the axis is logarithmic


def draw_factors(results: Mapping[Problem, Sequence[GroupResult]], path: Path) -> list[Path]:
    """Draw the final metric of one task's problems against each factor that varies among them.

    A panel shows the main problem and those that differ from it in that factor only. Returns the files
    written: none if no factor varies.
    """
    groups: dict[str, Group] = {}
    panels = {}
    for factor in FACTORS:
        points = _points(results, factor, groups)
        if not points.empty:
            panels[factor] = points
    if not panels:
        return []
    first = next(iter(results.values()))[0]
    with canvas(1.9 * len(panels) + 1.5, 2.2) as figure:
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, (factor, points) in zip(grid, panels.items(), strict=True):
            _draw_panel(axes, points, groups)
            axes.set_xlabel(FACTORS[factor])
        grid[0].set_ylabel(f"{first.split} {METRIC_LABELS[first.metric]}")
        shared_legend(figure, grid)
        return save(figure, path, _table(panels, groups, percent(first.metric)))


def _points(
    results: Mapping[Problem, Sequence[GroupResult]], factor: str, groups: dict[str, Group]
) -> pd.DataFrame:
    """The points of one panel by value of the factor, empty if there are no two values.

    Enters the first group of each method into `groups`: it gives the style of the method's line.
    """
    main = next(problem for problem in results if problem.main)
    family = {
        problem: float(value)
        for problem in results
        if isinstance(value := problem.values.get(factor), (int, float))
        and {*differing([problem.values, main.values])} <= {factor, _CHANGES_TOO.get(factor)}
    }
    points = []
    for problem, value in sorted(family.items(), key=lambda pair: pair[1]):
        for result in results[problem]:
            score = result.score(result.metric)
            if score is not None and np.isfinite(score[0]):
                groups.setdefault(result.group.label, result.group)
                seeds = len(result.group.scored)
                points.append((result.group.label, result.metric, factor, value, *score, seeds))
    frame = pd.DataFrame(
        points, columns=["method", "quantity", "factor", "value", "mean", "std", "seeds"]
    )
    # A single point does not show the effect of the factor, and the table has it.
    return frame[frame.groupby("method")["value"].transform("size") > 1]


def _table(
    panels: Mapping[str, pd.DataFrame], groups: Mapping[str, Group], scale: float
) -> pd.DataFrame:
    """The points of all panels as rows of a CSV, accuracies as fractions as in the other CSV files."""
    order = list(groups).index
    table = pd.concat(
        points.sort_values("method", kind="stable", key=lambda column: column.map(order))
        for points in panels.values()
    )
    table[["mean", "std"]] /= scale
    table["std"] = table["std"].astype(object).where(table["seeds"] > 1, "")
    return table


def _draw_panel(axes: Axes, points: pd.DataFrame, groups: Mapping[str, Group]) -> None:
    values = sorted(set(points["value"]))
    # Numbers of clusters usually double from run to run: equal steps on a logarithmic axis.
    if values[0] > 0 and values[-1] / values[0] >= _LOG_RATIO:
        axes.set_xscale("log")
    for method, line in points.groupby("method", sort=False):
        group = groups[str(method)]
        style = group_style(group)
        axes.errorbar(
            line["value"],
            line["mean"],
            yerr=None if line["std"].isna().all() else line["std"].fillna(0.0),
            elinewidth=0.9,
            capsize=2.0,
            marker=style.marker,
            markersize=3.8,
            markerfacecolor="none" if group.algorithm == "oracle" else None,
            **style.line,
        )
    axes.xaxis.set_major_locator(FixedLocator(values))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.margins(x=0.1)
