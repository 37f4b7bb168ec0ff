"""Virtual time (`clock.name=virtual`): curves over virtual seconds, and who does what at first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection

from cobo_dist.reports.figures.curves import curve_frame, draw_curve, limit_bands
from cobo_dist.reports.figures.style import METRIC_LABELS, canvas, group_style, save, shared_legend
from cobo_dist.reports.grouping import Group
from cobo_dist.reports.metrics import mean_over_clients, percent, problem_split
from cobo_dist.reports.reading.events import Timeline, virtual_seconds
from cobo_dist.reports.statistics import Curve, over_seeds

MAX_CLIENTS = 24
"""Clients that a space-time figure has, from 0."""
MAX_UNITS = 16.0
"""It ends after so many times the shortest work."""


def draw_over_seconds(groups: Sequence[Group], metric: str, path: Path) -> list[Path]:
    """Draw the mean metric over clients against virtual seconds, with the CSV beside it.

    A point is the mean over seeds of one round, at the mean of the seeds' virtual seconds. Returns the files
    written: none if no run has virtual time and a finite value.
    """
    split = problem_split(groups)
    found: dict[Group, tuple[Curve, Curve]] = {}
    for group in groups:
        runs = [(mean_over_clients(run, split, metric), virtual_seconds(run)) for run in group.runs]
        runs = [({r: v for r, v in values.items() if r in at}, at) for values, at in runs]
        curve = over_seeds([values for values, _ in runs])
        if curve.drawable:
            found[group] = curve, over_seeds([{r: at[r] for r in values} for values, at in runs])
    if not found:
        return []
    with canvas(3.2, 2.6) as figure:
        axes = figure.add_subplot()
        for group in sorted(found, key=lambda group: -np.nan_to_num(found[group][0].last)):
            curve, seconds = found[group]
            draw_curve(axes, curve, group_style(group), percent(metric), at=seconds.mean)
        limit_bands(axes, [percent(metric) * curve.mean for curve, _ in found.values()])
        axes.set_xlabel("virtual seconds")
        axes.set_xlim(left=0)
        axes.set_ylabel(f"{split} {METRIC_LABELS.get(metric, metric)}")
        shared_legend(figure, [axes])
        frames = [
            curve_frame(group.label, metric, curve).assign(virtual_seconds=seconds.mean)
            for group, (curve, seconds) in found.items()
        ]
        return save(figure, path, pd.concat(frames))


def draw_space_time(timeline: Timeline, path: Path, title: str = "") -> list[Path]:
    """Draw what clients do in the first rounds: clients down, virtual seconds across.

    Dark bars: a client works; light, hatched ones: it waits; lines between points: two clients meet at the
    end of the round. Returns the files written: none without a timeline.
    """
    table = spans(timeline)
    if table.empty:
        return []
    works = table[table["does"] == "works"]
    end = min(table["end"].max(), MAX_UNITS * float((works["end"] - works["begin"]).min()))
    table = table[table["begin"] < end - 1e-9]
    clients = int(table["client"].max()) + 1
    with canvas(5.6, 0.9 + 0.2 * clients) as figure:
        axes = figure.add_subplot()
        looks: Mapping[str, Mapping[str, Any]] = {
            "works": {"facecolor": "#8c8c8c", "edgecolor": "white"},
            "waits": {"facecolor": "#f2f2f2", "edgecolor": "#a0a0a0", "hatch": "////"},
        }
        for does, look in looks.items():
            some = table[table["does"] == does]
            axes.barh(
                some["client"], some["end"] - some["begin"], left=some["begin"], height=0.62,
                linewidth=0.6, label=does, **look,
            )  # fmt: skip
        met = table[table["does"] == "meets"]
        # Pairs that meet at one time stand side by side, since their lines would cover each other.
        each = met.groupby("end")["client"]
        apart = np.minimum(0.012 * end, 0.7 * (met["end"] - met["begin"]) / each.transform("size"))
        at = (met["end"] - apart * (each.cumcount() + 0.7)).to_numpy(np.float64)
        lines = np.stack([at, met["client"], at, met["other"]], axis=1).reshape(-1, 2, 2)
        axes.add_collection(LineCollection(list(lines), colors="black", linewidths=0.8, zorder=4))
        points = lines.reshape(-1, 2)
        axes.plot(
            points[:, 0], points[:, 1], "o", color="black", markersize=2.6, zorder=5, label="meets"
        )
        axes.set_xlim(0, end)
        axes.set_ylim(clients - 0.5, -0.5)
        axes.set_yticks(range(clients))
        axes.grid(visible=False)
        axes.set_xlabel("virtual seconds")
        axes.set_ylabel("client")
        if title:
            axes.set_title(title, loc="left")
        shared_legend(figure, [axes])
        return save(figure, path, table)


def spans(timeline: Timeline) -> pd.DataFrame:
    """Return what each client does, from begin to end in virtual seconds.

    A client meets another at the end of a round; `other` says which.
    """
    began: dict[int, float] = {}
    found: list[tuple[int, str, float, float, object]] = []
    before = 0.0
    for _, row in sorted(timeline.items()):
        now = row.virtual_seconds
        began |= dict.fromkeys((i for i in row.begins if i < MAX_CLIENTS), before)
        for i, work in zip(row.acts, row.work, strict=True):
            if i in began:
                begin = began.pop(i)
                until = min(begin + work, now)
                found.append((i, "works", begin, until, ""))
                if until < now - 1e-9 * max(1.0, now):
                    found.append((i, "waits", until, now, ""))
        found += [(i, "waits", before, now, "") for i in row.waits if i < MAX_CLIENTS]
        found += [(i, "meets", before, now, j) for i, j in row.met if max(i, j) < MAX_CLIENTS]
        before = now
    # Work that does not end in these rounds.
    found += [(i, "works", begin, before, "") for i, begin in began.items() if begin < before]
    return pd.DataFrame(found, columns=["client", "does", "begin", "end", "other"])
