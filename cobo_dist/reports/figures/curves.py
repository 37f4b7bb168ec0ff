"""Curves against rounds, one line per method: the mean metric over clients, with a band over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes

from cobo_dist.reports.figures.events import mark_events
from cobo_dist.reports.figures.style import (
    METRIC_LABELS,
    LineStyle,
    canvas,
    group_style,
    log_axis,
    round_axis,
    save,
    shared_legend,
)
from cobo_dist.reports.grouping import Group
from cobo_dist.reports.grouping.settings import show_settings
from cobo_dist.reports.look import points
from cobo_dist.reports.metrics import (
    mean_over_clients,
    percent,
    problem_split,
)
from cobo_dist.reports.statistics import Array, Curve, over_seeds

_MAX_MARKED_POINTS = 14  # of a line whose points all have a marker
_MARKERS_A_LINE = 8  # of one with more points
_MAX_BANDS = 4  # settings of one method that have a band each
_LOG_RATIO = 8  # of the largest to the smallest value, from which on the axis is logarithmic


@dataclass(frozen=True)
class Evaluations:
    """One group's metric over rounds: on a part of the split's data, and on all of it.

    The two are never joined, because a step from one to the other would read as progress.
    """

    part: Curve
    whole: Curve

    @property
    def line(self) -> Curve:
        """What is drawn as a line; if that is the part, `whole` is drawn as points beside it."""
        return self.part if self.part.drawable else self.whole

    @property
    def drawable(self) -> bool:
        """Whether there is a finite value to draw."""
        return self.part.drawable or self.whole.drawable

    @property
    def last(self) -> float:
        """The value by which the legend is ordered."""
        return self.whole.last if self.whole.drawable else self.part.last


def curve_frame(method: str, quantity: str, curve: Curve) -> pd.DataFrame:
    """Return a curve as rows of a CSV; `std` and `ci95` are empty where a single seed has the round."""
    known = curve.seeds > 1
    return pd.DataFrame(
        {
            "method": method,
            "quantity": quantity,
            "round": curve.rounds,
            "mean": curve.mean,
            "std": np.where(known, curve.std.astype(object), ""),
            "ci95": np.where(known, curve.ci95.astype(object), ""),
            "seeds": curve.seeds,
        }
    )


def draw_curve(
    axes: Axes,
    curve: Curve,
    style: LineStyle,
    scale: float = 1.0,
    band: bool = True,
    at: Array | None = None,
) -> None:
    """Draw the mean and a band of its 95% confidence interval. NaN leaves a gap; infinite values are NaN.

    `at`: where the points are, [k]; None: at their rounds.
    """
    places = curve.rounds if at is None else at
    mean = np.where(np.isfinite(curve.mean), curve.mean, np.nan) * scale
    half = curve.ci95 * scale
    # A single value between two gaps is no line, so it gets a marker.
    known = np.pad(np.isfinite(mean), 1)
    finite = int(known.sum())
    alone = known[1:-1] & ~known[:-2] & ~known[2:]
    axes.plot(
        places,
        mean,
        markevery=_marked(known[1:-1], alone, sum(style.title.encode())),
        **style.points | ({} if finite > 1 else {"markersize": 4.5}),
        **style.line,
    )
    if band and np.isfinite(half).any():
        axes.fill_between(
            places,
            mean - half,
            mean + half,
            color=style.color,
            alpha=0.18,
            linewidth=0,
            zorder=style.layer - 1.5,
        )


def _marked(known: npt.NDArray[np.bool_], alone: npt.NDArray[np.bool_], start: int) -> list[int]:
    """Return which points of a line have a marker: all if they are few, else some from `start` on.

    Lines that start apart do not cover each other's markers. [k], [k]
    """
    places = np.flatnonzero(known)
    if len(places) <= _MAX_MARKED_POINTS:
        return [int(place) for place in places]
    step = len(places) // _MARKERS_A_LINE
    return sorted({*places[start % step :: step].tolist(), *np.flatnonzero(alone).tolist()})


def limit_bands(axes: Axes, means: Sequence[Array]) -> None:
    """Let intervals widen the axis by half of what the means span at most, on either side.

    `means` are as drawn. With two seeds an interval is often many times as wide as all means together, which
    would then look flat.
    """
    known = np.concatenate(means)
    known = known[np.isfinite(known)]
    if not len(known) or known.min() == known.max():
        return
    bent = axes.yaxis.get_transform()  # the logarithm, on a logarithmic axis
    low, high = bent.transform(np.array([known.min(), known.max()]))
    bottom, top = bent.transform(np.array(axes.get_ylim()))
    margin = 0.5 * (high - low)
    limits = np.array([max(bottom, low - margin), min(top, high + margin)])
    axes.set_ylim(*bent.inverted().transform(limits).tolist())


def draw_metric(groups: Sequence[Group], metric: str, path: Path, only: str = "") -> list[Path]:
    """Draw the mean metric over clients against rounds, with the CSV beside it.

    `only` names the one method of all groups. The legend then shows their settings, and the axis leaves
    out the first rounds, because settings differ less than methods. Accuracies are drawn in percent and
    written as fractions, as they were logged. Returns the files written: none if no run has a finite value.
    """
    split = problem_split(groups)
    found = {group: evaluations(group, split, metric) for group in groups}
    found = {group: values for group, values in found.items() if values.drawable}
    if not found:
        return []
    curves = [values.line for values in found.values()]
    styles = {group: group_style(group, alone=bool(only)) for group in found}
    if only:
        titles = {group: show_settings(group.settings) for group in found}
        styles = {group: replace(styles[group], title=titles[group]) for group in found}
    with canvas(3.2, 2.6) as figure:
        axes = figure.add_subplot()
        # The legend lists the lines from top to bottom, as they end at the right.
        for group in sorted(found, key=lambda group: -np.nan_to_num(found[group].last)):
            # The bands of many settings would hide one another; the CSV has their numbers.
            band = not only or len(found) <= _MAX_BANDS
            _draw_evaluations(axes, found[group], styles[group], percent(metric), band)
        mark_events(axes, groups)
        round_axis(axes)
        axes.set_ylabel(f"{split} {METRIC_LABELS.get(metric, metric)}")
        logarithmic = metric != "accuracy" and _spans_decades(curves)
        if logarithmic:
            axes.set_yscale("log")
        means = [curve.mean for values in found.values() for curve in (values.part, values.whole)]
        limit_bands(axes, [percent(metric) * mean for mean in means])
        if metric == "accuracy":  # an interval may be wider than what there is
            low, high = axes.get_ylim()
            axes.set_ylim(max(low, -2.0), min(high, 102.0))
        if logarithmic:
            log_axis(axes.yaxis)
        if only:
            _limit_to_late_values(axes, curves, percent(metric))
        if note := _part_note(groups, found, split):
            axes.set_title(note, fontsize=points(6.5), loc="left", color="#444444")
        shared_legend(figure, [axes], only or None)
        frames = [
            curve_frame(group.label, metric, curve).assign(whole=whole)
            for group, values in found.items()
            for curve, whole in ((values.part, "false"), (values.whole, "true"))
        ]
        return save(figure, path, pd.concat(frames))


def _part_note(
    groups: Sequence[Group], found: Mapping[Group, Evaluations], split: str
) -> str | None:
    """What the lines and the points were measured on, if that is not all of the data."""
    parts = [values.part.drawable for values in found.values()]
    if not any(parts):
        return None
    counts = {
        count
        for group in groups
        for run in group.runs
        for count in run.parts.get(split, {}).values()
    }
    size = f" ({counts.pop()} examples a client)" if len(counts) == 1 and None not in counts else ""
    lines = "lines" if all(parts) else "lines that end in a diamond"
    return f"{lines}: part of the {split} data{size}; diamonds: all of it"


def evaluations(group: Group, split: str, metric: str) -> Evaluations:
    part, whole = [], []
    for run in group.runs:
        series, parts = mean_over_clients(run, split, metric), run.parts.get(split, {})
        part.append({number: value for number, value in series.items() if number in parts})
        whole.append({number: value for number, value in series.items() if number not in parts})
    return Evaluations(over_seeds(part), over_seeds(whole))


def _draw_evaluations(
    axes: Axes, values: Evaluations, style: LineStyle, scale: float, band: bool
) -> None:
    draw_curve(axes, values.line, style, scale, band)
    whole = values.whole
    if values.line is whole or not whole.drawable:
        return
    bars = band and np.isfinite(whole.ci95).any()
    axes.errorbar(
        whole.rounds,
        whole.mean * scale,
        yerr=np.nan_to_num(whole.ci95) * scale if bars else None,
        color=style.color,
        linestyle="none",
        marker="D",
        markersize=3.6,
        markeredgecolor="white",
        markeredgewidth=0.5,
        elinewidth=0.8,
        zorder=style.layer + 2.0,
        clip_on=False,
    )


def _limit_to_late_values(axes: Axes, curves: Sequence[Curve], scale: float) -> None:
    """Limit the axis to the values of the last four fifths of the rounds."""
    last = max(curve.rounds[-1] for curve in curves)
    late = np.concatenate([curve.mean[curve.rounds >= 0.2 * last] for curve in curves]) * scale
    late = late[np.isfinite(late)]
    if len(late) > 1 and late.max() > late.min():
        margin = 0.08 * (late.max() - late.min())
        axes.set_ylim(late.min() - margin, late.max() + margin)


def _spans_decades(curves: Sequence[Curve]) -> bool:
    """Whether most of the curves would look flat on a linear axis."""
    values = np.concatenate([curve.mean[np.isfinite(curve.mean)] for curve in curves])
    return bool(values.min() > 0 and values.max() / values.min() > _LOG_RATIO)
