"""The critical-difference figure of benchmarks/bench.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from bench_tables import alike, critical_difference
from matplotlib.axes import Axes

from cobo_dist.reports.figures.style import DARK_GREY, GREY, canvas, save

_OTHER_COLOR = "#8c6d1f"  # of methods that name none


def draw(ranks: pd.DataFrame, colors: Mapping[str, str], path: Path) -> str:
    """Draw mean ranks, best first, and bars over those that do not differ; return how to read it.

    `ranks`: a row for each task and seed, a column for each of two methods or more.
    """
    means = ranks.mean().sort_values(kind="stable")
    count, blocks = len(means), len(ranks)
    difference = critical_difference(count, blocks)
    with canvas(4.6, 1.0 + 0.155 * count) as figure:
        axes = figure.subplots()
        dots = [colors.get(one) or _OTHER_COLOR for one in means.index]
        axes.hlines(range(count), 1, means, color=GREY, linewidth=0.8)
        axes.scatter(means, range(count), s=16, c=dots, zorder=3)
        _draw_groups(axes, alike(means.tolist(), difference), count)
        axes.errorbar(
            1 + difference / 2, -1.4, xerr=difference / 2, color="black", capsize=2.5, linewidth=1
        )
        axes.text(1, -1.9, f"critical difference {difference:.2f}", fontsize=7, va="bottom")
        axes.set_yticks(range(count), list(means.index))
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_ylim(count - 0.3, -3.2)
        axes.set_xticks(range(1, count + 1, max(1, round(count / 8))))
        axes.set_xlabel(f"mean rank by accuracy (1 is best), data sets x seeds = {blocks}")
        numbers = {"method": means.index, "mean_rank": means.to_numpy()}
        table = pd.DataFrame(numbers | {"blocks": blocks, "critical_difference": difference})
        save(figure, path, table)
    return (
        f"{path.name}: {count} methods, data sets x seeds = {blocks}. Mean ranks that differ by more than "
        f"{difference:.2f} differ at 0.05 (Nemenyi); bars join those that do not."
    )


def _draw_groups(axes: Axes, groups: list[tuple[int, int]], count: int) -> None:
    """Draw each group of methods that do not differ as a bar over its rows, right of all dots."""
    step = 0.03 * count
    for column, (first, last) in enumerate(groups):
        x = count + (column + 1) * step
        axes.plot([x, x], [first - 0.3, last + 0.3], color=DARK_GREY, linewidth=1.6)
