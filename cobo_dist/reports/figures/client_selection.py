"""Figure 1: how client selection judges a pair by its gradients at the midpoint.

Two clients of the paper's Example 2 in the plane, f_i(x) = a_i/2 ||x - mu_i||^2. With
grad f_i(z) = a_i (z - mu_i), the inner product at the midpoint z is
a_1 a_2 (||z - c||^2 - ||mu_1 - mu_2||^2 / 4) with c = (mu_1 + mu_2)/2: it is negative
exactly inside the ball that has mu_1 and mu_2 at the ends of a diameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Circle

from cobo_dist.reports.figures.style import DARK_GREY, canvas, save
from cobo_dist.reports.look import points
from cobo_dist.reports.statistics import Array

CURVATURES = np.array([1.0, 1.0])  # a_1, a_2
MINIMIZERS = np.array([[-2.0, 0.0], [2.0, 0.0]])  # mu_1, mu_2

_BLUE, _RED = "#0072b2", "#d55e00"
_ARROW_SCALE = 0.27  # drawn length of an arrow for a gradient of length 1


@dataclass(frozen=True)
class Pair:
    """Two clients' models x_1, x_2 [2, 2], and the place of their caption."""

    name: str
    models: Array
    caption: tuple[float, float]

    @property
    def midpoint(self) -> Array:
        """The midpoint z = (x_1 + x_2)/2. [2]"""
        return np.asarray(self.models.mean(axis=0))

    @property
    def gradients(self) -> Array:
        """Gradients of f_1 and f_2 at the midpoint. [2 clients, 2]"""
        return gradients(np.stack([self.midpoint, self.midpoint]))

    @property
    def inner_product(self) -> float:
        """< grad f_1(z), grad f_2(z) >."""
        first, second = self.gradients
        return float(first @ second)

    @property
    def direction(self) -> str:
        """Whether the inner product moves w_12 up or down."""
        return "up" if self.inner_product > 0 else "down"

    @property
    def numbers(self) -> dict[str, object]:
        """The pair as a row of the CSV."""
        columns = {"x1": self.models[0], "x2": self.models[1], "z": self.midpoint}
        columns |= {"g1": self.gradients[0], "g2": self.gradients[1]}
        vectors = {f"{name}_{k}": float(v[k]) for name, v in columns.items() for k in (0, 1)}
        ends = {"inner_product": self.inner_product, "weight": self.direction}
        return {"pair": self.name, **vectors, **ends}


PAIRS = (
    Pair("A", np.array([[-7.3, 2.2], [-5.3, 4.6]]), (-5.6, 1.15)),
    Pair("B", np.array([[-0.75, 1.7], [0.75, 1.4]]), (0.0, 2.85)),
    Pair("C", np.array([[-3.3, -1.3], [3.3, -1.3]]), (0.0, -2.75)),
)
"""The paper's three scenarios: far from all minimizers, near them, and already apart."""


def gradients(points: Array) -> Array:
    """Gradient of f_i at row i of the points. [2 clients, 2] -> [2 clients, 2]"""
    return np.asarray(CURVATURES[:, None] * (points - MINIMIZERS))


def draw_client_selection(path: Path, pairs: Sequence[Pair] = PAIRS) -> list[Path]:
    """Draw the pairs over the contours of (f_1 + f_2)/2, and write their numbers to the CSV."""
    with canvas(5.6, 3.3, formulas=True) as figure:
        axes = figure.add_subplot()
        _draw_landscape(axes)
        for pair in pairs:
            _draw_pair(axes, pair)
        axes.set_aspect("equal")
        axes.set_xlim(-8.6, 4.6)
        axes.set_ylim(-3.5, 5.4)
        axes.set_axis_off()
        # In a narrow figure each explanation takes a line.
        columns = 2 if figure.get_figwidth() > points(5.0) else 1
        figure.set_figheight(figure.get_figheight() + points(0.15) * (2 - columns) * 2)
        figure.legend(handles=_legend(), loc="outside lower center", ncols=columns)
        return save(figure, path, pd.DataFrame([pair.numbers for pair in pairs]))


def _draw_landscape(axes: Axes) -> None:
    """Contours of the mean loss, the three minimizers, and the disk in which gradients are opposed."""
    x, y = np.meshgrid(np.linspace(-9.0, 5.0, 281), np.linspace(-4.0, 6.0, 201))
    plane = np.stack([x, y], axis=-1)  # [201, 281, 2]
    squares = ((plane[..., None, :] - MINIMIZERS) ** 2).sum(axis=-1)  # [201, 281, 2 clients]
    mean_loss = (squares * CURVATURES / 2.0).mean(axis=-1)
    levels = mean_loss.min() + 0.5 * np.arange(1.0, 12.0) ** 2
    axes.contour(x, y, mean_loss, levels=levels, colors="#cccccc", linewidths=0.6, zorder=0)
    center = MINIMIZERS.mean(axis=0)
    radius = float(np.linalg.norm(MINIMIZERS[0] - MINIMIZERS[1])) / 2.0
    x0, y0 = center.tolist()
    axes.add_patch(Circle((x0, y0), radius, color=_RED, alpha=0.08, linewidth=0, zorder=0.5))
    axes.add_patch(
        Circle((x0, y0), radius, fill=False, color=_RED, linewidth=0.9, linestyle=":", zorder=0.6)
    )
    mean = (CURVATURES[:, None] * MINIMIZERS).sum(axis=0) / CURVATURES.sum()
    points = np.vstack([MINIMIZERS, mean])
    axes.plot(*points.T, "x", color="black", markersize=5, markeredgewidth=1.3, zorder=3)
    sides = ((-0.2, 0.0, "right"), (0.2, 0.0, "left"), (0.15, -0.25, "left"))
    for point, name, (dx, dy, side) in zip(
        points.tolist(), (r"$\mu_1$", r"$\mu_2$", r"$\mu$"), sides, strict=True
    ):
        axes.text(point[0] + dx, point[1] + dy, name, ha=side, va="center", zorder=3)


def _draw_pair(axes: Axes, pair: Pair) -> None:
    axes.plot(*pair.models.T, color=DARK_GREY, linewidth=0.8, linestyle=(0, (3, 2)), zorder=2)
    for start, step in zip(pair.models, -gradients(pair.models), strict=True):
        _draw_arrow(axes, start, step, _RED)
    for step in -pair.gradients:
        _draw_arrow(axes, pair.midpoint, step, _BLUE)
    axes.plot(*pair.models.T, "o", color="black", markersize=4, zorder=5)
    axes.plot(*pair.midpoint, "o", color="black", markerfacecolor="white", markersize=4, zorder=5)
    # Names are placed away from the other model and from the arrow, which points downhill.
    outward = _unit(_unit(pair.models - pair.midpoint) + _unit(gradients(pair.models)))
    for number, (model, away) in enumerate(zip(pair.models, outward, strict=True), start=1):
        x, y = (model + 0.42 * away).tolist()
        axes.text(x, y, f"$x_{number}^{{{pair.name}}}$", ha="center", va="center", zorder=5)
    arrow = r"$\uparrow$" if pair.direction == "up" else r"$\downarrow$"
    verdict = "towards 1: collaborate" if pair.direction == "up" else "towards 0: apart"
    axes.text(
        *pair.caption,
        rf"$\bf{{{pair.name}}}$: $\langle\nabla f_1,\nabla f_2\rangle = {pair.inner_product:+.2f}$"
        f" at $z$\n$w_{{12}}$ {arrow} {verdict}",
        ha="center",
        va="center",
        fontsize=points(7),
        zorder=6,
        bbox={
            "boxstyle": "round,pad=0.2",
            "facecolor": "white",
            "edgecolor": "none",
            "alpha": 0.85,
        },
    )


def _unit(rows: Array) -> Array:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def _draw_arrow(axes: Axes, start: Array, step: Array, color: str) -> None:
    axes.annotate(
        "",
        xy=tuple((start + _ARROW_SCALE * step).tolist()),
        xytext=tuple(start.tolist()),
        arrowprops={
            **{"arrowstyle": "-|>", "color": color, "linewidth": 1.4},
            **{"shrinkA": 0, "shrinkB": 0, "mutation_scale": 7},
        },
        zorder=4,
    )


def _legend() -> list[Line2D]:
    return [
        Line2D(
            [], [], color=_BLUE, label=r"descent $-\nabla f_1, -\nabla f_2$ at the midpoint $z$"
        ),
        Line2D([], [], color=_RED, label=r"descent $-\nabla f_i(x_i)$ at the local models"),
        Line2D([], [], color="#aaaaaa", linewidth=0.8, label=r"contours of $\frac{1}{2}(f_1+f_2)$"),
        Line2D([], [], color=_RED, linestyle=":", label="inside: gradients at $z$ are opposed"),
    ]
