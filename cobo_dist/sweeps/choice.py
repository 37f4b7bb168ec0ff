"""The best setting of each method, on validation data; test figures are shown and never looked at."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cobo_dist.storage.schema import METRICS
from cobo_dist.sweeps.axes import Axis
from cobo_dist.sweeps.folders import Result
from cobo_dist.sweeps.grid import Run, is_number, show


@dataclass(frozen=True)
class Candidate:
    """One setting of a method over its seeds; scores are (mean, sample deviation) over seeds.

    `validation` is None until every seed is done, or where validation data were not evaluated.
    """

    runs: tuple[Run, ...]
    done: int
    validation: tuple[float, float] | None
    test: tuple[float, float] | None
    chosen: bool = False

    @property
    def varied(self) -> Mapping[str, object]:
        """The setting: key -> value."""
        return self.runs[0].varied

    @property
    def label(self) -> str:
        """`optimizer.lr=0.1 algorithm.rho=0.2`, as it is typed."""
        return " ".join(f"{key}={show(value)}" for key, value in self.varied.items())


@dataclass(frozen=True)
class Verdict:
    """A method's settings, the metric they are judged by, and what must be said of the choice."""

    method: str
    metric: str
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...]

    @property
    def best(self) -> Candidate | None:
        """The chosen setting, if any."""
        return next((one for one in self.candidates if one.chosen), None)


def judge(
    runs: Sequence[Run], results: Mapping[str, Result], axes: Sequence[Axis]
) -> list[Verdict]:
    """Return a verdict for each method; `results` holds the done runs by name.

    Without an axis to choose on there are figures, but nothing is chosen.
    """
    methods: dict[str, list[Run]] = {}
    for run in runs:
        methods.setdefault(run.method, []).append(run)
    choosing = any(axis.is_choice for axis in axes)
    return [_judge(method, members, results, choosing) for method, members in methods.items()]


def _judge(
    method: str, runs: Sequence[Run], results: Mapping[str, Result], choosing: bool
) -> Verdict:
    metric = _metric([results[run.name] for run in runs if run.name in results])
    settings: dict[str, list[Run]] = {}
    for run in runs:
        settings.setdefault(repr(dict(run.varied)), []).append(run)
    candidates = [_summarise(members, results, metric) for members in settings.values()]
    if not choosing:
        return Verdict(method, metric, tuple(candidates), ())
    if "validation" not in runs[0].config.run.eval_splits:
        return Verdict(method, metric, tuple(candidates), (_no_validation(runs[0]),))
    best, notes = _choose(candidates, metric)
    marked = tuple(replace(one, chosen=one is best) for one in candidates)
    return Verdict(method, metric, marked, tuple(notes))


def _metric(results: Sequence[Result]) -> str:
    """What the task is judged by, or nothing as long as no run is done."""
    names = {name for result in results for _, name in result.scores}
    return next((metric for metric in METRICS if metric in names), "")


def _summarise(runs: Sequence[Run], results: Mapping[str, Result], metric: str) -> Candidate:
    done = [results[run.name] for run in runs if run.name in results]
    scores: dict[str, tuple[float, float] | None] = {}
    for split in ("validation", "test"):
        values = [one.scores[split, metric] for one in done if (split, metric) in one.scores]
        scores[split] = _mean_std(values) if len(values) == len(runs) else None
    return Candidate(tuple(runs), len(done), scores["validation"], scores["test"])


def _mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample deviation; the latter is NaN for a single value, both where a value is."""
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def _no_validation(run: Run) -> str:
    splits = f"[{','.join(run.config.run.eval_splits)}]"
    if "eval_splits" in run.config.run.model_fields_set:
        return (
            f"nothing is chosen: run.eval_splits={splits} lacks validation, and test data choose "
            "nothing; give run.eval_splits=[validation,test]"
        )
    task = run.config.task.name
    why = (
        " with task.validation_fraction=0"
        if hasattr(run.config.task, "validation_fraction")
        else ""
    )
    return f"nothing is chosen: task {task} has no validation data{why}"


# -- choosing ----------------------------------------------------------------------------------------


def _choose(candidates: Sequence[Candidate], metric: str) -> tuple[Candidate | None, list[str]]:
    """Return the setting with the best mean on validation data, and what to know about it."""
    notes = [f"left out: {_in_words(one)}: {why}" for one in candidates if (why := _lacks(one))]
    compared = [one for one in candidates if not _lacks(one)]
    if not compared:
        return None, [*notes, "nothing is chosen: no setting is complete"]
    sign = -1.0 if metric == "accuracy" else 1.0
    best = min(compared, key=lambda one: sign * _mean(one))  # the first of equals
    equals = [one for one in compared if one is not best and _mean(one) == _mean(best)]
    if equals:
        others = "; ".join(_in_words(one) for one in equals)
        notes.append(f"as good on validation data: {others}; the first of them is taken")
    return best, [*notes, *_edges(best, candidates)]


def _lacks(candidate: Candidate) -> str:
    """Why a setting cannot be compared; empty where it can."""
    total = len(candidate.runs)
    if candidate.done < total:
        return f"{candidate.done} of {total} seed{'s' if total > 1 else ''} done"
    if candidate.validation is None:
        return "it has no final validation figures"
    return "" if math.isfinite(_mean(candidate)) else "its validation figures are not finite"


def _mean(candidate: Candidate) -> float:
    return candidate.validation[0] if candidate.validation else math.nan


def _in_words(candidate: Candidate) -> str:
    return candidate.label or "its only setting"


def _edges(best: Candidate, candidates: Sequence[Candidate]) -> list[str]:
    """Say where the best value is the smallest or largest that was tried."""
    notes = []
    for key, value in best.varied.items():
        tried = {one.varied[key] for one in candidates if is_number(one.varied[key])}
        if len(tried) < 2 or not is_number(value):
            continue
        for end, name in ((min(tried), "smallest"), (max(tried), "largest")):  # type: ignore[type-var]
            if value == end:
                notes.append(
                    f"{key}={show(value)} is the {name} value tried; the optimum may lie outside"
                )
    return notes
