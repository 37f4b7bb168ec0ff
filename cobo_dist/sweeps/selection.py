"""The best setting of each method, by its validation scores. Test scores are shown and never used."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cobo_dist.maths.confidence import half_width
from cobo_dist.storage.schema import METRICS, higher_is_better
from cobo_dist.sweeps.axes import Axis
from cobo_dist.sweeps.folders import Result
from cobo_dist.sweeps.grid import Run, is_number, show

Score = tuple[float, float]
"""Mean over seeds, and half the width of its 95% confidence interval; NaN for one seed."""


@dataclass(frozen=True)
class Setting:
    """One setting of a method over its seeds.

    A score is None until every seed is done, or where the split was not evaluated.
    """

    runs: tuple[Run, ...]
    done: int
    validation: Score | None
    test: Score | None
    chosen: bool = False

    @property
    def varied(self) -> Mapping[str, object]:
        """The values of the choice axes: key -> value."""
        return self.runs[0].varied

    @property
    def label(self) -> str:
        """`optimizer.lr=0.1 algorithm.rho=0.2`, as it is typed."""
        return " ".join(f"{key}={show(value)}" for key, value in self.varied.items())

    @property
    def mean(self) -> float:
        """The mean validation score, NaN where there is none."""
        return self.validation[0] if self.validation else math.nan

    @property
    def incomplete(self) -> str:
        """Why the setting cannot be compared with others; empty where it can."""
        total = len(self.runs)
        if self.done < total:
            return f"{self.done} of {total} seed{'s' if total > 1 else ''} done"
        if self.validation is None:
            return "it has no final validation scores"
        return "" if math.isfinite(self.mean) else "its validation scores are not finite"


@dataclass(frozen=True)
class Selection:
    """A method's settings, the metric that compares them, and remarks on the choice."""

    method: str
    metric: str  # empty until a run is done
    settings: tuple[Setting, ...]
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> Setting | None:
        """The chosen setting, if any."""
        return next((one for one in self.settings if one.chosen), None)


def select(
    runs: Sequence[Run], results: Mapping[str, Result], axes: Sequence[Axis]
) -> list[Selection]:
    """Return a selection for each method; `results` holds the finished runs by name.

    Without a choice axis there are scores, but nothing is chosen.
    """
    methods: dict[str, list[Run]] = {}
    for run in runs:
        methods.setdefault(run.method, []).append(run)
    choosing = any(axis.is_choice for axis in axes)
    return [_select(method, members, results, choosing) for method, members in methods.items()]


def _select(
    method: str, runs: Sequence[Run], results: Mapping[str, Result], choosing: bool
) -> Selection:
    measured = {
        metric for run in runs if run.name in results for _, metric in results[run.name].scores
    }
    metric = next((one for one in METRICS if one in measured), "")
    by_setting: dict[str, list[Run]] = {}
    for run in runs:
        by_setting.setdefault(repr(dict(run.varied)), []).append(run)
    settings = tuple(_summarize(members, results, metric) for members in by_setting.values())
    if not choosing:
        return Selection(method, metric, settings)
    if "validation" not in runs[0].config.run.eval_splits:
        return Selection(method, metric, settings, (_no_validation(runs[0]),))
    best, notes = _choose(settings, metric)
    settings = tuple(replace(one, chosen=one is best) for one in settings)
    return Selection(method, metric, settings, tuple(notes))


def _summarize(runs: Sequence[Run], results: Mapping[str, Result], metric: str) -> Setting:
    done = [results[run.name].scores for run in runs if run.name in results]

    def score(split: str) -> Score | None:
        values = [scores[split, metric] for scores in done if (split, metric) in scores]
        if len(values) < len(runs):
            return None
        if not all(map(math.isfinite, values)):
            return math.nan, math.nan
        if len(values) < 2:
            return values[0], math.nan
        return statistics.fmean(values), float(half_width(statistics.stdev(values), len(values)))

    return Setting(tuple(runs), len(done), score("validation"), score("test"))


def _no_validation(run: Run) -> str:
    splits = f"[{','.join(run.config.run.eval_splits)}]"
    if "eval_splits" in run.config.run.model_fields_set:
        return (
            f"nothing is chosen: run.eval_splits={splits} lacks validation, and test scores are "
            "never used to choose; give run.eval_splits=[validation,test]"
        )
    task = run.config.task
    why = " with task.validation_fraction=0" if hasattr(task, "validation_fraction") else ""
    return f"nothing is chosen: task {task.name} has no validation data{why}"


def _choose(settings: Sequence[Setting], metric: str) -> tuple[Setting | None, list[str]]:
    """Return the setting with the best mean validation score, and remarks on the choice."""
    notes = [f"left out: {_name(one)}: {one.incomplete}" for one in settings if one.incomplete]
    compared = [one for one in settings if not one.incomplete]
    if not compared:
        return None, [*notes, "nothing is chosen: no setting is complete"]
    sign = -1.0 if higher_is_better(metric) else 1.0
    best = min(compared, key=lambda one: sign * one.mean)  # the first of equals
    equals = [_name(one) for one in compared if one is not best and one.mean == best.mean]
    if equals:
        notes.append(f"as good on validation data: {'; '.join(equals)}; the first of them is taken")
    for key, value in best.varied.items():
        tried = {one.varied[key] for one in settings if is_number(one.varied[key])}
        if len(tried) < 2 or not is_number(value):
            continue
        for end, name in ((min(tried), "smallest"), (max(tried), "largest")):  # type: ignore[type-var]
            if value == end:
                notes.append(
                    f"{key}={show(value)} is the {name} value tried; the optimum may lie outside"
                )
    return best, notes


def _name(setting: Setting) -> str:
    return setting.label or "its only setting"
