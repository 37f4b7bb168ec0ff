"""The graph of links as a network: clients as points, their links as lines, the groups found as disks.

Shapes: m clients, g groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import Circle, Wedge

from cobo_dist.reports.figures.clients import area, draw_points, legend_handles, looks_of
from cobo_dist.reports.figures.style import DARK_GREY, canvas, save
from cobo_dist.reports.look import points
from cobo_dist.reports.reading.graph import Graph
from cobo_dist.reports.reading.seriation import seriate

MAX_POINTS = 200
"""The most clients that are points; with more, a group is one disk."""
MAX_DISKS = 100
"""The most groups that are drawn of more clients, the largest."""
_MAX_LINES = 4000
_MAX_SIZES = 40  # disks up to which each shows its number of clients
_MAX_CIRCLE = 12  # clients of a group that are in a circle
_FAINT = 0.05  # of the scale of weights; weights below are not drawn

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def network_size(graph: Graph) -> tuple[float, float]:
    """Return the inches of a figure of the network."""
    side = float(np.clip(2.2 + 0.1 * np.sqrt(len(graph.members)) * 2, 2.6, 5.0))
    return side + 0.9, side


def draw_network(graph: Graph, path: Path) -> list[Path]:
    """Draw the network, with its lines as a CSV beside it; return the files written."""
    with canvas(*network_size(graph)) as figure:
        lines = plot_network(figure.add_subplot(), graph)
        return save(figure, path, lines)


def plot_network(axes: Axes, graph: Graph) -> pd.DataFrame:
    """Draw the network into axes; return its lines: `i`, `j`, `weight`, and whether it is a `link`.

    Of more than `MAX_POINTS` clients a group is a disk with a part for each true cluster, and `i` and `j`
    are groups.
    """
    axes.set_axis_off()
    axes.set_aspect("equal")
    many = len(graph.members) > MAX_POINTS
    frame = _plot_groups(axes, graph) if many else _plot_clients(axes, graph)
    if handles := legend_handles(looks_of(graph)[1], areas=many):
        axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.0)
    return frame


def _plot_clients(axes: Axes, graph: Graph) -> pd.DataFrame:
    xy_m2, centers, radii = place_clients(graph)
    for (x, y), radius in zip(centers.tolist(), radii.tolist(), strict=True):
        if radius > 0.65:  # a group of two or more
            axes.add_patch(Circle((x, y), radius, color="#f0f0f0", linewidth=0, zorder=0.5))
    one, other = np.triu_indices(len(xy_m2), 1)
    frame = _lines(graph, one, other, graph.strength_mm[one, other])
    _draw_lines(axes, xy_m2, frame, graph.top)
    frame = frame.assign(i=graph.members[frame["i"]], j=graph.members[frame["j"]])
    _limit(axes, centers, radii)
    draw_points(axes, xy_m2, graph, size=_point_size(axes))
    axes.text(
        0.5, -0.02, _caption(graph), transform=axes.transAxes, ha="center", va="top",
        fontsize=points(6), color=DARK_GREY,
    )  # fmt: skip
    return frame


def _plot_groups(axes: Axes, graph: Graph) -> pd.DataFrame:
    sizes = np.bincount(graph.label_m)
    shown = np.argsort(-sizes, kind="stable")[:MAX_DISKS]
    radii = 0.5 * np.sqrt(sizes[shown])
    centers = _pack(radii + 0.25 * radii.max())
    between = graph.mean_between(_numbered(graph.label_m, shown))
    one, other = np.triu_indices(len(shown), 1)
    frame = _lines(graph, one, other, between[one, other].astype(np.float64))
    _draw_lines(axes, centers, frame, graph.top)
    of_m, looks = looks_of(graph)
    for group, (x, y), radius in zip(shown.tolist(), centers.tolist(), radii.tolist(), strict=True):
        counts = np.bincount(of_m[graph.label_m == group], minlength=len(looks))
        ends = 90.0 - 360.0 * np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
        for k in np.flatnonzero(counts).tolist():
            part = Wedge((x, y), radius, ends[k + 1], ends[k], **area(looks[k]), zorder=3)
            axes.add_patch(part)
        if sizes[group] > 1 and len(shown) <= _MAX_SIZES:
            axes.annotate(
                str(sizes[group]), (x, y), fontsize=points(6), ha="center", va="center", zorder=5,
                bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "linewidth": 0},
            )  # fmt: skip
    _limit(axes, centers, radii)
    left = len(sizes) - len(shown)
    more = f"; {left} smaller ones are left out" if left else ""
    axes.text(
        0.5, -0.02, f"groups found, with their numbers of clients{more}\n{_caption(graph)}",
        transform=axes.transAxes, ha="center", va="top", fontsize=points(6), color=DARK_GREY,
    )  # fmt: skip
    return frame.assign(i=shown[frame["i"]], j=shown[frame["j"]])


def _numbered(label_m: Ints, shown: Ints) -> Ints:
    """Number the groups that are shown from 0, and all others alike after them."""
    number = np.full(int(label_m.max()) + 1, len(shown))
    number[shown] = np.arange(len(shown))
    return number[label_m]


def _caption(graph: Graph) -> str:
    mean, disks = (
        (" mean", "") if len(graph.members) > MAX_POINTS else ("", "\ndisks: groups found")
    )
    return f"dark lines:{mean} weight \u2265 {graph.threshold:.3g} (links); light: less{disks}"


def _lines(graph: Graph, one: Ints, other: Ints, weights: Floats) -> pd.DataFrame:
    """The lines between places `one` and `other` that are drawn: the strongest, weakest first."""
    order = np.argsort(weights, kind="stable")[-_MAX_LINES:]
    order = order[weights[order] > min(_FAINT * graph.top, graph.threshold * (1 - 1e-9))]
    frame = pd.DataFrame({"i": one[order], "j": other[order], "weight": weights[order]})
    return frame.assign(link=np.where(frame["weight"] >= graph.threshold, "true", "false"))


def _draw_lines(axes: Axes, xy: Floats, frame: pd.DataFrame, top: float) -> None:
    ends = np.stack([xy[frame["i"].to_numpy()], xy[frame["j"].to_numpy()]], axis=1)
    strength = np.clip(frame["weight"].to_numpy() / top, 0.0, 1.0)
    links = (frame["link"] == "true").to_numpy()
    # Many lines on top of each other would be a black disk.
    thin = float(np.clip(12.0 / np.sqrt(max(1, links.sum())), 0.25, 1.0))
    for which, color, layer in ((~links, "#9a9a9a", 1), (links, DARK_GREY, 2)):
        if which.any():
            lines = LineCollection(
                list(ends[which]), colors=color, linewidths=thin * (0.3 + 1.3 * strength[which]),
                alpha=(0.35 + 0.65 * thin) * (0.25 + 0.75 * strength[which]), zorder=layer,
                capstyle="round",
            )  # fmt: skip
            axes.add_collection(lines)


def place_clients(graph: Graph) -> tuple[Floats, Floats, Floats]:
    """Return where clients are [m, 2], and the centers [g, 2] and radii [g] of their groups.

    Each group is a disk of its own, in rows, the largest first. In it, a few clients are in a circle, in a
    seriated order; more of them are laid out by springs, stronger ones for larger weights
    (Fruchterman-Reingold).
    """
    groups = [np.flatnonzero(graph.label_m == k) for k in range(int(graph.label_m.max()) + 1)]
    groups.sort(key=lambda group: (-len(group), int(group[0])))
    inner = [_place_group(graph.strength_mm[np.ix_(group, group)]) for group in groups]
    radii = np.array([0.6 + float(np.hypot(*place.T).max()) for place in inner])
    centers = _pack(radii + 0.15)
    xy_m2 = np.zeros((len(graph.label_m), 2))
    for group, place, center in zip(groups, inner, centers, strict=True):
        xy_m2[group] = center + place
    return xy_m2, centers, radii


def _place_group(strength_kk: Floats) -> Floats:
    """Places of the k clients of a group around 0, about 1 apart. [k, 2]"""
    count = len(strength_kk)
    if count < 3:
        return np.array([[0.0, 0.0], [-0.5, 0.0], [0.5, 0.0]])[count - 1 : 2 * count - 1]
    angle = 2.0 * np.pi * np.argsort(seriate(strength_kk)) / count
    circle = np.stack([np.sin(angle), np.cos(angle)], axis=1)
    if count <= _MAX_CIRCLE:
        return np.asarray(circle * max(0.6, 0.5 / np.sin(np.pi / count)))
    import networkx as nx

    network = nx.from_numpy_array(strength_kk)
    start = {k: place for k, place in enumerate(circle)}
    found = nx.spring_layout(network, pos=start, weight="weight", iterations=60, seed=0)
    places = np.array([found[k] for k in range(count)])
    places -= places.mean(axis=0)
    return np.asarray(places * 0.75 * np.sqrt(count) / max(1e-9, np.hypot(*places.T).max()))


def _pack(radii: Floats) -> Floats:
    """Return the centers of disks in rows, as wide as high, in the order given. [g, 2]"""
    width = max(2.0 * radii.max(), 1.15 * np.sqrt((4.0 * radii**2).sum()))
    rows: list[list[int]] = [[]]
    for disk, radius in enumerate(radii.tolist()):
        if rows[-1] and 2.0 * (radii[rows[-1]].sum() + radius) > width * (1 + 1e-9):
            rows.append([])
        rows[-1].append(disk)
    centers = np.zeros((len(radii), 2))
    top = 0.0
    for row in rows:
        own = radii[row]
        x = np.cumsum(2.0 * own) - own
        centers[row, 0] = x - own.sum()
        centers[row, 1] = top - own.max()
        top -= 2.0 * own.max()
    return centers


def _limit(axes: Axes, centers: Floats, radii: Sequence[float] | Floats) -> None:
    reach = np.asarray(radii)[:, None]
    low, high = (centers - reach).min(axis=0), (centers + reach).max(axis=0)
    axes.set_xlim(low[0] - 0.1, high[0] + 0.1)
    axes.set_ylim(low[1] - 0.1, high[1] + 0.1)


def _point_size(axes: Axes) -> float:
    """Points (1/72 inch) across of a client, so that neighbors, 1 apart, do not touch."""
    box = axes.get_position()
    figure = axes.get_figure(root=True)
    assert figure is not None
    width, height = figure.get_size_inches() * (box.width, box.height)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    unit = 72.0 * min(width / (right - left), height / (top - bottom))
    return float(np.clip(0.62 * unit, 2.0, points(14.0)))
