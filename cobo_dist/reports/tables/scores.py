"""The results of each group: last values over seeds, and who does better than alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cobo_dist.reports.grouping.groups import Group
from cobo_dist.reports.grouping.problems import Problem
from cobo_dist.reports.reading.events import METRICS
from cobo_dist.reports.reading.run import Run
from cobo_dist.reports.reading.series import Series
from cobo_dist.reports.statistics import mean_std

Score = tuple[float, float]
"""Mean and sample standard deviation over seeds; the latter is NaN for a single seed."""


@dataclass(frozen=True, eq=False)
class Row:
    """One group's results. Shares and accuracies are in percent; None: there is no such number.

    `scores` are on the split that the problem is judged by, `validation` is its metric on
    validation data where that is another. `missing` lists the seeds that Imp.% lacks.
    """

    group: Group
    metric: str
    split: str
    scores: Mapping[str, Score | None]  # metric -> mean, std over seeds
    validation: Score | None
    improved: float | None
    missing: tuple[int, ...]
    links_right: float | None
    megabytes: float | None  # sent a round, all ranks
    seconds: float | None  # of the whole run

    @property
    def seeds(self) -> str:
        """How many seeds count, and what has not finished: `2 (seed 3 unfinished, round 40 ...)`."""
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
    def partial(self) -> bool:
        """Whether a score comes from an evaluation on a part of the data."""
        return any(
            run.summary is None and _last_round(run, self.split) in run.parts.get(self.split, {})
            for run in self.group.scored
        )


def problem_metric(groups: Sequence[Group]) -> str:
    """What a problem is judged by: accuracy, perplexity, or loss where there is neither."""
    for metric in METRICS:
        for run in (run for group in groups for run in group.runs):
            logged = any(name == metric for _, name in run.evals)
            if logged or (run.summary is not None and metric in run.summary.final):
                return metric
    return "loss"


def problem_split(groups: Sequence[Group]) -> str:
    """`test`, or `validation` where no run was tested: splits are never mixed."""
    splits = {split for group in groups for run in group.runs for split, _ in run.evals}
    return "validation" if "validation" in splits and "test" not in splits else "test"


def mean_over_clients(run: Run, split: str, metric: str) -> Series:
    """The metric of the average client by round: as logged, else averaged from the clients."""
    clients = run.evals.get((split, metric), {})
    if None in clients:
        return clients[None]
    columns: dict[int, list[float]] = {}
    for series in clients.values():
        for number, value in series.items():
            columns.setdefault(number, []).append(value)
    return {number: sum(values) / len(values) for number, values in sorted(columns.items())}


def columns(metric: str) -> list[str]:
    """The metrics of a problem's table: its own, and the loss."""
    return [metric] if metric == "loss" else [metric, "loss"]


def percent(metric: str) -> float:
    """The factor from logged to shown values: accuracies are logged as fractions."""
    return 100.0 if metric == "accuracy" else 1.0


def higher_is_better(metric: str) -> bool:
    """Whether more of a metric is better."""
    return metric == "accuracy"


def make_rows(problem: Problem) -> list[Row]:
    """The results of the groups of one problem."""
    metric, split = problem_metric(problem.groups), problem_split(problem.groups)
    local = [run for group in problem.groups if group.algorithm == "local" for run in group.runs]
    return [_make_row(group, metric, split, local) for group in problem.groups]


def validation_score(group: Group, metric: str) -> Score | None:
    """The metric at the last round evaluated on validation data, over the runs that count."""
    found = [mean_over_clients(run, "validation", metric) for run in group.scored]
    return _score([series[max(series)] if series else None for series in found], metric)


def improvement_note(rows: Sequence[Row]) -> str | None:
    """One sentence on where Imp.% is missing and why, or None where it is complete."""
    lacking = [row for row in rows if row.missing]
    if not lacking:
        return None
    if not any(row.group.algorithm == "local" for row in rows):
        return "No Imp.%: there is no run of Local on this problem to compare with."
    parts = "; ".join(
        f"{row.group.title}, {_list_seeds(row.missing)}"
        + ("" if row.improved is None else " left out")
        for row in lacking
    )
    return f"Imp.% lacks a run of Local with the same seed, rounds and clients for: {parts}."


def _list_seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _make_row(group: Group, metric: str, split: str, local: Sequence[Run]) -> Row:
    scored = group.scored
    compared = () if group.algorithm == "local" else scored
    shares = {run.seed: _improved(run, metric, split, local) for run in compared}
    matches = [run.summary.cluster_match for run in scored if run.summary is not None]
    return Row(
        group=group,
        metric=metric,
        split=split,
        scores={
            name: _score([_final(run, split, name) for run in scored], name)
            for name in columns(metric)
        },
        validation=validation_score(group, metric) if split != "validation" else None,
        improved=_mean(list(shares.values()), 100.0),
        missing=tuple(seed for seed, share in shares.items() if share is None),
        links_right=_mean(matches, 100.0),
        megabytes=_mean([_bytes_a_round(run) for run in scored], 1e-6),
        seconds=_mean([_seconds(run) for run in scored]),
    )


def _score(values: Sequence[float | None], metric: str) -> Score | None:
    known = [value * percent(metric) for value in values if value is not None]
    return mean_std(known) if known else None


def _final(run: Run, split: str, metric: str) -> float | None:
    if run.summary is not None and metric in run.summary.final:
        return run.summary.final[metric]
    series = mean_over_clients(run, split, metric)
    return series[max(series)] if series else None


def _last_round(run: Run, split: str) -> int | None:
    """The last round at which the split was evaluated."""
    rounds = {
        number
        for (name, _), clients in run.evals.items()
        if name == split
        for series in clients.values()
        for number in series
    }
    return max(rounds, default=None)


def _clients(run: Run, split: str, metric: str) -> tuple[object, dict[int, float]]:
    """When and on what the clients were measured last, and those values."""
    if run.summary is not None:
        finals = run.summary.per_client
        return (run.summary.rounds, True), {i: f[metric] for i, f in finals.items() if metric in f}
    logged = run.evals.get((split, metric), {})
    series = {client: values for client, values in logged.items() if client is not None}
    last = max((max(values) for values in series.values()), default=0)
    whole = last not in run.parts.get(split, {})
    return (last, whole), {i: values[last] for i, values in series.items() if last in values}


def _improved(run: Run, metric: str, split: str, local: Sequence[Run]) -> float | None:
    """Share of the clients of `run` that beat the same client in the Local run beside it."""
    when, mine = _clients(run, split, metric)
    best: tuple[int, dict[int, float]] | None = None
    for other in local:
        theirs_at, theirs = _clients(other, split, metric)
        if other.seed == run.seed and theirs_at == when and theirs.keys() == mine.keys():
            # Several Locals may fit (another model, another rate): take the likeliest setting.
            distance = _distance(other, run)
            best = min(best or (distance, theirs), (distance, theirs), key=lambda pair: pair[0])
    if best is None or not mine:
        return None
    sign = 1.0 if higher_is_better(metric) else -1.0
    return sum(sign * value > sign * best[1][client] for client, value in mine.items()) / len(mine)


def _distance(one: Run, other: Run) -> int:
    keys = {key for key in one.config.keys() | other.config.keys() if key[:10] != "algorithm."}
    return sum(one.config.get(key) != other.config.get(key) for key in keys)


def _bytes_a_round(run: Run) -> float | None:
    if run.summary is not None:
        return run.summary.bytes_sent / run.summary.rounds if run.summary.rounds else None
    sent = run.rounds.get("bytes_sent")
    return sum(sent.values()) / len(sent) if sent else None


def _seconds(run: Run) -> float | None:
    if run.summary is not None:
        return run.summary.seconds
    spent = run.rounds.get("seconds")
    return sum(spent.values()) if spent else None


def _mean(values: Sequence[float | None], scale: float = 1.0) -> float | None:
    known = [value * scale for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
