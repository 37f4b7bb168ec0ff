"""The final metric against what a client sends and receives in the whole run, a point per method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from cobo_dist.reports.figures.style import (
    METRIC_LABELS,
    canvas,
    group_style,
    log_axis,
    save,
    shared_legend,
)
from cobo_dist.reports.grouping import Group
from cobo_dist.reports.metrics import percent
from cobo_dist.reports.tables.scores import GroupResult

_LOG_RATIO = 8  # of the largest to the smallest value, from which on the axis is logarithmic


def draw_traffic(results: Sequence[GroupResult], shown: Sequence[Group], path: Path) -> list[Path]:
    """Draw the groups `shown`, with the CSV beside it. A method that sends nothing is a line across.

    Returns the files written: none unless the traffic of two methods or more is known, and one sends.
    """
    rows = [row for one in results if one.group in shown and (row := _row(one)) is not None]
    sending = [row["megabytes_a_client"] for row in rows if row["megabytes_a_client"]]
    if len(rows) < 2 or not sending:
        return []
    first = results[0]
    scale = percent(first.metric)
    with canvas(3.2, 2.6) as figure:
        axes = figure.add_subplot()
        for row in sorted(rows, key=lambda row: -row["mean"]):
            _draw_point(axes, row)
        if max(sending) / min(sending) > _LOG_RATIO:
            axes.set_xscale("log")
            axes.margins(x=0.12)
            log_axis(axes.xaxis)
        else:
            axes.set_xlim(left=0.0)
        axes.set_xlabel("MB a client sends and receives")
        axes.set_ylabel(f"{first.split} {METRIC_LABELS.get(first.metric, first.metric)}")
        shared_legend(figure, [axes])
        table = pd.DataFrame(rows).drop(columns="group")
        table[["mean", "ci95"]] /= scale  # as in the other CSV files, accuracies are fractions
        table["ci95"] = np.where(table["ci95"].isna(), "", table["ci95"].astype(object))
        return save(figure, path, table)


def _row(one: GroupResult) -> dict[str, Any] | None:
    score, up, down = (one.score(name) for name in (one.metric, "megabytes_up", "megabytes_down"))
    if score is None or up is None or down is None or not np.isfinite(score.mean):
        return None
    rounds = float(np.mean([run.last_round for run in one.group.scored]))
    return {
        "group": one.group,
        "method": one.group.label,
        "quantity": one.metric,
        "megabytes_a_client": rounds * (up.mean + down.mean),
        "mean": score.mean,
        "ci95": score.ci95,
        "seeds": len(one.group.scored),
    }


def _draw_point(axes: Axes, row: dict[str, Any]) -> None:
    group, x, y, half = row["group"], row["megabytes_a_client"], row["mean"], row["ci95"]
    style = group_style(group)
    if not x:
        label = f"{style.title} (sends nothing)"
        axes.axhline(y, label=label, color=style.color, linestyle=style.dashes, linewidth=1.2)
        return
    axes.errorbar(
        x, y, yerr=None if np.isnan(half) else half, label=style.title, color=style.color,
        linestyle="none", elinewidth=0.9, capsize=2.0, zorder=style.layer,
        **style.points | {"markersize": 5.0},
    )  # fmt: skip
