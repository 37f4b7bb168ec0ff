"""The look of every figure: sizes for a column of a paper, one color per method throughout."""

from __future__ import annotations

import colorsys
import math
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import is_color_like, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from cobo_dist.reports.grouping import Group
from cobo_dist.reports.writing import write_csv
from cobo_dist.storage.files import replacing

_OTHER_COLOR = "#8c6d1f"  # of methods that name none
_DASHES: tuple[str | tuple[int, tuple[float, ...]], ...] = (
    "-",
    (0, (5.0, 1.5)),
    (0, (1.2, 1.2)),
    (0, (5.0, 1.2, 1.2, 1.2)),
)
_STYLE_FILE = Path(__file__).with_name("report.mplstyle")
METRIC_LABELS = {"accuracy": "accuracy (%)", "perplexity": "perplexity", "loss": "loss"}
GREY = "#d9d9d9"
DARK_GREY = "#555555"
# Colors of clients, from the same family, in an order in which neighbors differ most.
_CLIENT_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e6a700", "#56b4e9")
_LEGEND_LETTERS = 40  # of a title in one line of a legend
_MATRIX_LETTERS = 18  # of a title in one line beside a matrix
_DPI = 220
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class LineStyle:
    """How a line is drawn, and its name in the legend."""

    title: str
    color: tuple[float, float, float]
    dashes: str | tuple[int, tuple[float, ...]]
    width: float
    layer: float
    marker: str = "o"

    @property
    def line(self) -> dict[str, Any]:
        """Keyword arguments of matplotlib for a line with this name and look."""
        look = {"color": self.color, "linestyle": self.dashes, "linewidth": self.width}
        return {"label": self.title, "zorder": self.layer, **look}


def group_style(group: Group, alone: bool = False, narrow: bool = False) -> LineStyle:
    """Return the style of a group: color and marker by method, lightness and dashes by its settings.

    `alone` is for figures of one method: its settings then differ in color. `narrow` breaks the title into
    short lines.
    """
    color = _color_of(group)
    scaled = alone or group.variants > len(_DASHES)
    if scaled:
        # There are more settings than lightnesses that an eye can tell apart, so a color scale orders them.
        scale = matplotlib.colormaps["viridis"]
        color = to_rgb(scale(0.92 * group.variant / max(1, group.variants - 1)))
    else:
        hue, light, saturation = colorsys.rgb_to_hls(*color)
        light += (0.8 - light) * min(group.variant * 0.3, 0.75)
        color = colorsys.hls_to_rgb(hue, light, saturation)
    role = group.method.role
    dashes = _DASHES[(group.variant + (role == "upper_bound")) % len(_DASHES)]
    # An upper bound, thin and dashed, stays visible where it coincides with a thick line.
    looks = {"emphasized": (2.0, 4.0), "upper_bound": (1.2, 5.0)}
    width, layer = looks.get(role, (1.2, 3.0))
    title = _broken_title(group.title, narrow)
    marker = group.method.marker or "o"
    return LineStyle(title, color, dashes, 1.4 if scaled else width, layer, marker)


def _color_of(group: Group) -> tuple[float, float, float]:
    color = group.method.color
    return to_rgb(color if is_color_like(color) else _OTHER_COLOR)


def client_style(client: int) -> tuple[str, Any]:
    """Return color and dashes of a client's line, the same in all panels; 24 clients all differ."""
    turn, place = divmod(client, len(_CLIENT_COLORS))
    return _CLIENT_COLORS[place], _DASHES[turn % len(_DASHES)]


def _broken_title(title: str, narrow: bool) -> str:
    """A title over several lines if it is long, over three at most if it is narrow."""
    letters = _MATRIX_LETTERS if narrow else _LEGEND_LETTERS
    name, _, settings = title.partition(" (")
    if len(title) <= letters or not settings:
        return title
    lines = textwrap.wrap(f"({settings}", letters, break_long_words=False)
    if narrow and len(lines) > 2:
        lines = [*lines[:2], "...)"]
    return "\n".join([name, *lines])


@contextmanager
def canvas(
    width: float, height: float, square: bool = False, formulas: bool = False
) -> Iterator[Figure]:
    """Give a figure of the given inches in the common style. It opens no window and has no global state.

    The style starts from matplotlib's defaults, not from a user's matplotlibrc. `square` keeps axes of equal
    aspect, such as matrices, close together. With `formulas`, text between $ is a formula.
    """
    with matplotlib.rc_context({"text.parse_math": formulas}, fname=_STYLE_FILE):
        figure = Figure(figsize=(width, height), layout="compressed" if square else "constrained")
        FigureCanvasAgg(figure)
        yield figure


def save(figure: Figure, path: Path, table: pd.DataFrame) -> list[Path]:
    """Write the figure as PNG, cropped to what is drawn, and its numbers as CSV beside it."""
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=_DPI, bbox_inches="tight", pad_inches=0.03)
    return [path, write_csv(path.with_suffix(".csv"), table)]


def shared_legend(figure: Figure, grid: Iterable[Axes]) -> None:
    """Draw one legend beside several panels, with each label once."""
    handles: dict[str, Artist] = {}
    for axes in grid:
        found, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, found, strict=True))
    figure.legend(list(handles.values()), list(handles), loc="outside right center")


def round_axis(axes: Axes) -> None:
    """Label the x axis as rounds: whole numbers, thousands as k."""
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=2))
    if axes.get_xlim()[1] >= 10_000:
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value else "0")
        )


def log_axis(axis: Axis) -> None:
    """Set the ticks of a logarithmic axis: plain 1-2-5 numbers, or powers if it is long."""
    low, high = axis.get_view_interval()
    if high / low < 1e3:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_major_locator(LogLocator(numticks=6))
        axis.set_major_formatter(FuncFormatter(_power_of_ten))
    axis.set_minor_locator(NullLocator())


def _power_of_ten(value: float, _: int | None = None) -> str:
    """Return a label of a logarithmic axis.

    >>> _power_of_ten(0.001)
    '10⁻³'
    """
    return "10" + str(round(math.log10(value))).translate(_SUPERSCRIPTS)
