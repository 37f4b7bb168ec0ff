"""The figures of `theory.py`, each from its table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from cobo_dist.reports.figures.style import DARK_GREY, canvas, log_axis, save, shared_legend

BLUE, RED, GREEN, PINK = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
LABELS = {
    "consensus": "consensus distance within clusters",
    "gradient": "squared gradient norm",
}
Looks = Mapping[str, Any]


def draw_rate(table: pd.DataFrame, path: Path) -> None:
    """Draw both means over T, with guides of slope -1/2 and -1."""
    looks: dict[tuple[float, str], Looks] = {
        (0.0, "learned"): {"color": BLUE, "label": "no noise"},
        (0.3, "learned"): {"color": GREEN, "label": "sigma 0.3"},
        (1.0, "learned"): {"color": RED, "label": "sigma 1"},
        (1.0, "right"): {
            "color": RED,
            "label": "sigma 1, W right from the start",
            "linestyle": "--",
        },
    }
    with canvas(5.6, 2.5) as figure:
        grid = figure.subplots(1, 2)
        for axes, quantity in zip(grid, LABELS, strict=True):
            for key, part in table.groupby(["sigma", "W"]):
                axes.plot(part["T"], part[quantity], marker="o", markersize=3, **looks[key])
            _guides(axes, table[quantity].max(), table["T"].min(), table["T"].max())
            _logarithmic(axes, "rounds T", LABELS[quantity])
        grid[0].set_ylabel("mean over rounds")
        shared_legend(figure, grid)
        _save(figure, path)


def _guides(axes: Axes, top: float, first: float, last: float) -> None:
    rounds = np.array([first, last], dtype=float)
    for slope, dashes, name in ((0.5, ":", "guide: 1/sqrt(T)"), (1.0, "-.", "guide: 1/T")):
        guide = 1.6 * top * (rounds / first) ** -slope
        axes.plot(rounds, guide, color=DARK_GREY, linestyle=dashes, linewidth=1, label=name)


def draw_rho(table: pd.DataFrame, path: Path) -> None:
    """Draw both means over rho c / L."""
    with canvas(5.6, 2.5) as figure:
        grid = figure.subplots(1, 2)
        for axes, quantity in zip(grid, LABELS, strict=True):
            for (sigma, part), color in zip(table.groupby("sigma"), (BLUE, RED), strict=True):
                name = f"sigma {sigma:g}" if sigma else "no noise"
                axes.plot(
                    part["rho c / L"],
                    part[quantity],
                    marker="o",
                    markersize=3,
                    color=color,
                    label=name,
                )
            axes.axvline(
                math.sqrt(3), color=DARK_GREY, linewidth=1, linestyle=":", label="rho c = sqrt(3) L"
            )
            _logarithmic(axes, "rho c / L", LABELS[quantity])
        grid[0].set_ylabel("mean over rounds")
        shared_legend(figure, grid)
        _save(figure, path)


def draw_m(table: pd.DataFrame, path: Path) -> None:
    """Draw both means, and W between the two kinds of clients of a cluster, over M^2."""
    panels = {
        "consensus": LABELS["consensus"],
        "gradient": LABELS["gradient"],
        "W between kinds": "W between kinds, at the end",
    }
    looks = {"other sizes": BLUE, "other axes": RED}
    with canvas(7.2, 2.6) as figure:
        grid = figure.subplots(1, 3)
        for axes, (quantity, label) in zip(grid, panels.items(), strict=True):
            for (kind, sigma), part in table.groupby(["curvatures", "sigma"]):
                name = f"{kind}, " + (f"sigma {sigma:g}" if sigma else "no noise")
                dashes = "--" if sigma else "-"
                axes.plot(
                    part["M^2"],
                    part[quantity],
                    dashes,
                    marker="o",
                    markersize=3,
                    color=looks[kind],
                    label=name,
                )
            for m_squared, style in ((0.2, ":"), (1.0, "-.")):
                name = "M² = 1/5" if m_squared < 1 else "M² = 1"
                axes.axvline(m_squared, color=DARK_GREY, linewidth=1, linestyle=style, label=name)
            axes.set_xlabel("M²")
            axes.set_title(label)
            if quantity == "consensus":
                axes.set_yscale("log")
                log_axis(axes.yaxis)
            else:
                axes.set_ylim(bottom=0)
        grid[0].set_ylabel("mean over rounds")
        shared_legend(figure, grid)
        _save(figure, path)


def draw_coupling(table: pd.DataFrame, path: Path) -> None:
    """Draw both means over rho, explicit and capped."""
    with canvas(5.6, 2.5) as figure:
        grid = figure.subplots(1, 2)
        for axes, (quantity, label) in zip(grid, LABELS.items(), strict=True):
            for (kind, part), color in zip(table.groupby("coupling"), (BLUE, RED), strict=True):
                axes.plot(
                    part["rho c / L"], part[quantity].where(np.isfinite(part[quantity])),
                    marker="o", markersize=3, color=color, label=kind,
                )  # fmt: skip
            explicit = table[table["coupling"] == "explicit"]
            diverged = explicit[~np.isfinite(explicit["consensus"])]["rho c / L"]
            if len(diverged):
                axes.axvspan(
                    diverged.min(), diverged.max(), color=RED, alpha=0.12, label="explicit diverges"
                )
            axes.axvline(
                math.sqrt(3), color=DARK_GREY, linewidth=1, linestyle=":", label="rho c = sqrt(3) L"
            )
            _logarithmic(axes, "rho c / L", label)
        grid[0].set_ylabel("mean over rounds")
        shared_legend(figure, grid)
        _save(figure, path)


def _logarithmic(axes: Axes, x: str, title: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_title(title)
    for axis in (axes.xaxis, axes.yaxis):
        log_axis(axis)


def _save(figure: Any, path: Path) -> None:
    _, table = save(figure, path, pd.DataFrame())
    table.unlink()  # the printed table has the numbers


DRAWN: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    "rate": draw_rate, "rho": draw_rho, "m": draw_m, "coupling": draw_coupling,
}  # fmt: skip
