"""Curves against rounds, one line per method: test metric, loss, and the decay of Theorem 1."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from cobo_dist.reports.figures.style import Look, canvas, log_axis, look, round_axis, save
from cobo_dist.reports.grouping import Group, mean_over_clients, task_split
from cobo_dist.reports.series import Curve, over_seeds, running_mean
from cobo_dist.reports.writing import write_csv

HEADER = ("method", "quantity", "round", "mean", "std", "seeds")

_FEW = 25  # points on a line, below which each gets a marker
_NAMES = {"accuracy": "accuracy (%)", "perplexity": "perplexity", "loss": "loss"}
_DECAYS = {
    "consensus_distance": "consensus distance within clusters",
    "gradient_norm": "squared gradient norm",
}


def curve_rows(method: str, quantity: str, curve: Curve) -> Iterator[tuple[object, ...]]:
    """The rows of one curve under `HEADER`; no deviation where a single seed has the round."""
    columns = (curve.rounds, curve.mean, curve.std, curve.seeds)
    for number, mean, std, seeds in zip(*(column.tolist() for column in columns), strict=True):
        yield method, quantity, number, mean, std if seeds > 1 else None, seeds


def draw_curve(axes: Axes, curve: Curve, style: Look, label: str, scale: float = 1.0) -> None:
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
    if np.isfinite(std).any():
        axes.fill_between(
            curve.rounds,
            mean - std,
            mean + std,
            color=style.colour,
            alpha=0.18,
            linewidth=0,
            zorder=style.layer - 1.5,
        )


def draw_metric(groups: Sequence[Group], metric: str, path: Path) -> list[Path]:
    """Draw the mean test metric over clients against rounds, with the CSV beside it.

    Accuracies are drawn in percent and written as the fractions they were logged as. Returns the
    files written: none where no run has a finite value.
    """
    split = task_split(groups)
    curves = {
        group: over_seeds([mean_over_clients(run, split, metric) for run in group.runs])
        for group in groups
    }
    curves = {group: curve for group, curve in curves.items() if curve.drawable}
    if not curves:
        return []
    rows = [
        row for group, curve in curves.items() for row in curve_rows(group.label, metric, curve)
    ]
    with canvas(4.4, 2.5) as figure:
        axes = figure.add_subplot()
        # The legend lists the lines from top to bottom, as they end at the right.
        for group in sorted(curves, key=lambda group: -np.nan_to_num(curves[group].last)):
            style = look(group)
            draw_curve(
                axes, curves[group], style, style.title, 100.0 if metric == "accuracy" else 1.0
            )
        round_axis(axes)
        axes.set_ylabel(f"{split} {_NAMES[metric]}")
        if metric != "accuracy" and _spans_decades(list(curves.values())):
            axes.set_yscale("log")
            log_axis(axes.yaxis)
        figure.legend(loc="outside right center")
        return [save(figure, path), write_csv(path.with_suffix(".csv"), HEADER, rows)]


def draw_decay(groups: Sequence[Group], path: Path) -> list[Path]:
    """Draw consensus distance and squared gradient norm on logarithmic axes, with the CSV.

    Bold is the mean over rounds 1..T, the quantity that Theorem 1 bounds by O(1/T); faint the
    value of each round. Returns the files written: none where no run has these quantities.
    """
    panels: dict[str, dict[Group, tuple[Curve, Curve]]] = {}
    rows: list[tuple[object, ...]] = []
    for quantity in _DECAYS:
        for group in groups:
            series = [run.rounds[quantity] for run in group.runs if quantity in run.rounds]
            each, mean = over_seeds(series), over_seeds([running_mean(values) for values in series])
            if each.drawable and (each.mean > 0).any():
                panels.setdefault(quantity, {})[group] = (each, mean)
                rows += curve_rows(group.label, quantity, each)
                rows += curve_rows(group.label, f"{quantity}_mean_to_round", mean)
    if not panels:
        return []
    with canvas(2.9 * len(panels) + 1.2, 2.4) as figure:
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (quantity, curves) in zip(grid, panels.items(), strict=True):
            _draw_decay_panel(axes, curves)
            axes.set_title(_DECAYS[quantity])
        grid[0].set_ylabel("mean over rounds 1..T (faint: at T)")
        handles: dict[str, Artist] = {}
        for axes in grid:
            found, labels = axes.get_legend_handles_labels()
            handles |= dict(zip(labels, found, strict=True))
        figure.legend(list(handles.values()), list(handles), loc="outside right center")
        return [save(figure, path), write_csv(path.with_suffix(".csv"), HEADER, rows)]


def _draw_decay_panel(axes: Axes, curves: Mapping[Group, tuple[Curve, Curve]]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for group, (each, mean) in curves.items():
        style = look(group)
        # A value that has reached 0 exactly has no place on this axis: the line ends there.
        raw = np.where(each.mean > 0, each.mean, np.nan)
        bold = np.where(mean.mean > 0, mean.mean, np.nan)
        axes.plot(each.rounds, raw, color=style.colour, linewidth=0.7, alpha=0.45)
        axes.plot(
            mean.rounds,
            bold,
            label=style.title,
            color=style.colour,
            linestyle=style.dashes,
            linewidth=style.width,
            zorder=style.layer,
            marker="o" if len(bold) == 1 else None,
        )
    _draw_guide(axes, [mean for _, mean in curves.values() if mean.last > 0])
    axes.set_xlabel("round T")
    for axis in (axes.xaxis, axes.yaxis):
        log_axis(axis)


def _draw_guide(axes: Axes, means: Sequence[Curve]) -> None:
    """A line of slope -1 under the end of the lowest curve, to compare slopes by eye."""
    lowest = min(means, key=lambda curve: curve.last, default=None)
    if lowest is None:
        return
    last = float(lowest.rounds[-1])
    rounds = np.array([max(last / 30.0, 1.0), last])
    guide = 0.4 * lowest.last * last / rounds
    axes.plot(rounds, guide, color="#333333", linestyle=":", linewidth=1.2, label="guide: 1/T")
    # The values of single rounds may decay to the smallest float; the axis follows the means.
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 0.02 * lowest.last))


def _spans_decades(curves: Sequence[Curve]) -> bool:
    """Whether a linear axis would press most of the curves flat."""
    values = np.concatenate([curve.mean[np.isfinite(curve.mean)] for curve in curves])
    return bool(values.min() > 0 and values.max() / values.min() > 8)
