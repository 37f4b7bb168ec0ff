"""Clients as points in the plane: their models by principal components, and W by spectral embedding.

Shapes: m clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes

from cobo_dist.errors import ConfigError
from cobo_dist.maths.embedding import principal_components, spectral_embedding
from cobo_dist.reports.figures.clients import apart, draw_points, legend_handles, looks_of
from cobo_dist.reports.figures.style import canvas, save
from cobo_dist.reports.reading.graph import Graph
from cobo_dist.reports.reading.models import read_gram

MAX_MAPPED = 2000
"""The most clients on a map: its time grows with the cube of their number."""
_POINT = 10.0  # points (1/72 inch) across
_PANEL = 2.5  # inches
_LEAST_SPAN = 0.2  # of an axis, of the longer one: an axis that says nothing is not stretched
_MARGIN = 0.1  # of the span, on either side


@dataclass(frozen=True, eq=False)
class Panel:
    """One map: who is where, and what the axes are."""

    kind: str  # models or weights
    title: str
    graph: Graph  # of the clients on the map
    xy_m2: npt.NDArray[np.float64]
    axes: tuple[str, str]


def map_of_models(folder: Path, graph: Graph, most: int | None = None) -> Panel:
    """Place clients by their saved models, of which at most `most` bytes are read (None: all).

    Raises:
        ConfigError: fewer than two clients have a model, or they cannot be placed; the message says why.
    """
    _check_count(graph)
    found, gram = read_gram(folder, graph.members.tolist(), most)
    xy, shares = principal_components(gram)
    if not shares.any():
        raise ConfigError("the models of all clients are equal, so a map of them shows one point")
    axes = tuple(f"component {k + 1} ({share:.0%})" for k, share in enumerate(shares))
    place = np.searchsorted(graph.members, found)
    return Panel(
        "models", "models, principal components", graph.only(place), xy, (axes[0], axes[1])
    )


def map_of_weights(graph: Graph) -> Panel:
    """Place clients by W.

    Raises:
        ConfigError: all weights between two clients are equal, or there are fewer than three clients.
    """
    _check_count(graph)
    strength_mm = graph.strength_mm
    off = strength_mm[~np.eye(len(strength_mm), dtype=bool)]
    if len(graph.members) < 3 or np.ptp(off) == 0:
        which = (
            "fewer than three clients" if len(graph.members) < 3 else f"all weights {off[0]:.3g}"
        )
        raise ConfigError(f"a map of W has nothing to show: {which}")
    order = np.empty(len(off), dtype=np.int64)
    by_tree = graph.label_m[graph.order]
    _, first = np.unique(by_tree, return_index=True)
    order = np.argsort(np.argsort(first))[graph.label_m]
    xy = spectral_embedding(strength_mm, order)
    return Panel(
        "weights",
        "W, spectral embedding",
        graph,
        xy,
        ("spectral coordinate 1", "spectral coordinate 2"),
    )


def _check_count(graph: Graph) -> None:
    if len(graph.members) > MAX_MAPPED:
        raise ConfigError(
            f"the run has {len(graph.members)} clients, and a map shows at most {MAX_MAPPED}"
        )


def map_size(panels: Sequence[Panel]) -> tuple[float, float]:
    """Return the inches of a figure of some maps side by side."""
    return (_PANEL + 0.35) * len(panels) + 0.9, _PANEL + 0.3


def draw_map(panels: Sequence[Panel], path: Path) -> list[Path]:
    """Draw maps side by side, with the places as a CSV beside them; return the files written."""
    with canvas(*map_size(panels)) as figure:
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        frames = [plot_map(axes, panel) for axes, panel in zip(grid, panels, strict=True)]
        for axes in grid[:-1]:
            if (legend := axes.get_legend()) is not None:
                legend.remove()
        return save(figure, path, pd.concat(frames))


def plot_map(axes: Axes, panel: Panel) -> pd.DataFrame:
    """Draw a map into axes; return the places. Clients at one place are drawn side by side."""
    xy = panel.xy_m2
    low, high = xy.min(axis=0), xy.max(axis=0)
    span = np.maximum(high - low, 1e-9 + _LEAST_SPAN * (high - low).max())
    size = float(np.clip(50.0 / np.sqrt(len(xy)), 2.5, _POINT))
    unit = 72.0 * _PANEL / (1.0 + 2 * _MARGIN)  # points of the span
    drawn = apart((xy - low) / span, 1.1 * size / unit) * span + low
    draw_points(axes, drawn, panel.graph, size)
    middle = 0.5 * (drawn.min(axis=0) + drawn.max(axis=0))
    reach = 0.5 * np.maximum(np.ptp(drawn, axis=0), span) + _MARGIN * span
    axes.set_xlim(middle[0] - reach[0], middle[0] + reach[0])
    axes.set_ylim(middle[1] - reach[1], middle[1] + reach[1])
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(panel.axes[0])
    axes.set_ylabel(panel.axes[1])
    axes.set_title(panel.title)
    for spine in axes.spines.values():
        spine.set_visible(True)
    if handles := legend_handles(looks_of(panel.graph)[1]):
        axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    frame = {"of": panel.kind, "client": panel.graph.members, "x": xy[:, 0], "y": xy[:, 1]}
    return pd.DataFrame(frame)
