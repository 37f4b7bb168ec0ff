"""How many rounds each method takes to reach fixed accuracies, as the paper's Figure 2b is read."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cobo_dist.reports.grouping.groups import Group
from cobo_dist.reports.reading.series import Series
from cobo_dist.reports.statistics import mean_std
from cobo_dist.reports.tables.scores import (
    higher_is_better,
    mean_over_clients,
    percent,
    problem_metric,
    problem_split,
)
from cobo_dist.reports.tables.table import Table

_COUNT = 4  # levels in a table
_STEPS = (10.0, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1)


def reached_table(groups: Sequence[Group], caption: str) -> Table | None:
    """Rounds until the mean over clients first reaches each of a few levels, mean ± std over seeds.

    None where nothing was evaluated over the rounds, where a problem has only a loss, or where no
    method gets beyond where all begin.
    """
    metric, split = problem_metric(groups), problem_split(groups)
    if metric == "loss":
        return None
    curves = {
        group: [
            {number: value * percent(metric) for number, value in series.items()}
            for run in group.runs
            if (series := mean_over_clients(run, split, metric))
        ]
        for group in groups
    }
    curves = {group: found for group, found in curves.items() if found}
    levels = _levels([series for found in curves.values() for series in found], metric)
    if not levels:
        return None
    sign = "%" if metric == "accuracy" else ""
    cells: list[tuple[str, ...]] = []
    numbers: list[tuple[object, ...]] = []
    for group, found in curves.items():
        line = [group.title]
        for level in levels:
            firsts = [first_round(series, level, higher_is_better(metric)) for series in found]
            known = [float(first) for first in firsts if first is not None]
            mean, std = mean_std(known) if known else (None, None)
            line.append(_show(mean, std, len(known), len(found)))
            deviation = std if len(known) > 1 else None
            numbers.append((group.label, level, mean, deviation, len(known), len(found)))
        cells.append(tuple(line))
    verb = "at least" if higher_is_better(metric) else "at most"
    return Table(
        caption=caption,
        headings=("method", *(f"{verb} {level:g}{sign}" for level in levels)),
        rows=tuple(cells),
        notes=(_note(groups, metric, split),),
        csv_header=(
            *("method", f"{metric}{'_percent' * (metric == 'accuracy')}"),
            *("round_mean", "round_std", "seeds_reached", "seeds"),
        ),
        csv_rows=tuple(numbers),
    )


def first_round(series: Series, level: float, higher: bool) -> int | None:
    """The first evaluated round at which a value is at least (else at most) the level."""
    for number in sorted(series):
        # A hair's breadth: 0.6 * 100 is 60.000000000000001 or its like.
        if (series[number] >= level - 1e-9) if higher else (series[number] <= level + 1e-9):
            return number
    return None


def _levels(curves: Sequence[Series], metric: str) -> list[float]:
    """Round levels that the best method reaches and none begins at, easiest first."""
    higher = higher_is_better(metric)
    finite = [{n: v for n, v in series.items() if math.isfinite(v)} for series in curves]
    finite = [series for series in finite if len(series) > 1]
    if not finite:
        return []
    choose = max if higher else min
    starts = choose(series[min(series)] for series in finite)
    best = choose(value for series in finite for value in series.values())
    if higher:
        for step in _STEPS:
            levels = [step * i for i in range(math.floor(best / step + 1e-9), 0, -1)]
            levels = [level for level in levels if level > starts][:_COUNT]
            if len(levels) >= _COUNT - 1:
                return [round(level, 6) for level in reversed(levels)]
        return []
    if not 0 < best < starts:
        return []
    # Perplexities fall fast and then slowly: levels at equal ratios from the best on.
    ratio = min(1.25, (starts / best) ** (1.0 / (_COUNT + 1)))
    return sorted({_up_to_two_digits(best * ratio**i) for i in range(_COUNT)}, reverse=True)


def _up_to_two_digits(value: float) -> float:
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return round(math.ceil(value / unit - 1e-9) * unit, 9)


def _show(mean: float | None, std: float | None, reached: int, seeds: int) -> str:
    if mean is None or std is None:
        return "-"
    text = f"{mean:.0f}" + ("" if math.isnan(std) else f" ± {std:.0f}")
    return text if reached == seeds else f"{text} ({reached} of {seeds} seeds)"


def _note(groups: Sequence[Group], metric: str, split: str) -> str:
    note = (
        f"First evaluated round at which the mean {split} {metric} over clients is at that level; "
        "mean ± sample standard deviation over seeds. -: not reached."
    )
    if any(run.parts.get(split) for group in groups for run in group.runs):
        note += f" During training it is measured on a part of the {split} data."
    return note
