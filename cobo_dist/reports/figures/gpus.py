"""What the ranks' GPUs did over the rounds: the share of the time in which they computed, memory, power."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes

from cobo_dist.reports.figures.style import (
    DARK_GREY,
    canvas,
    client_style,
    round_axis,
    save,
    shared_legend,
)
from cobo_dist.reports.grouping import Group
from cobo_dist.reports.look import current_look

MAX_DRAWN_RANKS = 6
_MAX_MARKED_POINTS = 25  # of a line whose points all have a marker


class _Quantity(NamedTuple):
    label: str
    unit: str
    scale: float  # of the numbers of a row
    behind: str = ""  # a quantity that is drawn dotted, in the same unit


_QUANTITIES = {
    "utilisation": _Quantity("busy share", "%", 100.0),
    "allocated": _Quantity("memory", "GB", 1e-9, "reserved"),
    "power": _Quantity("power", "W", 1.0),
}
Ranks = npt.NDArray[np.float64]  # [rounds, ranks]


def draw_gpus(groups: Sequence[Group], path: Path) -> list[Path]:
    """Draw busy share, memory and power over rounds, a line a rank, for the first run of a method on GPUs.

    A quantity that no GPU reported has no panel. Of many ranks some are drawn; the CSV has all. Returns the
    files written: none if no run was on a GPU.
    """
    shown: dict[str, tuple[npt.NDArray[np.int64], dict[str, Ranks]]] = {}
    frames = []
    for group in groups:
        run = next((run for run in group.runs if run.gpus), None)
        if run is None:
            continue
        rounds = np.array(sorted(run.gpus))
        values = {
            name: np.array([run.gpus[r][name] for r in rounds]) for name in run.gpus[rounds[-1]]
        }
        shown[group.title] = rounds, values
        frames.append(_frame(rounds, values).assign(method=group.label, seed=run.seed))
    columns = [
        name
        for name in _QUANTITIES
        if any(np.isfinite(values[name]).any() for _, values in shown.values())
    ]
    if not columns:
        return []
    ranks = sorted({rank for _, values in shown.values() for rank in _ranks_to_draw(values)})
    with canvas(2.3 * len(columns), 1.5 * len(shown) + 0.4) as figure:
        across = current_look().panels(len(columns), 2.3) == len(columns)
        lines = len(shown) * (1 if across else len(columns))
        figure.set_figheight(figure.get_figheight() * lines / len(shown))
        panels = figure.subplots(lines, len(columns) if across else 1, squeeze=False)
        grid = panels.reshape(len(shown), len(columns))
        for line, (title, (rounds, values)) in zip(grid, shown.items(), strict=True):
            for axes, name in zip(line, columns, strict=True):
                _draw_panel(axes, rounds, values, name, ranks)
                round_axis(axes)
            if len(shown) > 1:
                line[0].set_title(title, loc="left")
        for axes in panels[:-1].flat:
            axes.set_xlabel("")
        for column, name in zip(grid.T, columns, strict=True):
            top = 102.0 if name == "utilisation" else max(axes.get_ylim()[1] for axes in column)
            for axes in column:
                axes.set_ylim(0.0, top)
            if behind := _QUANTITIES[name].behind:  # last in the legend
                column[-1].plot([], [], color=DARK_GREY, linestyle=":", linewidth=1.0, label=behind)
        shared_legend(figure, grid.flat)
        order = ["method", "seed", "round", "rank", *next(iter(shown.values()))[1]]
        return save(figure, path, pd.concat(frames)[order])


def _ranks_to_draw(values: Mapping[str, Ranks]) -> list[int]:
    ranks = next(iter(values.values())).shape[1]
    spread = np.linspace(0, ranks - 1, min(ranks, MAX_DRAWN_RANKS)).round().astype(int)
    return [int(rank) for rank in spread]


def _frame(rounds: npt.NDArray[np.int64], values: Mapping[str, Ranks]) -> pd.DataFrame:
    ranks = next(iter(values.values())).shape[1]
    columns = {name: of_ranks.ravel() for name, of_ranks in values.items()}
    places = {"round": rounds.repeat(ranks), "rank": np.tile(np.arange(ranks), len(rounds))}
    return pd.DataFrame(places | columns)


def _draw_panel(
    axes: Axes,
    rounds: npt.NDArray[np.int64],
    values: Mapping[str, Ranks],
    name: str,
    ranks: Sequence[int],
) -> None:
    """Draw one quantity of one run; the look of a rank follows from its place among `ranks`."""
    quantity = _QUANTITIES[name]
    marker = "o" if len(rounds) <= _MAX_MARKED_POINTS else None
    for rank in _ranks_to_draw(values):
        color, dashes = client_style(ranks.index(rank))
        axes.plot(
            rounds, values[name][:, rank] * quantity.scale, color=color, linestyle=dashes,
            linewidth=1.2, marker=marker, markersize=2.5, label=f"rank {rank}",
        )  # fmt: skip
        if quantity.behind:
            behind = values[quantity.behind][:, rank] * quantity.scale
            axes.plot(rounds, behind, color=color, linestyle=":", linewidth=1.0)
    axes.set_ylabel(f"{quantity.label} ({quantity.unit})")
