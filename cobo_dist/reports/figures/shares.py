"""What each client gives the others over the rounds, where its weights sum to 1 (Figure 4)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from cobo_dist.reports.figures.events import mark_events
from cobo_dist.reports.figures.style import (
    DARK_GREY,
    canvas,
    client_style,
    place_legend,
    round_axis,
    save,
)
from cobo_dist.reports.grouping import Group
from cobo_dist.reports.look import current_look, points
from cobo_dist.reports.reading import Weights
from cobo_dist.reports.statistics import Array, moving_average

MAX_CLIENTS = 12
"""The most clients that have a panel each; more lines could not be told apart."""
_MEMORY_SHARE = 25  # the moving average remembers one part in so many of the rounds
_MAX_NAME_LETTERS = 16


@dataclass(frozen=True)
class _Shares:
    """The weights of one group, averaged over its seeds, at the rounds that all of them logged."""

    labels: list[str]  # of the n clients
    share: float  # an equal share
    rounds: npt.NDArray[np.int64]  # [k]
    weights: Array  # [k, n, n]
    smooth: Array  # [k, n, n]
    memory: int  # rounds that the smoothing remembers
    seeds: int

    @property
    def logged(self) -> str:
        """How often W was logged, in words."""
        gaps = np.diff(self.rounds)
        most = int(gaps.max())
        if most == 1:
            return "each round"
        return f"as logged, {'every' if gaps.min() == most else 'at most every'} {most} rounds"

    @property
    def own_included(self) -> bool:
        """Whether a client's weight for itself is a part of what sums to 1."""
        return round(1.0 / self.share) == len(self.labels)

    def name(self, client: int) -> str:
        """The client's name, or `client 3` if it has none."""
        label = self.labels[client]
        return f"client {label}" if label == str(client) else label

    def partners(self, client: int) -> list[int]:
        """All other clients."""
        return [partner for partner in range(len(self.labels)) if partner != client]


def draw_shares(group: Group, path: Path) -> list[Path]:
    """Draw the weights of every client for every other one against rounds, with the CSV beside it.

    There is a panel for each client. The bold lines are exponential moving averages of what was logged,
    which is faint. Returns the files written: none if rows of W do not sum to 1, if W never moves, or if
    there are more than `MAX_CLIENTS`.
    """
    found = _average(group)
    if found is None:
        return []
    count = len(found.labels)
    columns = 2 if count <= 4 else 3 if count in (5, 6, 9) else 4
    width = current_look().width(5.6 if columns == 2 else 7.2)
    columns = min(columns, max(2, int(width / points(1.4))))
    lines = -(-count // columns)
    with canvas(width, 1.45 * lines + 0.55) as figure:
        grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
        for client, axes in enumerate(grid.ravel()):
            if client < count:
                _draw_panel(axes, found, client)
                mark_events(axes, [group], labels_at=None)
            else:
                axes.set_axis_off()
        _set_limits(grid[0, 0], found)
        for column in range(columns):
            lowest = grid[(count - 1 - column) // columns, column]
            lowest.tick_params(labelbottom=True)
            round_axis(lowest)
        for axes in grid[:, 0]:
            axes.set_ylabel("weight")
        note = textwrap.fill(_note(group, found), int(15 * width / points(1.0)))
        figure.suptitle(note, fontsize=points(6.5), color="#444444", x=0.01, ha="left")
        _draw_legend(figure, found)
        return save(figure, path, _frame(group, found))


def left_out(groups: Sequence[Group]) -> list[str]:
    """Return a sentence for each group that has too many clients for this figure."""
    found = []
    for group in groups:
        logged = _logged(group)
        if logged and logged[0].clients > MAX_CLIENTS:
            found.append(
                f"Weights over rounds, client by client, are drawn for up to {MAX_CLIENTS} clients, "
                f"and {group.title} has {logged[0].clients}: see its heat maps."
            )
    return found


def _logged(group: Group) -> list[Weights]:
    """The weights of the seeds that sum to 1 and move, of the same clients as the first of them."""
    logged = [run.weights for run in group.runs if run.weights is not None]
    logged = [one for one in logged if one.share and one.moves]
    return [one for one in logged if one.labels == logged[0].labels]


def _average(group: Group) -> _Shares | None:
    logged = _logged(group)
    if not logged or logged[0].clients > MAX_CLIENTS:
        return None
    rounds = sorted(set.intersection(*(set(one.rounds.tolist()) for one in logged)))
    each = [one.weights[np.isin(one.rounds, rounds)].astype(np.float64) for one in logged]
    weights = np.mean(each, axis=0)  # [k, n, n]
    # Before its first average a client of `validation_based` has a weight of 1 for itself. It has weighed
    # nothing yet, so lines begin after that.
    averaged = (weights != np.eye(logged[0].clients)).any(axis=(1, 2))
    first = int(averaged.argmax())
    kept, weights = np.asarray(rounds[first:], dtype=np.int64), weights[first:]
    if len(kept) < 2:
        return None
    # The average covers more than one value, even if W was seldom logged.
    memory = max(round((kept[-1] - kept[0]) / _MEMORY_SHARE), 2 * int(np.diff(kept).max()))
    most = _MAX_NAME_LETTERS
    labels = [name if len(name) <= most else f"{name[: most - 1]}…" for name in logged[0].labels]
    smooth = moving_average(kept, weights, memory)
    return _Shares(labels, logged[0].share, kept, weights, smooth, memory, len(logged))


def _draw_panel(axes: Axes, found: _Shares, client: int) -> None:
    marked = len(found.rounds) <= 2 * _MEMORY_SHARE
    partners = found.partners(client)
    faint = min(0.3, 1.2 / len(partners))  # many of them together must not hide the bold lines
    for partner in partners:
        color, dashes = client_style(partner)
        axes.plot(
            found.rounds,
            found.weights[:, client, partner],
            color=color,
            alpha=faint,
            linewidth=0.6,
            zorder=2.5,
            marker="o" if marked else None,
            markersize=1.8,
        )
        axes.plot(
            found.rounds,
            found.smooth[:, client, partner],
            color=color,
            linestyle=dashes,
            linewidth=1.5,
            zorder=3 + partner,
        )
    axes.axhline(found.share, color=DARK_GREY, linewidth=0.6, zorder=2)
    color, _ = client_style(client)
    title = axes.set_title(f"{found.name(client)} gives", pad=3.0)
    title.set_color(color)


def _set_limits(axes: Axes, found: _Shares) -> None:
    """Limit the common axis to the smoothed lines and to nearly all of the logged values."""
    off = ~np.eye(len(found.labels), dtype=bool)
    smooth, raw = found.smooth[:, off], found.weights[:, off]
    smooth, raw = smooth[np.isfinite(smooth)], raw[np.isfinite(raw)]
    if not len(smooth):
        return
    low, high = (float(edge) for edge in np.percentile(raw, [1.0, 99.0]))
    low = min(low, float(smooth.min()), found.share)
    high = max(high, float(smooth.max()), found.share)
    margin = 0.06 * (high - low) or 0.01
    axes.set_ylim(max(low - margin, -0.02), min(high + margin, 1.02))
    axes.set_xlim(0.0, float(found.rounds[-1]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))


def _draw_legend(figure: Figure, found: _Shares) -> None:
    handles: dict[str, Artist] = {}
    for client in range(len(found.labels)):
        color, dashes = client_style(client)
        line = Line2D([], [], color=color, linestyle=dashes, linewidth=1.5)
        handles[f"to {found.name(client)}"] = line
    equal = f"equal share, 1/{round(1.0 / found.share)}"
    handles[equal] = Line2D([], [], color=DARK_GREY, linewidth=0.6)
    place_legend(figure, handles, handlelength=2.2)


def _note(group: Group, found: _Shares) -> str:
    """What the lines are: the method, the smoothing, the seeds, and how often W was logged."""
    parts = [f"bold: exponential moving average over {found.memory} rounds"]
    parts.append(f"faint: {found.logged}")
    if found.seeds > 1:
        parts.append(f"mean of {found.seeds} seeds")
    if found.own_included:
        parts.append("what is left of 1 is its own")
    return f"{group.title}; " + "; ".join(parts)


def _frame(group: Group, found: _Shares) -> pd.DataFrame:
    """The drawn lines as rows of a CSV."""
    n = len(found.labels)
    places = pd.MultiIndex.from_product(
        [range(n), range(n), found.rounds], names=["client", "partner", "round"]
    )
    columns = {"weight": found.weights, "smoothed": found.smooth}
    flat = {name: values.transpose(1, 2, 0).ravel() for name, values in columns.items()}
    frame = pd.DataFrame(flat, index=places).reset_index().query("client != partner")
    for column in ("client", "partner"):
        frame[column] = frame[column].map(dict(enumerate(found.labels)))
    frame.insert(0, "method", group.label)
    return frame.assign(seeds=found.seeds)
