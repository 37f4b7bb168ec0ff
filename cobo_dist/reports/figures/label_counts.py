"""Which client has how many training examples of which label: a grid of bubbles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.ticker import MaxNLocator

from cobo_dist.reports.figures.style import DARK_GREY, GREY, canvas, save

MAX_CLIENTS = 200
"""The most clients that a figure shows, the first ones."""
_MAX_NAMED = 20  # clients, or labels, that are all named on an axis
_CELL_INCHES, _LEAST_INCHES, _MOST_INCHES = 0.3, 2.2, 9.0
_POINTS = 72  # an inch


def draw_label_counts(
    counts_nc: npt.NDArray[np.int64], names: Sequence[str], path: Path
) -> list[Path]:
    """Draw training examples by client and label, with the CSV beside it; return the files written.

    The area of a bubble is in proportion to the number of examples; the largest fills its cell.

    Args:
        counts_nc: examples of each client with each label. [n, C]
        names: of the clients; empty if they have none. [n]
        path: of the PNG.
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
    with canvas(width + 1.0, height + 0.8) as figure:
        axes = figure.add_subplot()
        areas = (0.9 * cell) ** 2 * count_m / most
        axes.scatter(client_m, label_m, s=areas, c="#0072b2", alpha=0.8, linewidths=0, zorder=3)
        axes.set_xlim(-0.6, clients - 0.4)
        axes.set_ylim(-0.6, classes - 0.4)
        axes.set_xlabel("client")
        axes.set_ylabel("label")
        axes.grid(color=GREY, linewidth=0.4, zorder=0)
        if clients <= _MAX_NAMED:
            labels = list(names) or [str(client) for client in range(clients)]
            long = max(map(len, labels)) > 3
            axes.set_xticks(range(clients), labels, rotation=90 if long else 0)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if classes <= _MAX_NAMED:
            axes.set_yticks(range(classes))
        else:
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        part = f"first {clients} of {len(counts_nc)} clients; " if len(counts_nc) > clients else ""
        title = f"{part}training examples, largest bubble: {most}"
        axes.set_title(title, fontsize="small", color=DARK_GREY)
        table = pd.DataFrame(counts_nc, columns=[f"label {label}" for label in range(classes)])
        table.insert(0, "client", list(names) or range(len(counts_nc)))
        return save(figure, path, table)
