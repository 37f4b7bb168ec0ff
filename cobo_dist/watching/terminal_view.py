"""Watched runs on a terminal: progress, curves of one line, W as small blocks. Without a terminal, lines."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.style import Style
from rich.table import Table
from rich.text import Text

from cobo_dist.reports.reading import Weights
from cobo_dist.reports.reading.series import Series
from cobo_dist.watching.followed_run import FollowedRun

_BARS, _ASCII_BARS = "▁▂▃▄▅▆▇█", "_.-~=+*#"
_SHADES, _ASCII_SHADES = " ░▒▓█", " .:*#"
_HEADINGS = ("run", "state", "round", "", "s/round", "left", "loss", "metric")
_NARROW_COLUMNS = 100
_CURVE_WIDTH = 24
_MAX_BLOCKS = 40  # of W in a line
_SMALL_BLOCKS = 24  # to which a W of few clients is enlarged
_MAX_WARNINGS = 3
_WARNING_LETTERS = 300
_COLORS = {"running": "green", "done": "blue", "failed": "red", "unreadable": "red"}
_SCALE = np.array([[13, 17, 23], [33, 102, 172], [214, 238, 255]], dtype=np.float64)
_OWN = np.array([110, 110, 110], dtype=np.float64)


def view(runs: Sequence[FollowedRun], console: Console) -> RenderableType:
    """Return all runs as a table; of the first that goes on also W, and the last warnings of all."""
    plain = not (console.encoding or "").lower().startswith("utf")
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    narrow = console.width < _NARROW_COLUMNS
    headings = [one for one in _HEADINGS if not (narrow and one in ("", "s/round"))]
    for heading in headings:
        wide = heading in ("run", "")
        table.add_column(heading, no_wrap=True, overflow="ellipsis", ratio=1 if wide else None)
    # Those that go on come first, if there are too many for the window.
    most = max(3, console.height // 2)
    listed = runs if len(runs) <= most else sorted(runs, key=lambda run: run.state != "running")
    for run in listed[:most]:
        cells = dict(zip(_HEADINGS, _cells(run, plain, console.width), strict=True))
        table.add_row(*(cells[heading] for heading in headings))
    parts: list[RenderableType] = [table]
    if len(runs) > most:
        states = Counter(run.state for run in listed[most:])
        parts.append(Text("more: " + ", ".join(f"{n} {state}" for state, n in states.items())))
    shown = next((run for run in runs if run.state == "running" and _weights(run)), None)
    shown = shown or next((run for run in runs if _weights(run)), None)
    if shown is not None and (weights := _weights(shown)) is not None:
        number = int(weights.rounds[-1])
        title = f"\nW of {one_line(shown.title)}, round {number}{_in_words(weights)}"
        parts += [Text(title), *_matrix(weights, console, plain)]
    parts += [Text(line, style="yellow") for line in _remarks(runs)]
    return Group(*parts)


def line(run: FollowedRun) -> str:
    """Return how a run stands, in one line."""
    parts = [f"{run.title}: {run.state}"]
    if run.words:
        parts[0] += f" ({run.words})"
    if run.run is not None:
        parts.append(f"round {run.round}/{run.rounds or '?'}")
    if run.loss:
        parts.append(f"loss {_last(run.loss):.4g}")
    name, series = run.metric
    if series:
        parts.append(f"{name} {_last(series):.4g}")
    if run.seconds_left is not None:
        parts.append(f"{duration(run.seconds_left)} left")
    if run.warnings:
        parts.append(f"{len(run.warnings)} warnings, the last: {run.warnings[-1].message}")
    return one_line("  ".join(parts))


def duration(seconds: float | None) -> str:
    """Return a duration in at most two units.

    >>> duration(3725), duration(42.4), duration(None)
    ('1 h 2 min', '42 s', '-')
    """
    if seconds is None or not math.isfinite(seconds):
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, seconds_left = divmod(whole, 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {seconds_left} s"


def sparkline(series: Series, width: int = _CURVE_WIDTH, bars: str = _BARS) -> str:
    """Return a curve as a line of bars, at most `width` of them; rounds without a number are left out.

    >>> sparkline({1: 0.0, 2: 1.0, 3: 2.0}, bars="_-^")
    '_-^'
    """
    values = [series[number] for number in sorted(series) if math.isfinite(series[number])]
    if not values or not width:
        return ""
    pieces = np.array_split(np.array(values), min(width, len(values)))
    means = np.array([piece.mean() for piece in pieces])
    low, high = float(means.min()), float(means.max())
    places = (means - low) / (high - low or 1.0) * (len(bars) - 1)
    return "".join(bars[round(place)] for place in places.tolist())


def shrink(matrix: npt.NDArray[np.floating], most: int) -> npt.NDArray[np.float64]:
    """Return a matrix of at most `most` rows and columns: means of cells, without the diagonal. [b, b]

    NaN where there is nothing to take the mean of, as in a cell of one client's weight for itself.
    """
    n = len(matrix)
    off = ~np.eye(n, dtype=bool) & np.isfinite(matrix)
    starts = np.unique(np.linspace(0, n, min(n, most) + 1).round().astype(int)[:-1])

    def sums(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        rows = np.add.reduceat(values, starts, axis=0)
        return np.asarray(np.add.reduceat(rows, starts, axis=1), dtype=np.float64)

    total, count = sums(np.where(off, matrix, 0.0).astype(np.float64)), sums(off.astype(np.float64))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


# -- parts -------------------------------------------------------------------------------------------


def _cells(run: FollowedRun, plain: bool, width: int) -> list[RenderableType]:
    bars = _ASCII_BARS if plain else _BARS
    name, series = run.metric
    # A narrow terminal has the numbers only.
    lengths = (0, 0) if width < _NARROW_COLUMNS else (8, 0)
    lengths = lengths if width < 120 else (_CURVE_WIDTH, _CURVE_WIDTH // 2)
    curve, rise = (
        sparkline(one, n, bars) for one, n in zip((run.loss, series), lengths, strict=True)
    )
    score = f"{name} {_last(series):<7.4g} {rise}" if series else ""
    state = Text(run.state, style=_COLORS.get(run.state, "yellow"))
    rate = run.seconds_per_round
    return [
        Text(one_line(run.title)),
        state,
        f"{run.round}/{run.rounds or '?'}" if run.run is not None else "-",
        ProgressBar(total=max(1, run.rounds), completed=run.round),
        "-" if rate is None else f"{rate:.3g}",
        duration(run.seconds_left),
        f"{_last(run.loss):<7.4g} {curve}" if run.loss else "-",
        Text(one_line(score)),
    ]


def _weights(run: FollowedRun) -> Weights | None:
    """W, where it is worth a picture."""
    weights = run.run.weights if run.run else None
    learns = run.run is not None and run.run.method.learns_weights
    return weights if weights is not None and (weights.moves or learns) else None


def _in_words(weights: Weights) -> str:
    means = [
        f"{kind} clusters {series[max(series)]:.2f}"
        for kind, series in weights.links.items()
        if kind in ("within", "across") and series
    ]
    return f": mean weight {', '.join(means)}" if means else ""


def _matrix(weights: Weights, console: Console, plain: bool) -> list[Text]:
    order = weights.order
    matrix = weights.weights[-1][np.ix_(order, order)]
    most = max(4, min(_MAX_BLOCKS, console.width - 2, 2 * (console.height - 12)))
    scaled = shrink(matrix, most) / weights.top
    larger = max(1, min(4, _SMALL_BLOCKS // len(scaled), most // len(scaled)))
    scaled = scaled.repeat(larger, axis=0).repeat(larger, axis=1)
    if plain or console.color_system is None:
        return _shaded(scaled, _ASCII_SHADES if plain else _SHADES)
    return _colored(scaled)


def _shaded(scaled: npt.NDArray[np.float64], shades: str) -> list[Text]:
    """Two letters a weight, so that a matrix is about square; a client's own weight is a dot."""
    places = np.clip(np.nan_to_num(scaled) * (len(shades) - 1), 0, len(shades) - 1).round()
    own = np.isnan(scaled)
    return [
        Text("".join(". " if own[i, j] else 2 * shades[int(k)] for j, k in enumerate(row)))
        for i, row in enumerate(places.tolist())
    ]


def _colored(scaled: npt.NDArray[np.float64]) -> list[Text]:
    """Two rows of weights in a line: a half block has two colors."""
    colors = _rgb(scaled)
    if len(colors) % 2:
        colors = np.concatenate([colors, np.zeros_like(colors[:1])])
    lines = []
    for upper, lower in zip(colors[::2], colors[1::2], strict=True):
        text = Text()
        for top, bottom in zip(upper, lower, strict=True):
            text.append("▀", Style(color=_hex(top), bgcolor=_hex(bottom)))
        lines.append(text)
    return lines


def _rgb(scaled: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    place = np.clip(np.nan_to_num(scaled), 0, 1)[..., None] * 2
    low = np.minimum(1, place.astype(int))
    mixed = _SCALE[low[..., 0]] + (_SCALE[low[..., 0] + 1] - _SCALE[low[..., 0]]) * (place - low)
    return np.where(np.isnan(scaled)[..., None], _OWN, mixed)


def _hex(color: npt.NDArray[np.float64]) -> str:
    return "#" + "".join(f"{round(part):02x}" for part in color.tolist())


def _remarks(runs: Sequence[FollowedRun]) -> list[str]:
    """Why runs stand as they do, and their last warnings."""
    found = [f"{run.title}: {run.state}: {run.words}" for run in runs if run.words]
    for run in runs:
        rows = run.warnings[-_MAX_WARNINGS:]
        found += [f"{run.title}, round {row.round}: {row.message}" for row in rows]
    return [one_line(one)[:_WARNING_LETTERS] for one in found]


def _last(series: Series) -> float:
    return series[max(series)]


def one_line(text: str) -> str:
    """Text without line breaks and without the control characters that move a terminal's cursor."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
