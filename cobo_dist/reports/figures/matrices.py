"""Heat maps of the collaboration weights at a few rounds, beside the true clusters.

W of many clients is drawn by cells of clients (`reports.large`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure

from cobo_dist.reports.figures.style import GREY, canvas, look, save
from cobo_dist.reports.grouping.groups import Group
from cobo_dist.reports.reading.run import Weights
from cobo_dist.reports.statistics import telling_rounds
from cobo_dist.reports.writing import write_csv

_FEW = 24  # clients, up to which each is named on the axis
_NAN = "#f2a0a0"  # a weight that is NaN, in no colour of the scale
_LETTERS = 3  # of a name, up to which names stand upright side by side

Panel = tuple[str, npt.NDArray[np.float32]]  # title, matrix [n, n] with the clients in order


def draw_weights(weights: Weights, path: Path, title: str = "") -> list[Path]:
    """Draw W of one run at four logged rounds beside the oracle's (Figure 5), and its CSV."""
    shown = _shown(weights)
    panels = [_panel(weights, number) for number in shown]
    if not weights.moves and len(weights.rounds) > 1:
        panels = [(f"rounds {weights.rounds[0]} to {weights.rounds[-1]}", panels[0][1])]
    panels += _oracle(weights, weights.top)
    with canvas(1.34 * len(panels) + 0.75, 1.85, square=True) as figure:
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)
        for axes, (name, matrix) in zip(grid[0], panels, strict=True):
            _draw_matrix(axes, matrix, weights.top)
            axes.set_title(name)
            _tick_clients(axes, weights)
            axes.set_xlabel(_clients(weights))
        grid[0, 0].set_ylabel(f"{title}\n{_clients(weights)}" if title else _clients(weights))
        _draw_scale(figure, grid, weights.top, weights.share, _exceed(panels, weights.top))
        image = save(figure, path)
    rows = _rows(weights, shown)
    return [image, write_csv(path.with_suffix(".csv"), ("round", "i", "j", "weight"), rows)]


def draw_all_weights(entries: Sequence[tuple[Group, Weights]], path: Path) -> list[Path]:
    """Draw W of several methods (Figure 3): rows are methods, columns the rounds and the oracle.

    A method that has not logged a column's round shows its nearest one and says so in its title. Methods
    whose weights sum to 1 have one scale of colours, and beside others each row has its own.
    """
    common = set.intersection(*(set(weights.rounds.tolist()) for _, weights in entries))
    longest = max((weights.rounds.tolist() for _, weights in entries), key=len)
    targets = telling_rounds(sorted(common) if len(common) > 1 else longest, 5)
    near = [[_nearest(weights, target) for target in targets] for _, weights in entries]
    lines = [
        [_panel(weights, number) for number in numbers]
        for (_, weights), numbers in zip(entries, near, strict=True)
    ]
    same = len({tuple(name for name, _ in line) for line in lines}) == 1
    top = max((weights.top for _, weights in entries if weights.share), default=1.0)
    tops = [top if weights.share else 1.0 for _, weights in entries]
    oracles = [_oracle(weights, end) for (_, weights), end in zip(entries, tops, strict=True)]
    # One oracle beside them all says more than the same one at the end of every row.
    one = all(_equal(oracle, oracles[0]) for oracle in oracles)
    if not one:
        lines = [line + oracle for line, oracle in zip(lines, oracles, strict=True)]
    columns = max(map(len, lines)) + (one and bool(oracles[0]))
    rows = len(lines)
    with canvas(1.1 * columns + 0.9, (1.06 if same else 1.22) * rows + 0.25, True) as figure:
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.ravel():
            axes.set_axis_off()
        for number, (line, (group, _)) in enumerate(zip(lines, entries, strict=True)):
            for axes, (name, matrix) in zip(grid[number], line, strict=False):
                _draw_bare(axes, matrix, tops[number], name if number == 0 or not same else "")
            grid[number, 0].set_ylabel(look(group, narrow=True).title, fontsize=7)
        if one and oracles[0]:
            name, matrix = oracles[0][0]
            _draw_bare(grid[0, -1], matrix, tops[0], name)
        if len(set(tops)) == 1:
            above = any(_exceed(line, tops[0]) for line in lines)
            shares = {weights.share for _, weights in entries}
            _draw_scale(figure, grid, tops[0], shares.pop() if len(shares) == 1 else None, above)
        else:
            for number, (_, weights) in enumerate(entries):
                above = _exceed(lines[number], tops[number])
                row = grid[number : number + 1]
                _draw_scale(figure, row, tops[number], weights.share, above)
        image = save(figure, path)
    table = (
        (group.label, *row)
        for (group, weights), numbers in zip(entries, near, strict=True)
        for row in _rows(weights, sorted(set(numbers)))
    )
    header = ("method", "round", "i", "j", "weight")
    return [image, write_csv(path.with_suffix(".csv"), header, table)]


def _draw_bare(axes: Axes, matrix: npt.NDArray[np.float32], top: float, title: str) -> None:
    axes.set_axis_on()
    _draw_matrix(axes, matrix, top)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title)


def _equal(one: Sequence[Panel], other: Sequence[Panel]) -> bool:
    if len(one) != len(other):
        return False
    return all(np.array_equal(a, b) for (_, a), (_, b) in zip(one, other, strict=True))


def _shown(weights: Weights) -> list[int]:
    rounds: list[int] = weights.rounds.tolist()
    return telling_rounds(rounds, 4) if weights.moves else rounds[:1]


def _nearest(weights: Weights, target: int) -> int:
    return int(weights.rounds[np.abs(weights.rounds - target).argmin()])


def _panel(weights: Weights, number: int) -> Panel:
    order = weights.order
    matrix = weights.weights[int(np.flatnonzero(weights.rounds == number)[0])]
    return f"round {number}", _masked(weights, matrix[np.ix_(order, order)])


def _oracle(weights: Weights, top: float) -> list[Panel]:
    """The true clusters, dark whatever the scale: they say which links are right, not how strong."""
    if weights.clusters is None:
        return []
    if weights.cells:
        assert weights.cells.oracle is not None
        return [("oracle", np.float32(top) * weights.cells.oracle)]
    clusters = weights.clusters[weights.order]
    same = clusters[:, None] == clusters[None, :]
    return [("oracle", _masked(weights, np.where(same, np.float32(top), np.float32(0.0))))]


def _masked(weights: Weights, matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The matrix with -inf where a client meets itself: such a weight must not read as a link."""
    if weights.cells:  # they leave it out themselves
        return matrix
    matrix = matrix.copy()
    np.fill_diagonal(matrix, -np.inf)
    return matrix


def _exceed(panels: Sequence[Panel], top: float) -> bool:
    """Whether a weight between two clients lies above the scale's end."""
    level = top * (1.0 + 1e-6)  # in float32 the end itself may lie above it
    off = [matrix[~np.eye(len(matrix), dtype=bool)] for _, matrix in panels]
    return any((values > level).any() for values in off)


def _scale(top: float) -> ScalarMappable:
    return ScalarMappable(Normalize(0.0, top), matplotlib.colormaps["Blues"])


def _draw_matrix(axes: Axes, matrix: npt.NDArray[np.float32], top: float) -> None:
    pixels = np.asarray(_scale(top).to_rgba(matrix))  # [n, n, 4]
    pixels[np.isnan(matrix)] = to_rgba(_NAN)
    pixels[np.isneginf(matrix)] = to_rgba(GREY)
    axes.imshow(pixels, interpolation="nearest")
    axes.grid(visible=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(True)


def _clients(weights: Weights) -> str:
    order = weights.order
    if weights.cells:
        by = "clients" if weights.clusters is None else "clients, by cluster"
        return f"{by} ({weights.cells.largest} to a pixel)"
    sorted_ = len(order) > _FEW and not np.array_equal(order, np.arange(len(order)))
    return "clients, by cluster" if sorted_ else "client"


def _tick_clients(axes: Axes, weights: Weights) -> None:
    order = weights.order
    step = -(-len(order) // (8 if len(order) <= _FEW else 4))
    places = list(range(0, len(order), step))
    # Among many clients a number here and there helps nobody, their places do.
    few = len(order) <= _FEW
    labels = [weights.labels[order[place]] if few else str(place) for place in places]
    if weights.cells:
        labels = [str(weights.cells.first(place)) for place in places]
    turned = 90.0 if max(map(len, labels)) > _LETTERS else 0.0
    axes.set_xticks(places, labels, fontsize=6, rotation=turned)
    axes.set_yticks(places, labels, fontsize=6)
    axes.tick_params(length=1.5, pad=1.5)


def _draw_scale(
    figure: Figure, grid: npt.NDArray[np.object_], top: float, share: float | None, above: bool
) -> None:
    """Draw the bar of colours beside some rows of panels.

    It says where it ends at the largest weight, and where an equal `share` is (0: weights do not sum to 1;
    None: they do, to shares that are not the same in all panels).
    """
    ticks = {0.0: "0", 0.5: "0.5", 1.0: "1"}
    if share != 0.0:
        ticks = {0.0: "0", top: f"{top:.2g} (largest)"}
        # The share's label needs room from both ends.
        if share is not None and 0.12 * top < share < 0.88 * top:
            ticks[share] = f"{share:.2g} (equal share)"
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


def _rows(weights: Weights, shown: Sequence[int]) -> list[tuple[object, ...]]:
    """The drawn matrices in long form, with the clients' own numbers, or those of cells of them."""
    rows: list[tuple[object, ...]] = []
    for number in shown:
        matrix = weights.weights[int(np.flatnonzero(weights.rounds == number)[0])].tolist()
        rows += [(number, i, j, w) for i, line in enumerate(matrix) for j, w in enumerate(line)]
    return rows
