"""Clients as points: color and shape by cluster, numbers beside or in them, none on top of another.

Shapes: m clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from cobo_dist.reports.figures.style import DARK_GREY, client_style
from cobo_dist.reports.look import points
from cobo_dist.reports.reading.graph import Graph

_SHAPES = "osD^vPX"  # 7 of them and 6 colors: 42 clusters all differ
_LARGER = {"^": 1.3, "v": 1.3, "P": 1.25, "X": 1.25}  # shapes with less space for a number
_MIDDLE = {"^": -0.12, "v": 0.12}  # the place of a number, in widths
_HATCHES = ("", "////", "....", "xxxx", "oo")
_ALONE = "#b0b0b0"  # where clusters are unknown, a client without links
_MAX_LEGEND = 12  # clusters that a legend lists
_MAX_LABELED = 60  # clients whose numbers are drawn
_MAX_BESIDE = 24  # clients whose numbers are beside their points
_LEAST_LABELED = 9  # points (1/72 inch) of a point that has its number inside
_SHORT = 3  # letters of a name that fits into a point
_COLORS = 6
_MAX_MOVED, _MOVES = 200, 60  # clients that are moved apart, and steps
_GOLDEN_ANGLE = np.pi * (3.0 - np.sqrt(5.0))

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Look:
    """How the clients of one cluster look, as points and as an area, and its name in a legend."""

    title: str
    color: str
    shape: str
    hatch: str = ""


def looks_of(graph: Graph) -> tuple[Ints, list[Look]]:
    """Return which look each client has [m], and the looks: by true cluster or, if unknown, by group found.

    Groups of one client have one look together, the last.
    """
    if graph.clusters is not None:
        values, of_m = np.unique(graph.clusters, return_inverse=True)
        return of_m.reshape(-1), [_look(k, f"cluster {value}") for k, value in enumerate(values)]
    sizes = np.bincount(graph.label_m)
    together = np.flatnonzero(sizes > 1)
    of_group = np.full(len(sizes), len(together))
    of_group[together] = np.arange(len(together))
    looks = [_look(k, f"group {k}") for k in range(len(together))]
    if len(together) < len(sizes):
        looks.append(Look("alone", _ALONE, "o"))
    return of_group[graph.label_m], looks


def _look(k: int, title: str) -> Look:
    hatch = _HATCHES[k // _COLORS % len(_HATCHES)]
    return Look(title, client_style(k)[0], _SHAPES[k % len(_SHAPES)], hatch)


def legend_handles(looks: Sequence[Look], areas: bool = False) -> list[Artist]:
    """Return what a legend shows, of points or areas; nothing where there is one look only, or too many."""
    if not 1 < len(looks) <= _MAX_LEGEND:
        return []
    if areas:
        return [Patch(**area(look), label=look.title) for look in looks]
    return [
        Line2D(
            [], [], linestyle="none", marker=look.shape, color=look.color, markersize=5,
            markeredgecolor="white", markeredgewidth=0.5, label=look.title,
        )
        for look in looks
    ]  # fmt: skip


def area(look: Look) -> dict[str, Any]:
    """Return keyword arguments of matplotlib for an area of a cluster."""
    return {"facecolor": look.color, "hatch": look.hatch, "edgecolor": "white", "linewidth": 0.0}


def draw_points(axes: Axes, xy_m2: Floats, graph: Graph, size: float) -> None:
    """Draw the clients at their places, `size` points wide, with their numbers or names if few.

    Short ones are in the points if these are large enough, others beside them.
    """
    of_m, looks = looks_of(graph)
    for k, look in enumerate(looks):
        here = xy_m2[of_m == k]
        width = size * _LARGER.get(look.shape, 1.0)
        axes.scatter(
            here[:, 0], here[:, 1], s=width**2, c=look.color, marker=look.shape, zorder=4,
            edgecolors="white", linewidths=0.5,
        )  # fmt: skip
    inside = size >= _LEAST_LABELED and max(map(len, graph.labels)) <= _SHORT
    if len(xy_m2) > (_MAX_LABELED if inside else _MAX_BESIDE):
        return
    for (x, y), name, k in zip(xy_m2.tolist(), graph.labels, of_m.tolist(), strict=True):
        color = ink(looks[k].color) if inside else DARK_GREY
        above = _MIDDLE.get(looks[k].shape, 0.0) if inside else 0.55
        # A name may hold a $.
        axes.annotate(
            name, (x, y), xytext=(0, above * size), textcoords="offset points",
            fontsize=points(6), color=color, ha="center", va="center_baseline" if inside else "bottom",
            zorder=5, parse_math=False,
        )  # fmt: skip


def ink(color: str) -> str:
    """Black or white, whichever is easier to read on a color."""
    red, green, blue = to_rgb(color)
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.6 else "black"


def apart(xy_m2: Floats, spacing: float) -> Floats:
    """Return places of clients moved as little as it takes that none is on top of another. [m, 2]

    They are nearly `spacing` from each other then; many clients stay where they are.

    >>> moved = apart(np.zeros((2, 2)), 1.0)
    >>> float(np.hypot(*(moved[0] - moved[1])).round(2))
    1.0
    """
    count = len(xy_m2)
    if count > _MAX_MOVED:
        return xy_m2
    angle = np.arange(count) * _GOLDEN_ANGLE  # clients at one place need a direction each
    moved = xy_m2 + 1e-3 * spacing * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    for _ in range(_MOVES):
        away = moved[:, None] - moved  # [m, m, 2]
        distance = np.hypot(away[..., 0], away[..., 1])
        np.fill_diagonal(distance, spacing)
        short = np.maximum(spacing - distance, 0.0)
        if not short.any():
            break
        moved += ((0.5 * short / np.maximum(distance, 1e-12))[..., None] * away).sum(axis=1)
    return moved
