"""Curves against rounds, one line per method: the mean metric over clients, with a band over seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from cobo_dist.reports.figures.style import Look, canvas, log_axis, look, round_axis, save
from cobo_dist.reports.grouping.groups import Group, show_settings
from cobo_dist.reports.statistics import Curve, over_seeds
from cobo_dist.reports.tables.scores import mean_over_clients, percent, problem_split
from cobo_dist.reports.writing import write_csv

HEADER = ("method", "quantity", "round", "mean", "std", "seeds")

_FEW = 25  # points on a line, below which each gets a marker
_BANDS = 4  # settings of one method, up to which each has its band
_NAMES = {"accuracy": "accuracy (%)", "perplexity": "perplexity", "loss": "loss"}


@dataclass(frozen=True)
class _Evaluations:
    """One group's metric over rounds: on a part of the split's data, and on all of it.

    The two are never joined: a step from one to the other would read as progress.
    """

    part: Curve
    whole: Curve

    @property
    def line(self) -> Curve:
        """What is drawn as a line; where that is the part, `whole` is drawn as points beside it."""
        return self.part if self.part.drawable else self.whole

    @property
    def drawable(self) -> bool:
        """Whether there is a finite value to draw."""
        return self.part.drawable or self.whole.drawable

    @property
    def last(self) -> float:
        """The value by which the legend is ordered."""
        return self.whole.last if self.whole.drawable else self.part.last


def curve_rows(method: str, quantity: str, curve: Curve) -> Iterator[tuple[object, ...]]:
    """The rows of one curve under `HEADER`; no deviation where a single seed has the round."""
    columns = (curve.rounds, curve.mean, curve.std, curve.seeds)
    for number, mean, std, seeds in zip(*(column.tolist() for column in columns), strict=True):
        yield method, quantity, number, mean, std if seeds > 1 else None, seeds


def draw_curve(
    axes: Axes, curve: Curve, style: Look, label: str, scale: float = 1.0, band: bool = True
) -> None:
    """Draw the mean and a ± std band. NaN leaves a gap; infinite values count as NaN."""
    mean = np.where(np.isfinite(curve.mean), curve.mean, np.nan) * scale
    std = curve.std * scale
    # A value between two gaps is no line: markers keep it, and tell measured from drawn.
    known = np.pad(np.isfinite(mean), 1)
    finite = int(known.sum())
    alone = known[1:-1] & ~known[:-2] & ~known[2:]
    axes.plot(
        curve.rounds,
        mean,
        label=label,
        color=style.colour,
        linestyle=style.dashes,
        linewidth=style.width,
        zorder=style.layer,
        marker="o" if finite <= _FEW or alone.any() else None,
        markersize=2.4 if finite > 1 else 4,
        markevery=None if finite <= _FEW else np.flatnonzero(alone).tolist(),
    )
    if band and np.isfinite(std).any():
        axes.fill_between(
            curve.rounds,
            mean - std,
            mean + std,
            color=style.colour,
            alpha=0.18,
            linewidth=0,
            zorder=style.layer - 1.5,
        )


def draw_metric(groups: Sequence[Group], metric: str, path: Path, only: str = "") -> list[Path]:
    """Draw the mean metric over clients against rounds, with the CSV beside it.

    `only` names the one method of all groups: the legend then tells their settings, and the axis
    begins where the curves have come near their ends, for settings differ less than methods.
    Accuracies are drawn in percent and written as the fractions they were logged as. Returns the
    files written: none where no run has a finite value.
    """
    split = problem_split(groups)
    found = {group: _evaluations(group, split, metric) for group in groups}
    found = {group: values for group, values in found.items() if values.drawable}
    if not found:
        return []
    names = {group: show_settings(group.settings) if only else look(group).title for group in found}
    lines = [line for name in names.values() for line in name.split("\n")]
    # The axes keep their size however long the legend beside them is.
    width, height = 3.6 + 0.055 * max(map(len, lines)), max(2.6, 0.15 * len(lines) + 0.6)
    with canvas(width, height) as figure:
        axes = figure.add_subplot()
        # The legend lists the lines from top to bottom, as they end at the right.
        for group in sorted(found, key=lambda group: -np.nan_to_num(found[group].last)):
            style = look(group, crowded=bool(only))
            # The bands of many settings lie on one another; the CSV has their numbers.
            band = not only or len(found) <= _BANDS
            _draw_evaluations(axes, found[group], style, names[group], percent(metric), band)
        round_axis(axes)
        axes.set_ylabel(f"{split} {_NAMES[metric]}")
        if metric != "accuracy" and _spans_decades([values.line for values in found.values()]):
            axes.set_yscale("log")
            log_axis(axes.yaxis)
        if only:
            _show_ends(axes, [values.line for values in found.values()], percent(metric))
        if note := part_note(groups, found, split):
            axes.set_title(note, fontsize=6.5, loc="left", color="#444444")
        figure.legend(loc="outside right center", title=only or None)
        image = save(figure, path)
    rows = [
        (*row, whole)
        for group, values in found.items()
        for curve, whole in ((values.part, "false"), (values.whole, "true"))
        for row in curve_rows(group.label, metric, curve)
    ]
    return [image, write_csv(path.with_suffix(".csv"), (*HEADER, "whole"), rows)]


def part_note(
    groups: Sequence[Group], found: Mapping[Group, _Evaluations], split: str
) -> str | None:
    """What the lines and the points were measured on, where that is not all of the data."""
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


def _evaluations(group: Group, split: str, metric: str) -> _Evaluations:
    part, whole = [], []
    for run in group.runs:
        series, parts = mean_over_clients(run, split, metric), run.parts.get(split, {})
        part.append({number: value for number, value in series.items() if number in parts})
        whole.append({number: value for number, value in series.items() if number not in parts})
    return _Evaluations(over_seeds(part), over_seeds(whole))


def _draw_evaluations(
    axes: Axes, values: _Evaluations, style: Look, name: str, scale: float, band: bool
) -> None:
    draw_curve(axes, values.line, style, name, scale, band)
    if values.line is values.whole or not values.whole.drawable:
        return
    whole = values.whole
    bars = band and np.isfinite(whole.std).any()
    axes.errorbar(
        whole.rounds,
        whole.mean * scale,
        yerr=np.nan_to_num(whole.std) * scale if bars else None,
        color=style.colour,
        linestyle="none",
        marker="D",
        markersize=3.6,
        markeredgecolor="white",
        markeredgewidth=0.5,
        elinewidth=0.8,
        zorder=style.layer + 2.0,
        clip_on=False,
    )


def _show_ends(axes: Axes, curves: Sequence[Curve], scale: float) -> None:
    """Cut the axis to the values of the last four fifths of the rounds."""
    last = max(curve.rounds[-1] for curve in curves)
    late = np.concatenate([curve.mean[curve.rounds >= 0.2 * last] for curve in curves]) * scale
    late = late[np.isfinite(late)]
    if len(late) > 1 and late.max() > late.min():
        margin = 0.08 * (late.max() - late.min())
        axes.set_ylim(late.min() - margin, late.max() + margin)


def _spans_decades(curves: Sequence[Curve]) -> bool:
    """Whether a linear axis would press most of the curves flat."""
    values = np.concatenate([curve.mean[np.isfinite(curve.mean)] for curve in curves])
    return bool(values.min() > 0 and values.max() / values.min() > 8)
