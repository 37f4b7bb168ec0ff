"""How many rounds each method takes to reach fixed accuracies, as the paper's Figure 2b is read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from cobo_dist.formatting import INTERVAL_NOTE
from cobo_dist.maths.confidence import half_width
from cobo_dist.reports.grouping import Group
from cobo_dist.reports.grouping.groups import length_note
from cobo_dist.reports.metrics import (
    mean_over_clients,
    percent,
    problem_metric,
    problem_split,
)
from cobo_dist.reports.reading.events import virtual_seconds
from cobo_dist.reports.tables.table import Table
from cobo_dist.storage.schema import higher_is_better

_MAX_TARGETS = 4
_STEPS = (10.0, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1)  # between targets, in percent
_MAX_RATIO = 1.25  # between targets of a perplexity
_TOLERANCE = 1e-9  # for the rounding of a fraction in percent: 0.6 * 100 may lie below 60


def rounds_to_target_table(groups: Sequence[Group]) -> Table | None:
    """Return the rounds until the mean over clients first reaches each target.

    None where nothing was evaluated over the rounds, where a problem has only a loss, or where no method
    gets beyond the first values of all.
    """
    metric, split = problem_metric(groups), problem_split(groups)
    if metric == "loss":
        return None
    curves = {group: _curves(group, split, metric) for group in groups}
    curves = {group: frame for group, frame in curves.items() if not frame.empty}
    higher = higher_is_better(metric)
    targets = _targets([frame[run] for frame in curves.values() for run in frame], higher)
    if not targets:
        return None
    verb, unit = "at least" if higher else "at most", "%" if metric == "accuracy" else ""
    text: list[list[str]] = []
    numbers: list[dict[str, object]] = []
    for group, frame in curves.items():
        line = [group.title]
        for target in targets:
            first = first_rounds(frame, target, higher)
            seconds = _seconds_at(group, first)
            line.append(_show(first, len(frame.columns), seconds))
            numbers.append(
                {
                    "method": group.label,
                    f"{metric}_percent" if metric == "accuracy" else metric: target,
                    "round_mean": first.mean() if len(first) else "",
                    "round_std": first.std() if len(first) > 1 else "",
                    "round_ci95": float(half_width(first.std(), len(first)))
                    if len(first) > 1
                    else "",
                    "virtual_seconds_mean": seconds.mean() if len(seconds) else "",
                    "seeds_reached": len(first),
                    "seeds": len(frame.columns),
                }
            )
        text.append(line)
    headings = ["method", *(f"{verb} {target:g}{unit}" for target in targets)]
    table = pd.DataFrame(numbers, dtype=object)
    if all(row["virtual_seconds_mean"] == "" for row in numbers):  # no run has virtual time
        table = table.drop(columns="virtual_seconds_mean")
    return Table(
        caption="Rounds to reach",
        text=pd.DataFrame(text, columns=headings),
        notes=(_note(groups, metric, split),),
        numbers=table,
    )


def first_rounds(frame: pd.DataFrame, target: float, higher: bool) -> pd.Series[float]:
    """Return the first round at which each run of a frame [round, run] is at least (else at most) a target.

    Runs that never reach it are left out.

    >>> frame = pd.DataFrame({"a": [10.0, 50.0, 60.0], "b": [10.0, 20.0, 30.0]}, index=[0, 5, 10])
    >>> first_rounds(frame, 50.0, higher=True).to_dict()
    {'a': 5.0}
    """
    reached = frame.ge(target - _TOLERANCE) if higher else frame.le(target + _TOLERANCE)
    return reached.loc[:, reached.any()].idxmax().astype(np.float64)


def _curves(group: Group, split: str, metric: str) -> pd.DataFrame:
    """The metric of the runs of a group in shown units, [round, run]; NaN where a run has no value."""
    series = [mean_over_clients(run, split, metric) for run in group.runs]
    return pd.DataFrame({i: one for i, one in enumerate(series) if one}).sort_index() * percent(
        metric
    )


def _targets(curves: Sequence[pd.Series[float]], higher: bool) -> list[float]:
    """Round values that the best method reaches and no method begins at, easiest first."""
    finite = [curve[np.isfinite(curve)] for curve in curves]
    finite = [curve for curve in finite if len(curve) > 1]
    if not finite:
        return []
    choose = max if higher else min
    start = choose(float(curve.iloc[0]) for curve in finite)
    best = choose(float(value) for curve in finite for value in curve)
    if higher:
        for step in _STEPS:
            targets = [step * i for i in range(math.floor(best / step + _TOLERANCE), 0, -1)]
            targets = [target for target in targets if target > start][:_MAX_TARGETS]
            if len(targets) >= _MAX_TARGETS - 1:
                return [round(target, 6) for target in reversed(targets)]
        return []
    if not 0 < best < start:
        return []
    # Perplexities fall fast and then slowly: the targets have equal ratios, from the best on.
    ratio = min(_MAX_RATIO, (start / best) ** (1.0 / (_MAX_TARGETS + 1)))
    return sorted({_up_to_two_digits(best * ratio**i) for i in range(_MAX_TARGETS)}, reverse=True)


def _up_to_two_digits(value: float) -> float:
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return round(math.ceil(value / unit - _TOLERANCE) * unit, 9)


def _seconds_at(group: Group, first: pd.Series[float]) -> pd.Series[float]:
    """The virtual seconds at the end of a round of each run; empty where a run has no virtual time."""
    each = [virtual_seconds(group.runs[int(str(run))]) for run in first.index]
    if not all(each):
        return pd.Series(np.empty(0))
    return pd.Series([at[int(r)] for at, r in zip(each, first, strict=True)], dtype=np.float64)


def _show(first: pd.Series[float], seeds: int, seconds: pd.Series[float]) -> str:
    if not len(first):
        return "-"
    text = f"{first.mean():.0f}"
    if len(first) > 1:
        text += f" ± {half_width(first.std(), len(first)):.0f}"
    if len(seconds):
        text += f" ({seconds.mean():.4g} s)"
    return text if len(first) == seeds else f"{text} ({len(first)} of {seeds} seeds)"


def _note(groups: Sequence[Group], metric: str, split: str) -> str:
    note = (
        f"First evaluated round at which the mean {split} {metric} over clients is at that level; "
        f"{INTERVAL_NOTE} Seeds that do not reach it are left out. -: not reached."
    )
    if any(virtual_seconds(run) for group in groups for run in group.runs):
        note += " In parentheses: its end in virtual seconds, mean over seeds."
    if length_note(groups):
        note += " Runs differ in their number of rounds, so one may just have been too short."
    if any(run.parts.get(split) for group in groups for run in group.runs):
        note += f" During training it is measured on a part of the {split} data."
    return note
