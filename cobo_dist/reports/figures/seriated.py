"""W in a seriated order, with the tree that the order comes from (a dendrogram) and the true clusters.

Shapes: m clients.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize, to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from cobo_dist.reports.figures.clients import ink, legend_handles, looks_of
from cobo_dist.reports.figures.style import DARK_GREY, GREY, canvas, save
from cobo_dist.reports.look import points
from cobo_dist.reports.reading.graph import Graph

MAX_LEAVES = 512
"""The most clients of a tree that is drawn."""
_MAX_NAMED = 40  # clients that the axes name
_MAX_UPRIGHT = 16  # clients whose numbers fit side by side
_RED, _DASHES = "#d55e00", (0, (4, 2))
_BAND = 0.05  # of the side of the matrix


def seriated_size(graph: Graph) -> tuple[float, float]:
    """Return the inches of a figure of W in order."""
    side = float(np.clip(0.16 * len(graph.members) + 0.6, 2.2, 3.4))
    return side + 1.3, 1.35 * side + 0.6


def draw_seriated(graph: Graph, path: Path) -> list[Path]:
    """Draw W in order with its tree, and the CSV beside it; return the files written."""
    with canvas(*seriated_size(graph)) as figure:
        return save(figure, path, plot_seriated(figure.add_subplot(), graph))


def plot_seriated(axes: Axes, graph: Graph) -> pd.DataFrame:
    """Draw W of 2 to `MAX_LEAVES` clients into axes, and its tree above them; return W in long form.

    The tree joins clients at the largest weight at which they are in one group (single linkage). It is cut
    at the threshold of a link, a dashed line; what hangs together below are the groups found, which are
    framed in W. A band between the two shows the true clusters where they are known.
    """
    from scipy.cluster.hierarchy import dendrogram

    tree, _ = graph.tree
    drawn = dendrogram(tree, no_plot=True)
    order = np.asarray(drawn["leaves"])
    turned = order[0] > order[-1]  # the first has a smaller number than the last
    order = order[::-1] if turned else order
    matrix = graph.weights.dense()[np.ix_(order, order)].astype(np.float64)
    _draw_matrix(axes, matrix, graph, order)
    places = (np.asarray(drawn["icoord"]) - 5.0) / 10.0
    if turned:
        places = len(order) - 1 - places
    _draw_tree(axes, places, graph.strength_mm.max() - np.asarray(drawn["dcoord"]), graph)
    if graph.clusters is not None:
        _draw_clusters(axes, graph, order)
    _draw_legend(axes, graph)
    ids = graph.members[order]
    i, j = np.meshgrid(ids, ids, indexing="ij")
    frame = {"i": i.ravel(), "j": j.ravel(), "weight": matrix.ravel()}
    return pd.DataFrame(frame)


def _draw_matrix(axes: Axes, matrix: np.ndarray, graph: Graph, order: np.ndarray) -> None:
    scale = ScalarMappable(Normalize(0.0, graph.top), matplotlib.colormaps["Blues"])
    pixels = np.asarray(scale.to_rgba(matrix))
    pixels[np.isnan(matrix), :3] = to_rgb("#f2a0a0")
    diagonal = np.arange(len(matrix))
    pixels[diagonal, diagonal, :3] = to_rgb(GREY)  # a client's weight for itself is no link
    axes.imshow(pixels, interpolation="nearest")
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(True)
    labels = [graph.labels[client] for client in order]
    step = 1 if len(order) <= _MAX_NAMED else len(order)
    turn = 90.0 if max(map(len, labels)) > 2 or len(order) > _MAX_UPRIGHT else 0.0
    axes.set_xticks(range(0, len(order), step), labels[::step], fontsize=points(5.5), rotation=turn)
    axes.set_yticks(range(0, len(order), step), labels[::step], fontsize=points(5.5))
    axes.tick_params(length=1.5, pad=1.5)
    if step > 1:
        axes.set_xticks([])
        axes.set_yticks([])
    axes.set_xlabel(f"client (round {graph.round})")
    axes.set_ylabel("client")  # its space is that of the tree's numbers, too
    cuts = [0, *(np.flatnonzero(np.diff(graph.label_m[order])) + 1).tolist(), len(order)]
    for start, stop in pairwise(cuts):
        if stop - start > 1:
            frame = Rectangle(
                (start - 0.5, start - 0.5), stop - start, stop - start, fill=False,
                edgecolor=_RED, linewidth=0.9, zorder=4, clip_on=False,
            )  # fmt: skip
            axes.add_patch(frame)
    bar_axes = axes.inset_axes((1.05, 0.0, 0.04, 0.6))
    figure = axes.get_figure(root=True)
    assert figure is not None
    bar = figure.colorbar(scale, cax=bar_axes)
    bar.set_label("weight")
    bar.outline.set_linewidth(0.4)


def _draw_tree(axes: Axes, places: np.ndarray, weights: np.ndarray, graph: Graph) -> None:
    """Draw the tree above the matrix; `places` and `weights` are those of its joints, [m-1, 4]."""
    start = 1.015 if graph.clusters is None else 1.03 + _BAND
    above = axes.inset_axes((0.0, start, 1.0, 0.3))
    lines = [np.stack(joint, axis=1) for joint in zip(places, weights, strict=True)]
    above.add_collection(LineCollection(lines, colors=DARK_GREY, linewidths=0.7))
    above.axhline(graph.threshold, color=_RED, linewidth=0.9, linestyle=_DASHES)
    above.set_xlim(-0.5, len(graph.members) - 0.5)
    top = max(graph.top, float(weights.max()))
    above.set_ylim(1.02 * top, -0.02 * top)
    above.set_xticks([])
    above.set_title("weight at which clients join", fontsize=points(6), loc="left", pad=2)
    above.tick_params(labelsize=points(6))
    above.grid(visible=False)
    above.spines["bottom"].set_visible(False)


def _draw_clusters(axes: Axes, graph: Graph, order: np.ndarray) -> None:
    """Draw the true clusters as a band between the tree and the matrix, with their numbers if few."""
    of_m, looks = looks_of(graph)
    band = axes.inset_axes((0.0, 1.015, 1.0, _BAND))
    colors = np.array([to_rgb(looks[k].color) for k in of_m[order]])
    band.imshow(colors[None], aspect="auto", interpolation="nearest")
    band.set_axis_off()
    cuts = [0, *(np.flatnonzero(np.diff(of_m[order])) + 1).tolist(), len(order)]
    for start, stop in pairwise(cuts):
        look = looks[of_m[order[start]]]
        name = look.title.removeprefix("cluster ")
        if stop - start >= 0.02 * (1 + len(name)) * len(order):
            place = 0.5 * (start + stop - 1)
            band.text(
                place,
                0,
                name,
                fontsize=points(5.5),
                color=ink(look.color),
                ha="center",
                va="center_baseline",
            )


def _draw_legend(axes: Axes, graph: Graph) -> None:
    handles: list[Artist] = [
        Line2D([], [], color=_RED, linewidth=0.9, linestyle=_DASHES, label=_threshold(graph)),
        Patch(fill=False, edgecolor=_RED, linewidth=0.9, label="group found"),
    ]
    if graph.clusters is not None:
        handles += legend_handles(looks_of(graph)[1], areas=True)
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.03, 1.4), borderaxespad=0.0,
        fontsize=points(6),
    )  # fmt: skip


def _threshold(graph: Graph) -> str:
    return f"link: weight \u2265 {graph.threshold:.3g}"
