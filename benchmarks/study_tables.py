"""Tables and the figure of benchmarks/study.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from markdown_table import markdown
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy import stats

import cobo_dist
from cobo_dist.maths.confidence import half_width
from cobo_dist.reports.figures.style import canvas, round_axis, save, shared_legend

SHOWN = {  # title, color, dashes
    "local": ("Local", "#7f7f7f", ":"),
    "paper": ("CoBo, paper's update", "#d55e00", "--"),
    "robust": ("CoBo, preset robust", "#0072b2", "-"),
    "oracle": ("Oracle", "#000000", "-."),
}
PREFERRED = "robust"  # what the others are compared with


@dataclass(frozen=True)
class Result:
    """One run: test accuracies by round [rounds], in %, and what is known at its end."""

    method: str
    rate: float
    seed: int
    rounds: NDArray[np.int64]
    accuracies: NDArray[np.float64]
    loss: float
    validation: float  # accuracy at the end
    rand: float | None  # adjusted Rand index of the clusters found
    links_f1: float | None
    megabytes: float  # up and down, of a client as a machine of its own

    @classmethod
    def read(cls, path: Path, method: str, rate: float, seed: int) -> Result:
        """Read a finished run."""
        run = cobo_dist.open_run(path)
        frame, summary = run.metrics, run.summary or {}
        means = frame[frame["client"].isna()].sort_values(["round", "whole"])
        last = means.drop_duplicates(["round", "split"], keep="last")
        test, validation = (last[last["split"] == split] for split in ("test", "validation"))
        traffic = summary["bytes_per_client"]
        return cls(
            method, rate, seed,
            test["round"].to_numpy(), 100 * test["accuracy"].to_numpy(),
            float(test["loss"].iloc[-1]), float(validation["accuracy"].iloc[-1]),
            summary.get("adjusted_rand"), summary.get("link_f1"),
            (traffic["up"] + traffic["down"]) / 1e6,
        )  # fmt: skip

    def at(self, round_: int) -> float:
        """Return the accuracy after a round."""
        return float(self.accuracies[np.flatnonzero(self.rounds == round_)[0]])

    def rounds_to(self, accuracy: float) -> float:
        """Return the first evaluated round with at least this accuracy; infinity if there is none."""
        reached = np.flatnonzero(self.accuracies >= accuracy)
        return float(self.rounds[reached[0]]) if len(reached) else np.inf


def by_method(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Return the runs of each method, by seed, in the order given."""
    found: dict[str, list[Result]] = {}
    for one in results:
        found.setdefault(one.method, []).append(one)
    return {method: sorted(runs, key=lambda one: one.seed) for method, runs in found.items()}


def interval(values: Sequence[float], form: str = ".1f") -> str:
    """Return the mean and half of its 95% confidence interval; one value has none."""
    mean = f"{np.mean(values):{form}}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {half_width(np.std(values, ddof=1), len(values)):{form.lstrip('+')}}"


def table(results: Sequence[Result], lengths: Sequence[int]) -> str:
    """Return the table of a task in Markdown.

    `robust - it` is the difference to the preset at the end, seed by seed, and p the paired t-test of it.
    """
    runs = by_method(results)
    oracle = {one.seed: one.at(lengths[-1]) for one in runs.get("oracle", ())}
    preferred = {one.seed: one.at(lengths[-1]) for one in runs.get(PREFERRED, ())}
    rows = []
    for method, own in runs.items():
        ends = [one.at(lengths[-1]) for one in own]
        row = {"method": method, "lr": f"{own[0].rate:g}"}
        row |= {f"{r:,} rounds, %": interval([one.at(r) for one in own]) for r in lengths}
        row["loss"] = interval([one.loss for one in own], ".2f")
        row |= _difference([preferred.get(one.seed) for one in own], ends)
        row["adjusted Rand"] = _mean([one.rand for one in own])
        row["F1 of links"] = _mean([one.links_f1 for one in own])
        if oracle:
            reached = [one.rounds_to(0.95 * oracle[one.seed]) for one in own]
            row["rounds to 95% of Oracle"] = ", ".join(
                f"{one:.0f}" if np.isfinite(one) else "-" for one in reached
            )
        row["MB a client"] = f"{np.mean([one.megabytes for one in own]):.3g}"
        rows.append(row)
    return markdown(pd.DataFrame(rows))


def _difference(preferred: Sequence[float | None], others: Sequence[float]) -> dict[str, str]:
    pairs = [(a, b) for a, b in zip(preferred, others, strict=True) if a is not None]
    gains = [a - b for a, b in pairs]
    if not gains or not np.any(gains):  # the preset itself
        return {f"{PREFERRED} - it": "", "p": ""}
    p = stats.ttest_rel(*zip(*pairs, strict=True)).pvalue if len(gains) > 1 else np.nan
    return {f"{PREFERRED} - it": interval(gains, "+.1f"), "p": f"{p:.2g}" if np.isfinite(p) else ""}


def _mean(values: Sequence[float | None]) -> str:
    known = [one for one in values if one is not None]
    return f"{np.mean(known):.2f}" if known else ""


def draw(results: Mapping[str, Sequence[Result]], path: Path) -> None:
    """Draw accuracy over rounds, a panel a task: means over seeds, with 95% confidence intervals."""
    columns = int(np.ceil(np.sqrt(len(results))))
    lines = -(-len(results) // columns)
    rows = []
    with canvas(2.5 * columns, 2.1 * lines) as figure:
        grid = figure.subplots(lines, columns, squeeze=False)
        for axes, (task, found) in zip(grid.flat, results.items(), strict=False):
            axes.set_title(task)
            for method, own in by_method(found).items():
                if method not in SHOWN:
                    continue
                title, color, dashes = SHOWN[method]
                values = np.stack([one.accuracies for one in own])
                mean, rounds = values.mean(axis=0), own[0].rounds
                axes.plot(rounds, mean, label=title, color=color, linestyle=dashes, linewidth=1.3)
                if len(own) > 1:
                    half = half_width(values.std(axis=0, ddof=1), len(own))
                    axes.fill_between(
                        rounds, mean - half, mean + half, color=color, alpha=0.15, linewidth=0
                    )
                rows += [
                    {
                        "task": task,
                        "method": method,
                        "round": int(r),
                        "accuracy": a,
                        "runs": len(own),
                    }
                    for r, a in zip(rounds, mean, strict=True)
                ]
            _fit_height(axes)
            round_axis(axes)
        for axes in grid.flat[len(results) :]:
            axes.remove()
        for axes in grid[:, 0]:
            axes.set_ylabel("accuracy (%)")
        shared_legend(figure, [axes for axes in grid.flat if axes.figure is not None])
        save(figure, path, pd.DataFrame(rows))


def _fit_height(axes: Axes) -> None:
    """Leave out of sight how all methods begin: the first tenth of the rounds."""
    drawn = [np.column_stack(line.get_data()) for line in axes.get_lines()]
    drawn += [path.vertices for band in axes.collections for path in band.get_paths()]
    points_m2 = np.concatenate(drawn)
    late_m = points_m2[points_m2[:, 0] >= 0.1 * points_m2[:, 0].max(), 1]
    axes.set_ylim(max(0.0, late_m.min() - 2.0), min(100.0, late_m.max() + 2.0))
