"""What a problem is judged by, and the values of the average client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cobo_dist.reports.grouping import Group
from cobo_dist.reports.reading import Run
from cobo_dist.reports.reading.series import Series
from cobo_dist.storage.schema import METRICS, higher_is_better


def problem_metric(groups: Sequence[Group]) -> str:
    """Return accuracy or perplexity, else a metric of a plug-in, else the loss."""
    found = {name for group in groups for run in group.runs for name in _metrics_of(run)}
    known = [metric for metric in METRICS if metric in found and metric != "loss"]
    return next(iter([*known, *sorted(found - {*METRICS, "bits_per_byte"})]), "loss")


def _metrics_of(run: Run) -> Iterator[str]:
    yield from (name for _, name in run.evals)
    yield from run.summary.final if run.summary is not None else ()


def problem_switches(groups: Sequence[Group]) -> list[int]:
    """Return the rounds before which clients change cluster in some run (`task.drift`), ascending."""
    return sorted({r for group in groups for run in group.runs for r in run.switches})


def problem_split(groups: Sequence[Group]) -> str:
    """Return `test`, or `validation` where no run was tested: splits are never mixed."""
    splits = {split for group in groups for run in group.runs for split, _ in run.evals}
    return "validation" if "validation" in splits and "test" not in splits else "test"


def shown_metrics(metric: str) -> list[str]:
    """Return the metrics of a problem's table: its own, and the loss."""
    return [metric] if metric == "loss" else [metric, "loss"]


def percent(metric: str) -> float:
    """Return the factor from logged to shown values: accuracies are logged as fractions."""
    return 100.0 if metric == "accuracy" else 1.0


def mean_over_clients(run: Run, split: str, metric: str) -> Series:
    """Return the metric of the average client by round: as logged, else the mean of the clients."""
    clients = run.evals.get((split, metric), {})
    if None in clients:
        return clients[None]
    values: dict[int, list[float]] = {}
    for series in clients.values():
        for round_, value in series.items():
            values.setdefault(round_, []).append(value)
    return {round_: sum(found) / len(found) for round_, found in sorted(values.items())}


def mean_over_examples(run: Run, split: str, metric: str) -> Series:
    """Return the metric by round, where a client counts by the examples that it was evaluated on.

    Empty where the rows do not say how many; without rounds at which some client was not evaluated.
    """
    sizes = run.sizes.get(split, {})
    found = run.evals.get((split, metric), {})
    clients = {client: series for client, series in found.items() if client is not None}
    total = sum(sizes.get(client, 0) for client in clients)
    if not total or clients.keys() - sizes.keys():
        return {}
    rounds = set.intersection(*(set(series) for series in clients.values()))
    return {
        round_: sum(sizes[client] * series[round_] for client, series in clients.items()) / total
        for round_ in sorted(rounds)
    }


def best_value(run: Run, split: str, metric: str, series: Series) -> float | None:
    """Return the best value over the rounds at which all of the split was evaluated; None without any."""
    parts = run.parts.get(split, {})
    values = [value for round_, value in series.items() if round_ not in parts and value == value]
    return (max if higher_is_better(metric) else min)(values, default=None)


def last_value(run: Run, split: str, metric: str) -> float | None:
    """Return the metric of the average client at the last evaluated round, None if there is none."""
    series = mean_over_clients(run, split, metric)
    return series[max(series)] if series else None
