"""What all figures share: the canvas, how it is saved, color, marker and dashes of methods, legends."""

from __future__ import annotations

import colorsys
import math
import textwrap
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import Collection
from matplotlib.colors import is_color_like, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import Bbox

from cobo_dist.reports.grouping import Group
from cobo_dist.reports.look import current_look, points
from cobo_dist.reports.writing import write_csv
from cobo_dist.storage.files import replacing

OTHER_COLOR = "#8c6d1f"  # of methods that name none
Dashes = str | tuple[int, tuple[float, ...]]
_DASHES: tuple[Dashes, ...] = (
    "-",
    (0, (5.0, 1.5)),
    (0, (1.2, 1.2)),
    (0, (5.0, 1.2, 1.2, 1.2)),
    (0, (2.6, 1.2)),
    (0, (5.0, 1.2, 1.2, 1.2, 1.2, 1.2)),
)
_MARKERS = "oDsv^X*P<>dph"  # for methods that name none, and for settings of one method
_MAX_LIGHTNESSES = 4  # of a color that an eye can tell apart
_STYLE_FILE = Path(__file__).with_name("report.mplstyle")
METRIC_LABELS = {"accuracy": "accuracy (%)", "perplexity": "perplexity", "loss": "loss"}
GREY = "#d9d9d9"
DARK_GREY = "#555555"
# Colors of clients, from the same family, in an order in which neighbors differ most.
_CLIENT_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e6a700", "#56b4e9")
_LEGEND_LETTERS = 40  # of a title in one line of a legend
_MATRIX_LETTERS = 18  # of a title in one line beside a matrix
_DPI = 220
_PAD = 0.03  # inches around a figure that is cropped
_LETTER_INCHES, _LINE_INCHES = 0.055, 0.15  # of a legend in a paper
_METADATA = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
_SIZES: tuple[Any, ...] = (
    "font.size", "axes.labelsize", "axes.titlesize", "xtick.labelsize", "ytick.labelsize",
    "legend.fontsize",
)  # fmt: skip
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class LineStyle:
    """How a line is drawn, and its name in the legend."""

    title: str
    color: tuple[float, float, float]
    dashes: Dashes
    width: float
    layer: float
    marker: str = "o"
    hollow: bool = False  # its markers

    @property
    def points(self) -> dict[str, Any]:
        """Keyword arguments of matplotlib for markers."""
        face = {"markerfacecolor": "white"} if self.hollow else {}
        size = max(3.2, 1.2 + 1.6 * self.width)  # more than the line is wide
        return {"marker": self.marker, "markersize": size, "markeredgewidth": 0.8, **face}

    @property
    def line(self) -> dict[str, Any]:
        """Keyword arguments of matplotlib for a line with this name and look."""
        look = {"color": self.color, "linestyle": self.dashes, "linewidth": self.width}
        return {"label": self.title, "zorder": self.layer, **look}


def group_style(group: Group, alone: bool = False, narrow: bool = False) -> LineStyle:
    """Return the style of a group: color, marker and dashes by method; lightness and dashes by its settings.

    `alone` is for figures of one method: its settings then differ in color. `narrow` breaks the title into
    short lines.
    """
    color = _color_of(group)
    scaled = alone or group.variants > _MAX_LIGHTNESSES
    if scaled:
        # There are more settings than lightnesses that an eye can tell apart, so a color scale orders them.
        scale = matplotlib.colormaps["viridis"]
        color = to_rgb(scale(0.92 * group.variant / max(1, group.variants - 1)))
    else:
        hue, light, saturation = colorsys.rgb_to_hls(*color)
        light += (0.8 - light) * min(group.variant * 0.3, 0.75)
        color = colorsys.hls_to_rgb(hue, light, saturation)
    # An upper bound, thin, stays visible where it coincides with a thick line.
    looks = {"emphasized": (2.0, 4.0), "upper_bound": (1.2, 5.0)}
    width, layer = looks.get(group.method.role, (1.2, 3.0))
    marker, dashes = _marker_and_dashes(group, alone)
    return LineStyle(
        title=_broken_title(group.title, narrow),
        color=color,
        dashes=dashes,
        width=1.4 if scaled else width,
        layer=layer,
        marker=marker,
        # An upper bound may have the marker of the method that it bounds.
        hollow=group.method.role == "upper_bound" or bool(group.variant % 2),
    )


def _marker_and_dashes(group: Group, alone: bool) -> tuple[str, Dashes]:
    """Return what tells lines apart without color. Settings of one method share a marker beside others."""
    method = group.method
    digest = zlib.crc32(group.algorithm.encode())
    first = _MARKERS.find(method.marker) if method.marker else digest % len(_MARKERS)
    marker = method.marker or _MARKERS[first]
    if alone:
        marker = _MARKERS[(max(first, 0) + group.variant) % len(_MARKERS)]
    known = 0 if method.role == "emphasized" else method.place
    start = known if method.marker or method.role == "emphasized" else digest // len(_MARKERS)
    return marker, _DASHES[(start + group.variant) % len(_DASHES)]


def _color_of(group: Group) -> tuple[float, float, float]:
    color = group.method.color
    return to_rgb(color if is_color_like(color) else OTHER_COLOR)


def client_style(client: int) -> tuple[str, Any]:
    """Return color and dashes of a client's line, the same in all panels; 36 clients all differ.

    Without color, neighbors differ by their dashes.
    """
    turn, place = divmod(client, len(_CLIENT_COLORS))
    return _CLIENT_COLORS[place], _DASHES[(place + turn) % len(_DASHES)]


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

    `width` is that of its panels; `look.use_look` may put one or two columns in its place, and a legend adds
    to both. The style starts from matplotlib's defaults, not from a user's matplotlibrc. `square` keeps axes
    of equal aspect, such as matrices, close together. With `formulas`, text between $ is a formula.
    """
    with matplotlib.rc_context({"text.parse_math": formulas}, fname=_STYLE_FILE):
        sizes: Any = matplotlib.rcParams  # whose type names each of its keys
        for key in _SIZES:
            sizes[key] = points(sizes[key])
        figure = Figure(
            figsize=(current_look().width(width), points(height)),
            dpi=_DPI,
            layout="compressed" if square else "constrained",
        )
        FigureCanvasAgg(figure)
        yield figure


def save(figure: Figure, path: Path, table: pd.DataFrame) -> list[Path]:
    """Write the figure in all formats of the look, and its numbers as CSV beside it.

    `path` is the PNG. Figures for a screen are cropped to what is drawn; others keep the width of their
    columns. Files of equal figures are equal byte by byte.
    """
    _enlarge(figure, current_look().scale)
    figure.draw_without_rendering()
    box = figure.get_tightbbox().padded(_PAD)
    if current_look().widths is not None:
        box = Bbox([[0.0, box.y0], [figure.get_figwidth(), box.y1]])
    figure.set_layout_engine("none")  # laid out once, alike in all formats
    files = []
    for name in current_look().formats:
        files.append(path.with_suffix(f".{name}"))
        with replacing(files[-1]) as file:
            figure.savefig(file, format=name, bbox_inches=box, metadata=_METADATA.get(name))
    return [*files, write_csv(path.with_suffix(".csv"), table)]


def is_wide(png: Path) -> bool:
    """Return whether a figure that was saved in this look takes two columns."""
    widths = current_look().widths
    with png.open("rb") as file:
        pixels = int.from_bytes(file.read(20)[16:], "big")  # of the header: the width
    return widths is not None and pixels / _DPI > 1.1 * widths[0]


def _enlarge(figure: Figure, scale: float) -> None:
    """Make lines and markers thicker; letters have their size from the start."""
    if scale == 1.0:
        return
    for line in figure.findobj(Line2D):
        if isinstance(line, Line2D):
            line.set_linewidth(scale * line.get_linewidth())
            line.set_markersize(scale * line.get_markersize())
    for lines in figure.findobj(Collection):
        if isinstance(lines, Collection):
            lines.set_linewidth([scale * width for width in np.atleast_1d(lines.get_linewidth())])


def side_by_side(figure: Figure, count: int, each: float, **options: Any) -> list[Axes]:
    """Return axes side by side, or in several lines in a figure that is narrow for panels of `each` inches.

    Each line has the height that the figure had. `options` are those of matplotlib's `subplots`.
    """
    columns = current_look().panels(count, each)
    lines = -(-count // columns)
    figure.set_figheight(lines * figure.get_figheight())
    grid = figure.subplots(lines, columns, squeeze=False, **options)
    for axes in grid.flat[count:]:
        axes.remove()
    return list(grid.flat[:count])


def shared_legend(figure: Figure, panels: Iterable[Axes], title: str | None = None) -> None:
    """Draw one legend beside the panels, or under them in a narrow figure, with each label once."""
    handles: dict[str, Artist] = {}
    for axes in panels:
        found, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, found, strict=True))
    place_legend(figure, handles, title)


def place_legend(
    figure: Figure, handles: Mapping[str, Artist], title: str | None = None, **options: Any
) -> None:
    """Draw a legend beside the panels, or under them in a narrow figure, which gets as much larger.

    `handles` are by label, and `options` matplotlib's.
    """
    lines = [label.split("\n") for label in handles]
    letter, line = points(_LETTER_INCHES), points(_LINE_INCHES)
    width = letter * max((len(one) for label in lines for one in label), default=0) + points(0.4)
    count, tallest = len(lines), max(map(len, lines), default=0)
    if current_look().widths is None or width < 0.36 * figure.get_figwidth():
        if current_look().widths is None:
            figure.set_figwidth(figure.get_figwidth() + width)
        needed = line * (sum(map(len, lines)) + bool(title)) + points(0.6)
        figure.set_figheight(max(figure.get_figheight(), needed))
        figure.legend(
            list(handles.values()),
            list(handles),
            loc="outside right center",
            title=title,
            **options,
        )
        return
    columns = max(1, min(count, int(figure.get_figwidth() / width)))
    rows = -(-count // columns) * tallest + bool(title)
    figure.set_figheight(figure.get_figheight() + line * rows + points(0.1))
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", title=title,
        ncols=columns, columnspacing=1.2, **options,
    )  # fmt: skip


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
