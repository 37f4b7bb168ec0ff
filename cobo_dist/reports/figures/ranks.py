"""The critical-difference figure: mean ranks of methods over data sets and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import is_color_like

from cobo_dist.reports.comparison import LEVEL, alike, critical_difference
from cobo_dist.reports.figures.style import DARK_GREY, GREY, OTHER_COLOR, canvas, save
from cobo_dist.reports.look import points


def draw_ranks(
    ranks: pd.DataFrame, colors: Mapping[str, str], path: Path, score: str = "accuracy"
) -> list[Path]:
    """Draw mean ranks, best first, and bars over those that do not differ, with the CSV beside it.

    `ranks` are as `comparison.ranks` returns them, of two methods or more, by title; `colors` by title.
    """
    means = ranks.mean().sort_values(kind="stable")
    count, blocks = len(means), len(ranks)
    difference = critical_difference(count, blocks)
    with canvas(4.6, 1.0 + 0.155 * count) as figure:
        axes = figure.subplots()
        dots = [colors.get(str(one), "") for one in means.index]
        dots = [color if is_color_like(color) else OTHER_COLOR for color in dots]
        axes.hlines(range(count), 1, means, color=GREY, linewidth=0.8)
        axes.scatter(means, range(count), s=16, c=dots, zorder=3)
        _draw_groups(axes, alike(means.tolist(), difference), count)
        axes.errorbar(
            1 + difference / 2, -1.4, xerr=difference / 2, color="black", capsize=2.5, linewidth=1
        )
        label = f"critical difference {difference:.2f}"
        axes.text(1, -1.9, label, fontsize=points(7), va="bottom")
        axes.set_yticks(range(count), list(means.index))
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_ylim(count - 0.3, -3.2)
        axes.set_xticks(range(1, count + 1, max(1, round(count / 8))))
        axes.set_xlabel(f"mean rank by {score}, 1 is best\n(data sets x seeds: {blocks})")
        numbers = {"method": means.index, "mean_rank": means.to_numpy()}
        table = pd.DataFrame(numbers | {"blocks": blocks, "critical_difference": difference})
        return save(figure, path, table)


def rank_note(ranks: pd.DataFrame) -> str:
    """Return how to read the figure."""
    blocks, count = ranks.shape
    return (
        f"Mean ranks of {count} methods, data sets x seeds = {blocks}. Ranks that differ by more than "
        f"{critical_difference(count, blocks):.2f} differ at {LEVEL:g} (Nemenyi); bars join those that do "
        "not. Seeds of one data set are less independent than data sets."
    )


def _draw_groups(axes: Axes, groups: list[tuple[int, int]], count: int) -> None:
    """Draw each group of methods that do not differ as a bar over its rows, right of all dots."""
    step = 0.03 * count
    for column, (first, last) in enumerate(groups):
        x = count + (column + 1) * step
        axes.plot([x, x], [first - 0.3, last + 0.3], color=DARK_GREY, linewidth=1.6)
