"""Heat maps of the collaboration weights at a few rounds, beside the true clusters or the right graph.

Clients are in the order of the true clusters or graph or, where these are unknown, of `reading.seriation`.
W of many clients is drawn by cells of clients (`reading.sparse_weights`).
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure

from cobo_dist.reports.figures.style import GREY, canvas, group_style, save
from cobo_dist.reports.grouping import Group
from cobo_dist.reports.look import current_look, points
from cobo_dist.reports.reading import Weights
from cobo_dist.reports.statistics import rounds_to_draw

_PANEL_INCHES = 1.3
_AXIS_LETTERS = 20  # of a line beside a panel
_MAX_NAMED_CLIENTS = 24  # on an axis that names each client
_MAX_UPRIGHT_LETTERS = 3  # of a name that fits upright beside others
_NAN_COLOR = "#f2a0a0"  # no color of the scale

Panel = tuple[str, npt.NDArray[np.floating[Any]]]  # title, matrix [n, n] with the clients in order


def draw_weights(weights: Weights, path: Path, title: str = "") -> list[Path]:
    """Draw W of one run at up to four logged rounds beside the oracle (Figure 5), and its CSV."""
    rounds: list[int] = weights.rounds.tolist()
    count = current_look().panels(5, _PANEL_INCHES) - 1  # the oracle takes the place of one
    shown = rounds_to_draw(rounds, count) if weights.moves else rounds[:1]
    panels = [_panel(weights, number) for number in shown]
    if not weights.moves and len(rounds) > 1:
        panels = [(f"rounds {rounds[0]} to {rounds[-1]}", panels[0][1])]
    panels += _oracle(weights, weights.top, shown)
    label = _axis_label(weights)
    with canvas(_PANEL_INCHES * len(panels) + 0.75, 1.85, square=True) as figure:
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)
        for axes, (name, matrix) in zip(grid[0], panels, strict=True):
            _draw_matrix(axes, matrix, weights.top)
            axes.set_title(name)
            _tick_clients(axes, weights)
            axes.set_xlabel("client")
        lines = textwrap.wrap(label, _AXIS_LETTERS)
        grid[0, 0].set_ylabel("\n".join([title, *lines] if title else lines))
        _draw_scale(figure, grid, weights.top, weights.share, _exceed(panels, weights.top))
        return save(figure, path, _frame(weights, shown))


def draw_all_weights(entries: Sequence[tuple[Group, Weights]], path: Path) -> list[Path]:
    """Draw W of several methods (Figure 3): rows are methods, columns the rounds and the oracle.

    A method that has not logged a column's round shows its nearest one, with the round in the title. If
    all methods have weights that sum to 1 they share one color scale; if some have, each row has its own.
    The oracle stands beside each row, since rows may differ in the order of their clients.
    """
    common = set.intersection(*(set(weights.rounds.tolist()) for _, weights in entries))
    longest = max((weights.rounds.tolist() for _, weights in entries), key=len)
    count = current_look().panels(6, _PANEL_INCHES) - 1  # the oracle takes the place of one
    targets = rounds_to_draw(sorted(common) if len(common) > 1 else longest, count)
    near = [[_nearest(weights, target) for target in targets] for _, weights in entries]
    lines = [
        [_panel(weights, number) for number in numbers]
        for (_, weights), numbers in zip(entries, near, strict=True)
    ]
    same_rounds = len({tuple(name for name, _ in line) for line in lines}) == 1
    top = max((weights.top for _, weights in entries if weights.share), default=1.0)
    tops = [top if weights.share else 1.0 for _, weights in entries]
    oracles = [
        _oracle(weights, end, numbers)
        for (_, weights), end, numbers in zip(entries, tops, near, strict=True)
    ]
    lines = [line + oracle for line, oracle in zip(lines, oracles, strict=True)]
    columns, rows = max(map(len, lines)), len(lines)
    with canvas(1.1 * columns + 0.9, (1.06 if same_rounds else 1.22) * rows + 0.25, True) as figure:
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.ravel():
            axes.set_axis_off()
        for number, (line, (group, _)) in enumerate(zip(lines, entries, strict=True)):
            titled = number == 0 or not same_rounds
            for axes, (name, matrix) in zip(grid[number], line, strict=False):
                _draw_bare(axes, matrix, tops[number], name if titled else "")
            grid[number, 0].set_ylabel(group_style(group, narrow=True).title, fontsize=points(7))
        _draw_scales(figure, grid, lines, tops, [weights.share for _, weights in entries])
        frames = [
            _frame(weights, sorted(set(numbers)), group.label)
            for (group, weights), numbers in zip(entries, near, strict=True)
        ]
        return save(figure, path, pd.concat(frames))


def _draw_bare(axes: Axes, matrix: npt.NDArray[np.floating[Any]], top: float, title: str) -> None:
    axes.set_axis_on()
    _draw_matrix(axes, matrix, top)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title)


def _nearest(weights: Weights, target: int) -> int:
    return int(weights.rounds[np.abs(weights.rounds - target).argmin()])


def _matrix(weights: Weights, number: int) -> npt.NDArray[np.floating[Any]]:
    """The weights logged at a round. [n, n]"""
    place = int(np.flatnonzero(weights.rounds == number)[0])
    return np.asarray(weights.weights[place])


def _panel(weights: Weights, number: int) -> Panel:
    order, matrix = weights.order, _matrix(weights, number)
    if weights.absent is not None:
        away = weights.absent[int(np.flatnonzero(weights.rounds == number)[0])]
        matrix = np.where(away[:, None] | away, -np.inf, matrix)
    return f"round {number}", _masked(weights, matrix[np.ix_(order, order)])


def _oracle(weights: Weights, top: float, shown: Sequence[int]) -> list[Panel]:
    """The right graph, or the true clusters in the scale's darkest color: these have no strengths.

    Where clients change cluster, there is one for each of the phases that the rounds shown belong to.
    """
    if weights.cells:
        oracle = weights.cells.oracle
        return [] if oracle is None else [("oracle", np.float32(top) * oracle)]
    phases = {weights.phase(number): number for number in shown}
    found = []
    for phase, number in phases.items():
        matrix, name = weights.graph_at(number), "right graph"
        clusters = weights.clusters_at(number)
        if weights.true_graph is None and clusters is not None:
            matrix, name = (clusters[:, None] == clusters[None, :]).astype(np.float32), "oracle"
        if matrix is None:
            continue
        if len(phases) > 1:
            begin = weights.switches[phase - 1] if phase else 0
            name = f"{name}\nfrom round {begin}" if phase else f"{name}\nat first"
        right = np.float32(top) * matrix[np.ix_(weights.order, weights.order)]
        found.append((name, _masked(weights, right)))
    return found


def _masked(
    weights: Weights, matrix: npt.NDArray[np.floating[Any]]
) -> npt.NDArray[np.floating[Any]]:
    """The matrix with -inf on the diagonal, drawn grey: a client's weight for itself is no link."""
    if weights.cells:  # their means do not count the diagonal
        return matrix
    matrix = matrix.copy()
    np.fill_diagonal(matrix, -np.inf)
    return matrix


def _exceed(panels: Sequence[Panel], top: float) -> bool:
    """Whether a weight between two clients exceeds the end of the scale."""
    level = top * (1.0 + 1e-6)  # the end itself may exceed `top` in float32
    off = [matrix[~np.eye(len(matrix), dtype=bool)] for _, matrix in panels]
    return any((values > level).any() for values in off)


def _scale(top: float) -> ScalarMappable:
    return ScalarMappable(Normalize(0.0, top), matplotlib.colormaps["Blues"])


def _draw_matrix(axes: Axes, matrix: npt.NDArray[np.floating[Any]], top: float) -> None:
    pixels = np.asarray(_scale(top).to_rgba(matrix))  # [n, n, 4]
    pixels[np.isnan(matrix)] = to_rgba(_NAN_COLOR)
    pixels[np.isneginf(matrix)] = to_rgba(GREY)
    axes.imshow(pixels, interpolation="nearest")
    axes.grid(visible=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(True)


def _axis_label(weights: Weights) -> str:
    order = weights.order
    by = "clients, linked ones together" if weights.clusters is None else "clients, by cluster"
    if weights.true_graph is not None:
        by = "clients, by the right graph"
    if weights.cells:
        return f"{by} ({weights.cells.largest} to a pixel)"
    if np.array_equal(order, np.arange(len(order))):
        return "client"
    known = weights.clusters is not None or weights.true_graph is not None
    return "client" if known and len(order) <= _MAX_NAMED_CLIENTS else by


def _tick_clients(axes: Axes, weights: Weights) -> None:
    order = weights.order
    named = len(order) <= _MAX_NAMED_CLIENTS
    step = -(-len(order) // (8 if named else 4))
    places = list(range(0, len(order), step))
    # The numbers of a few among many clients say nothing, so ticks give their positions.
    labels = [weights.labels[order[place]] if named else str(place) for place in places]
    if weights.cells:
        labels = [str(weights.cells.first(place)) for place in places]
    rotation = 90.0 if max(map(len, labels)) > _MAX_UPRIGHT_LETTERS else 0.0
    axes.set_xticks(places, labels, fontsize=points(6), rotation=rotation)
    axes.set_yticks(places, labels, fontsize=points(6))
    axes.tick_params(length=1.5, pad=1.5)


def _draw_scales(
    figure: Figure,
    grid: npt.NDArray[np.object_],
    lines: Sequence[Sequence[Panel]],
    tops: Sequence[float],
    shares: Sequence[float],
) -> None:
    """Draw one color bar for all rows if they end at the same weight, else one for each row."""
    if len(set(tops)) == 1:
        above = any(_exceed(line, tops[0]) for line in lines)
        _draw_scale(figure, grid, tops[0], shares[0] if len(set(shares)) == 1 else None, above)
        return
    for i, (line, top, share) in enumerate(zip(lines, tops, shares, strict=True)):
        _draw_scale(figure, grid[i : i + 1], top, share, _exceed(line, top))


def _draw_scale(
    figure: Figure, grid: npt.NDArray[np.object_], top: float, share: float | None, above: bool
) -> None:
    """Draw the color bar beside some rows of panels.

    Ticks show its end, if that is the largest weight, and an equal `share` (0 if weights do not sum to 1,
    None if they do, but the share is not the same in all panels).
    """
    ticks = {0.0: "0", 0.5: "0.5", 1.0: "1"}
    if share != 0.0:
        ticks = {0.0: "0", top: f"{top:.2g}\n(largest)"}
        # The share's label needs a distance from both ends.
        if share is not None and 0.12 * top < share < 0.88 * top:
            ticks[share] = f"{share:.2g}\n(equal share)"
    bar = figure.colorbar(
        _scale(top),
        ax=grid.ravel().tolist(),
        shrink=min(1.0, 1.0 if grid.shape[0] == 1 else 2.0 / grid.shape[0]),
        aspect=14,
        pad=0.09 / grid.shape[1],
        extend="max" if above else "neither",
    )
    bar.set_ticks(list(ticks), labels=list(ticks.values()))
    bar.set_label("weight")
    bar.outline.set_linewidth(0.4)


def _frame(weights: Weights, shown: Sequence[int], method: str = "") -> pd.DataFrame:
    """The drawn matrices in long form, with the numbers of the clients, or of cells of them."""
    n = weights.weights.shape[1]
    places = pd.MultiIndex.from_product([shown, range(n), range(n)], names=["round", "i", "j"])
    values = np.stack([_matrix(weights, number) for number in shown]).astype(np.float64).ravel()
    frame = pd.DataFrame({"weight": values}, index=places).reset_index()
    if method:
        frame.insert(0, "method", method)
    return frame
