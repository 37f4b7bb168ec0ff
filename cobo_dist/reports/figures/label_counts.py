"""Which client has how many training examples of which label, and which weights would be right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import MaxNLocator

from cobo_dist.reports.figures.style import DARK_GREY, GREY, canvas, save

MAX_CLIENTS = 200
"""The most clients that a figure shows, the first ones."""
_MAX_NAMED = 20  # clients, or labels, that are all named on an axis
_CELL_INCHES, _LEAST_INCHES, _MOST_INCHES = 0.3, 2.2, 9.0
_POINTS = 72  # an inch


def draw_label_counts(
    counts_nc: npt.NDArray[np.int64],
    names: Sequence[str],
    path: Path,
    graph_mm: npt.NDArray[np.float32] | None = None,
) -> list[Path]:
    """Draw training examples by client and label, with the CSV beside it; return the files written.

    The area of a bubble is in proportion to the number of examples; the largest fills its cell.

    Args:
        counts_nc: examples of each client with each label. [n, C]
        names: of the clients; empty if they have none. [n]
        path: of the PNG.
        graph_mm: right weights of the first `MAX_CLIENTS` clients, which are drawn beside it. [m, m]
    """
    shown = counts_nc[:MAX_CLIENTS]
    clients, classes = shown.shape
    width, height = (
        float(np.clip(_CELL_INCHES * count, _LEAST_INCHES, _MOST_INCHES)) for count in shown.shape
    )
    cell = min(width / clients, height / classes) * _POINTS
    client_m, label_m = np.nonzero(shown)
    count_m = shown[client_m, label_m]
    most = int(count_m.max())
    right = 0.0 if graph_mm is None else max(height, _LEAST_INCHES) + 0.9
    with canvas(width + 1.0 + right, height + 0.8) as figure:
        beside = figure.subplots(1, 2, width_ratios=(width, right)) if right else None
        axes = figure.add_subplot() if beside is None else beside[0]
        areas = (0.9 * cell) ** 2 * count_m / most
        axes.scatter(client_m, label_m, s=areas, c="#0072b2", alpha=0.8, linewidths=0, zorder=3)
        axes.set_xlim(-0.6, clients - 0.4)
        axes.set_ylim(-0.6, classes - 0.4)
        axes.set_xlabel("client")
        axes.set_ylabel("label")
        axes.grid(color=GREY, linewidth=0.4, zorder=0)
        _tick_clients(axes.xaxis, names, clients, turned=True)
        if classes <= _MAX_NAMED:
            axes.set_yticks(range(classes))
        else:
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        part = f"first {clients} of {len(counts_nc)} clients; " if len(counts_nc) > clients else ""
        title = f"{part}training examples, largest bubble: {most}"
        axes.set_title(title, fontsize="small", color=DARK_GREY)
        if beside is not None and graph_mm is not None:
            _draw_graph(beside[1], graph_mm, names)
        table = pd.DataFrame(counts_nc, columns=[f"label {label}" for label in range(classes)])
        table.insert(0, "client", list(names) or range(len(counts_nc)))
        return save(figure, path, table)


def _draw_graph(axes: Axes, graph_mm: npt.NDArray[np.float32], names: Sequence[str]) -> None:
    """Draw the right weights, without those of clients for themselves."""
    clients = len(graph_mm)
    shown = np.ma.masked_array(graph_mm, np.eye(clients, dtype=bool))
    image = axes.imshow(shown, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set_facecolor(GREY)
    axes.grid(visible=False)
    axes.set_xlabel("client")
    _tick_clients(axes.xaxis, names, clients, turned=True)
    _tick_clients(axes.yaxis, names, clients)
    axes.set_title("right weights", fontsize="small", color=DARK_GREY)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_ticks([0.0, 0.5, 1.0], labels=["0", "0.5", "1"])
    bar.outline.set_linewidth(0.4)


def _tick_clients(axis: Axis, names: Sequence[str], clients: int, turned: bool = False) -> None:
    if clients > _MAX_NAMED:
        axis.set_major_locator(MaxNLocator(integer=True))
        return
    labels = list(names) or [str(client) for client in range(clients)]
    long = turned and max(map(len, labels)) > 3
    axis.set_ticks(range(clients), labels, rotation=90 if long else 0)
