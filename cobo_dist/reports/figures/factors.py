"""Figure 2a: final accuracy against one factor of the problem at a time, a line per method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from cobo_dist.reports.figures.curves import limit_bands
from cobo_dist.reports.figures.style import (
    METRIC_LABELS,
    canvas,
    group_style,
    save,
    shared_legend,
    side_by_side,
)
from cobo_dist.reports.grouping import Problem
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
_SPREAD = ["std", "ci95"]  # over seeds
_LOG_RATIO = 4  # of the largest to the smallest value, from which on the axis is logarithmic


def draw_factors(results: Mapping[Problem, Sequence[GroupResult]], path: Path) -> list[Path]:
    """Draw the final metric of one task's problems against each factor that varies among them.

    A panel shows the main problem and those that differ from it in that factor only. Returns the files
    written: none if no factor varies.
    """
    panels = {factor: lines for factor in FACTORS if (lines := _lines(results, factor))}
    if not panels:
        return []
    first = next(iter(results.values()))[0]
    with canvas(1.9 * len(panels) + 0.3, 2.2) as figure:
        grid = side_by_side(figure, len(panels), 1.9, sharey=True)
        for axes, (factor, lines) in zip(grid, panels.items(), strict=True):
            _draw_panel(axes, lines)
            axes.set_xlabel(FACTORS[factor])
        grid[0].set_ylabel(f"{first.split} {METRIC_LABELS.get(first.metric, first.metric)}")
        table = pd.concat(line for lines in panels.values() for line in lines)
        limit_bands(grid[0], [table["mean"].to_numpy(np.float64)])
        shared_legend(figure, grid)
        # As in the other CSV files, accuracies are the fractions they were logged as.
        table[["mean", *_SPREAD]] /= percent(first.metric)
        spread = table[_SPREAD].to_numpy(object)
        table[_SPREAD] = np.where(table[["seeds"]].to_numpy() > 1, spread, "")
        return save(figure, path, table.drop(columns="group"))


def _lines(results: Mapping[Problem, Sequence[GroupResult]], factor: str) -> list[pd.DataFrame]:
    """The points of each method in one panel, by value of the factor; none if it has one value only."""
    main = next(problem for problem in results if problem.main)
    family = {
        problem: float(value)
        for problem in results
        if isinstance(value := problem.values.get(factor), (int, float))
        and {*differing([problem.values, main.values])} <= {factor, _CHANGES_TOO.get(factor)}
    }
    points = [
        (one.group, one.group.label, one.metric, factor, value, *score, len(one.group.scored))
        for problem, value in sorted(family.items(), key=lambda pair: pair[1])
        for one in results[problem]
        if (score := one.score(one.metric)) is not None and np.isfinite(score[0])
    ]
    columns = ["group", "method", "quantity", "factor", "value", "mean", *_SPREAD, "seeds"]
    frame = pd.DataFrame(points, columns=columns)
    # A single point does not show the effect of the factor, and the table has it.
    return [line for _, line in frame.groupby("method", sort=False) if len(line) > 1]


def _draw_panel(axes: Axes, lines: Sequence[pd.DataFrame]) -> None:
    values = sorted({value for line in lines for value in line["value"]})
    # Numbers of clusters usually double from run to run: equal steps on a logarithmic axis.
    if values[0] > 0 and values[-1] / values[0] >= _LOG_RATIO:
        axes.set_xscale("log")
    for line in lines:
        group = line["group"].iloc[0]
        style = group_style(group)
        axes.errorbar(
            line["value"],
            line["mean"],
            yerr=None if line["ci95"].isna().all() else line["ci95"].fillna(0.0),
            elinewidth=0.9,
            capsize=2.0,
            **style.points,
            **style.line,
        )
    axes.xaxis.set_major_locator(FixedLocator(values))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.margins(x=0.1)
