"""The results of each group: final values over seeds, and the share of clients that beat Local."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from cobo_dist.reports.grouping import Group, Problem
from cobo_dist.reports.metrics import (
    best_value,
    last_value,
    mean_over_clients,
    mean_over_examples,
    percent,
    problem_metric,
    problem_split,
    shown_metrics,
)
from cobo_dist.reports.reading import Run
from cobo_dist.reports.statistics import statistics_over_seeds
from cobo_dist.storage.schema import higher_is_better


class Score(NamedTuple):
    """A quantity over seeds. `std` and `ci95` are NaN for a single seed."""

    mean: float
    std: float  # sample standard deviation
    ci95: float  # half the width of the mean's 95% confidence interval


LINK_SCORES = ("link_accuracy", "link_f1", "adjusted_rand", "graph_correlation", "clusters_found")
"""How W agrees with the true clusters or the right graph, and its connected components."""


OTHER_MEANS = ("best", "by_examples", "best_by_examples")
"""The metric as other benchmarks report it."""


@dataclass(frozen=True, eq=False)
class GroupResult:
    """The results of one group.

    `statistics` has a row for each quantity that the group has, with its `Score`:
    `accuracy`, `perplexity`, `loss`, `validation` (the metric on validation data, if the problem is judged
    by test data), `improved` (clients that beat Local), those of `LINK_SCORES`, `megabytes` (a round, all
    ranks), `megabytes_up` and `megabytes_down` (a round, a client as a machine of its own) and `seconds` (the
    whole run). `by_examples` is the metric where clients count by their examples, `best` and
    `best_by_examples` are the best of both means over the rounds, as other benchmarks report them. Accuracies
    and shares are in percent. `missing` lists the seeds without `improved`.
    """

    group: Group
    metric: str
    split: str
    statistics: pd.DataFrame
    missing: tuple[int, ...]

    def score(self, quantity: str) -> Score | None:
        """Return a quantity over seeds, None if the group does not have it."""
        if quantity not in self.statistics.index:
            return None
        columns = list(Score._fields)
        return Score(*self.statistics.loc[[quantity], columns].to_numpy(np.float64)[0].tolist())

    def mean(self, quantity: str) -> float | None:
        """Return the mean of a quantity over seeds, None if the group does not have it."""
        score = self.score(quantity)
        return None if score is None else score[0]

    def show(self, quantity: str, form: str, interval: bool = True) -> str:
        """Return `73.1 ± 0.2`, the mean alone for a single seed, or `-` if there is none."""
        score = self.score(quantity)
        if score is None:
            return "-"
        text = format(score.mean, form)
        return text if math.isnan(score.ci95) or not interval else f"{text} ± {score.ci95:{form}}"

    def csv_mean(self, quantity: str) -> object:
        """Return the mean for a CSV, empty if there is no such number."""
        mean = self.mean(quantity)
        return "" if mean is None else mean

    def csv_fields(self, quantity: str, name: str) -> dict[str, object]:
        """Return the fields `NAME_mean`, `NAME_std` and `NAME_ci95` of a CSV, empty without a number."""
        score = self.score(quantity)
        fields: dict[str, object] = dict.fromkeys(Score._fields, "")
        if score is not None:
            fields = score._asdict()
            # Where the mean is NaN too, a run diverged.
            if math.isnan(score.std) and not math.isnan(score.mean):
                fields |= {"std": "", "ci95": ""}
        return {f"{name}_{field}": value for field, value in fields.items()}

    @property
    def seeds(self) -> str:
        """How many seeds count, and which are unfinished: `2 (left out: seed 3 unfinished, round 40)`."""
        stopped = [run for run in self.group.runs if run.summary is None]
        counted = str(len(self.group.scored))
        if not stopped:
            return counted
        if stopped[0] in self.group.scored:
            rounds = sorted({run.last_round for run in stopped})
            part = f", part of the {self.split} data" if self.partial else ""
            return f"{counted} (unfinished, round {', '.join(map(str, rounds))}{part})"
        parts = [f"seed {run.seed} unfinished, round {run.last_round}" for run in stopped]
        return f"{counted} (left out: {'; '.join(parts)})"

    @property
    def rounds(self) -> str:
        """How many rounds the runs that count have done: `200`, or `40, 60` where they differ."""
        return ", ".join(map(str, self.group.lengths))

    @property
    def partial(self) -> bool:
        """Whether a score comes from an evaluation on a part of the data."""
        return any(
            run.summary is None and _last_round(run, self.split) in run.parts.get(self.split, {})
            for run in self.group.scored
        )


def group_results(problem: Problem) -> list[GroupResult]:
    """Return the results of the groups of one problem."""
    metric, split = problem_metric(problem.groups), problem_split(problem.groups)
    local = [run for group in problem.groups if group.method.role == "alone" for run in group.runs]
    return [_group_result(group, metric, split, local) for group in problem.groups]


def improvement_note(results: Sequence[GroupResult]) -> str | None:
    """Return one sentence on where Imp.% is missing and why, None if it is complete."""
    lacking = [result for result in results if result.missing]
    if not lacking:
        return None
    if not any(result.group.method.role == "alone" for result in results):
        return "No Imp.%: there is no run of Local on this problem to compare with."
    parts = [
        f"{result.group.title}, seed{'s' * (len(result.missing) > 1)} "
        f"{', '.join(map(str, result.missing))}"
        + ("" if result.mean("improved") is None else " left out")
        for result in lacking
    ]
    return f"Imp.% lacks a run of Local with the same seed, rounds and clients for: {'; '.join(parts)}."


def _group_result(group: Group, metric: str, split: str, local: Sequence[Run]) -> GroupResult:
    found: list[tuple[str, float | None]] = []
    missing = []
    for run in group.scored:
        found += _final_values(run, metric, split).items()
        if group.method.role != "alone":
            improved = _improved(run, metric, split, local)
            found.append(("improved", improved))
            missing += [run.seed] if improved is None else []
    factors = {"accuracy": 100.0, "validation": percent(metric), "megabytes": 1e-6}
    factors |= {"megabytes_up": 1e-6, "megabytes_down": 1e-6}
    factors |= {"improved": 100.0, "link_accuracy": 100.0}
    factors |= dict.fromkeys(OTHER_MEANS, percent(metric))
    # A quantity that a run does not have has no entry, so that NaN always means a run that diverged.
    known = [(name, value * factors.get(name, 1.0)) for name, value in found if value is not None]
    index, values = [name for name, _ in known], [value for _, value in known]
    statistics = statistics_over_seeds(pd.Series(values, index=index, dtype=np.float64))
    return GroupResult(group, metric, split, statistics, tuple(missing))


def _final_values(run: Run, metric: str, split: str) -> dict[str, float | None]:
    """The quantities of one run as it logged them; None if there is no such number."""
    summary = run.summary
    values = {name: last_value(run, split, name) for name in shown_metrics(metric)}
    of_clients, of_examples = (
        mean(run, split, metric) for mean in (mean_over_clients, mean_over_examples)
    )
    values["best"] = best_value(run, split, metric, of_clients)
    values["best_by_examples"] = best_value(run, split, metric, of_examples)
    values["by_examples"] = of_examples[max(of_examples)] if of_examples else None
    if split != "validation":
        values["validation"] = last_value(run, "validation", metric)
    if summary is None:
        sent, seconds = (
            list(run.rounds.get(name, {}).values()) for name in ("bytes_sent", "seconds")
        )
        values["megabytes"] = sum(sent) / len(sent) if sent else None
        values["seconds"] = sum(seconds) if seconds else None
        return values
    values |= {name: final for name, final in summary.final.items() if name in values}
    for name, total in (
        ("megabytes", summary.bytes_sent),
        ("megabytes_up", summary.bytes_up),
        ("megabytes_down", summary.bytes_down),
    ):
        values[name] = total / summary.rounds if summary.rounds and total is not None else None
    values["seconds"] = summary.seconds
    values |= {name: getattr(summary, name) for name in LINK_SCORES}
    return values


def _last_round(run: Run, split: str) -> int | None:
    """The last round at which the split was evaluated."""
    rounds = {
        round_
        for (name, _), clients in run.evals.items()
        if name == split
        for series in clients.values()
        for round_ in series
    }
    return max(rounds, default=None)


def client_values(run: Run, split: str, metric: str) -> tuple[object, dict[int, float]]:
    """Return when and on how much of the data the clients were measured last, and these values."""
    if run.summary is not None:
        finals = run.summary.per_client
        return (run.summary.rounds, True), {i: f[metric] for i, f in finals.items() if metric in f}
    logged = run.evals.get((split, metric), {})
    series = {client: values for client, values in logged.items() if client is not None}
    last = max((max(values) for values in series.values()), default=0)
    whole = last not in run.parts.get(split, {})
    return (last, whole), {i: values[last] for i, values in series.items() if last in values}


def _improved(run: Run, metric: str, split: str, local: Sequence[Run]) -> float | None:
    """The share of clients of `run` that beat the same client alone; None where that is not known."""
    _, own = client_values(run, split, metric)
    alone = alone_values(run, metric, split, local)
    if alone is None:
        return None
    sign = 1.0 if higher_is_better(metric) else -1.0
    return sum(sign * value > sign * alone[i] for i, value in own.items()) / len(own)


def alone_values(
    run: Run, metric: str, split: str, local: Sequence[Run]
) -> dict[int, float] | None:
    """Return the values of the clients of `run` in the run of Local, among `local`, of the same seed.

    None where no such run has trained as many rounds: a longer run of Local is no baseline.
    """
    measured, own = client_values(run, split, metric)
    candidates = []
    for other in local:
        other_measured, values = client_values(other, split, metric)
        if (other.seed, other_measured, values.keys()) == (run.seed, measured, own.keys()):
            candidates.append((_distance(other, run), values))
    if not candidates or not own:
        return None
    # Several runs of Local may fit (another model, another rate): take the one with the closest config.
    return min(candidates, key=lambda pair: pair[0])[1]


def _distance(one: Run, other: Run) -> int:
    """In how many keys two configs differ, without those of the algorithm."""
    keys = {key for key in one.config.keys() | other.config.keys() if key[:10] != "algorithm."}
    return sum(one.config.get(key) != other.config.get(key) for key in keys)
