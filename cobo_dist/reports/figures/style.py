"""The look of every figure: sizes for a paper's column, one colour per method throughout."""

from __future__ import annotations

import colorsys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from cobo_dist.reports.grouping.groups import Group

# Colours after Okabe and Ito, told apart with any colour vision; CoBo has the warmest one.
_COLOURS = {
    "local": "#7f7f7f",
    "fedavg": "#56b4e9",
    "finetuned_fedavg": "#0072b2",
    "ditto": "#e6a700",
    "ifca": "#cc79a7",
    "federated_clustering": "#009e73",
    "validation_based": "#7a1f5c",
    "cobo": "#d55e00",
    "oracle": "#000000",
}
# A shape for each method too: lines that cross are told apart in print without colour.
_MARKERS = dict(zip(_COLOURS, "sv^DPXhoo", strict=True))
_DASHES: tuple[str | tuple[int, tuple[float, ...]], ...] = (
    "-",
    (0, (5.0, 1.5)),
    (0, (1.2, 1.2)),
    (0, (5.0, 1.2, 1.2, 1.2)),
)
# Untyped: what matplotlib's stubs ask for here differs between its versions.
_SETTINGS: Any = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "lines.solid_capstyle": "round",
    "mathtext.fontset": "dejavusans",
}
GREY = "#d9d9d9"
# Clients: the same family of colours, in an order in which neighbours differ most.
_CLIENTS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e6a700", "#56b4e9")
_WIDE, _NARROW = 40, 18  # letters of a title in one line of a legend, beside a matrix


@dataclass(frozen=True)
class Look:
    """How a group is drawn."""

    title: str
    colour: tuple[float, float, float]
    dashes: str | tuple[int, tuple[float, ...]]
    width: float
    layer: float
    marker: str = "o"


def look(group: Group, crowded: bool = False, narrow: bool = False) -> Look:
    """The look of a group: colour and marker by method, lightness and dashes by its settings.

    `crowded` is for figures of one method alone: colours then tell its settings apart. `narrow`
    breaks the title into short lines.
    """
    colour = to_rgb(_COLOURS.get(group.algorithm, "#8c6d1f"))
    crowded = crowded or group.variants > len(_DASHES)
    if crowded:
        # More settings than lightnesses can tell: the colours of a scale that all eyes can order.
        scale = matplotlib.colormaps["viridis"]
        colour = to_rgb(scale(0.92 * group.variant / max(1, group.variants - 1)))
    else:
        hue, light, saturation = colorsys.rgb_to_hls(*colour)
        light += (0.8 - light) * min(group.variant * 0.3, 0.75)
        colour = colorsys.hls_to_rgb(hue, light, saturation)
    dashes = _DASHES[(group.variant + (group.algorithm == "oracle")) % len(_DASHES)]
    # CoBo is thick and in front; the oracle, thin and dashed, stays visible where they coincide.
    width, layer = {"cobo": (2.0, 4.0), "oracle": (1.2, 5.0)}.get(group.algorithm, (1.2, 3.0))
    if crowded:
        width = 1.4
    title = _broken_title(group.title, narrow)
    marker = _MARKERS.get(group.algorithm, "o")
    return Look(title, colour, dashes, width, layer, marker)


def client_look(client: int) -> tuple[str, Any]:
    """Colour and dashes of a client's line, wherever it is drawn: no two alike up to 24 clients."""
    turn, place = divmod(client, len(_CLIENTS))
    return _CLIENTS[place], _DASHES[turn % len(_DASHES)]


def _broken_title(title: str, narrow: bool) -> str:
    """A title over several lines where it is long; beside a matrix there is room for three."""
    letters = _NARROW if narrow else _WIDE
    name, _, settings = title.partition(" (")
    if len(title) <= letters or not settings:
        return title
    lines = textwrap.wrap(f"({settings}", letters, break_long_words=False)
    if narrow and len(lines) > 2:
        lines = [*lines[:2], "...)"]
    return "\n".join([name, *lines])


@contextmanager
def canvas(width: float, height: float, square: bool = False) -> Iterator[Figure]:
    """A figure of the given inches in the house style. No window and no global state.

    `square` keeps axes of equal aspect, such as matrices, close together.
    """
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height), layout="compressed" if square else "constrained")
        FigureCanvasAgg(figure)
        yield figure


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG, cropped to what is drawn."""
    figure.savefig(path, dpi=220, bbox_inches="tight", pad_inches=0.03)
    return path


def round_axis(axes: Axes) -> None:
    """Label the x axis as rounds: whole numbers, thousands as k."""
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=2))
    if axes.get_xlim()[1] >= 10_000:
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value else "0")
        )


def log_axis(axis: Axis) -> None:
    """Ticks that can be read on a logarithmic axis: plain 1-2-5 numbers, or powers if it is long."""
    low, high = axis.get_view_interval()
    if high / low < 1e3:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_major_locator(LogLocator(numticks=6))
    axis.set_minor_locator(NullLocator())
