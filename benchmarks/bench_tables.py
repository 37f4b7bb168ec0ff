"""Tables and ranks of benchmarks/bench.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from markdown_table import markdown
from numpy.typing import NDArray
from scipy import stats
from study_tables import Result, interval

import cobo_dist

REFERENCE = "local"  # clients that are worse than with it are harmed


@dataclass(frozen=True)
class Outcome:
    """One run: its result, and what the bench compares beside it."""

    result: Result
    accuracies_n: NDArray[np.float64]  # of each client's test data at the end, in %
    steps: int  # local steps a round
    seconds: float

    @classmethod
    def read(cls, path: Path, method: str, rate: float, seed: int) -> Outcome:
        """Read a finished run."""
        run = cobo_dist.open_run(path)
        summary = run.summary or {}
        return cls(
            Result.read(path, method, rate, seed),
            100 * np.array([one["accuracy"] for one in summary["per_client"]]),
            run.config.local.steps,
            summary["seconds"],
        )

    @property
    def validation(self) -> float:
        """Accuracy on validation data at the end."""
        return self.result.validation


def worst_tenth(accuracies_n: NDArray[np.float64]) -> float:
    """Return the mean accuracy of the 10% of clients, rounded up, that have the lowest.

    >>> worst_tenth(np.arange(11.0))
    0.5
    """
    return float(np.sort(accuracies_n)[: math.ceil(len(accuracies_n) / 10)].mean())


def harmed(own_n: NDArray[np.float64], local_n: NDArray[np.float64]) -> float:
    """Return the share of clients that have a lower accuracy than alone, in %.

    >>> harmed(np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 2.0, 2.0, 2.0]))
    25.0
    """
    return 100 * float(np.mean(own_n < local_n))


def table(outcomes: Sequence[Outcome], titles: Mapping[str, str]) -> str:
    """Return the table of a task in Markdown, by accuracy: means over seeds, half a 95% interval beside.

    * marks methods with one local step a round.
    """
    if not outcomes:
        return "no method ran"
    runs: dict[str, list[Outcome]] = {}
    for one in outcomes:
        runs.setdefault(one.result.method, []).append(one)
    alone = {one.result.seed: one.accuracies_n for one in runs.get(REFERENCE, ())}
    most = max(one.steps for one in outcomes)
    rows = []
    for method, own in runs.items():
        compared = [harmed(one.accuracies_n, alone[one.result.seed]) for one in own if alone]
        rand = [one.result.rand for one in own if one.result.rand is not None]
        means = [float(one.accuracies_n.mean()) for one in own]
        row = {
            "method": titles.get(method, method) + ("*" if own[0].steps < most else ""),
            "lr": f"{own[0].result.rate:g}",
            "accuracy, %": interval(means),
            "worst 10%": interval([worst_tenth(one.accuracies_n) for one in own]),
            "harmed, %": f"{np.mean(compared):.0f}" if compared and method != REFERENCE else "",
            "adjusted Rand": f"{np.mean(rand):.2f}" if rand else "",
            "MB a client": f"{np.mean([one.result.megabytes for one in own]):.3g}",
            "seconds": f"{np.mean([one.seconds for one in own]):.3g}",
        }
        rows.append((-np.mean(means), row))
    return markdown(pd.DataFrame([row for _, row in sorted(rows, key=lambda one: one[0])]))


def ranks(found: Mapping[str, Sequence[Outcome]]) -> pd.DataFrame:
    """Return ranks by accuracy, 1 the best, of the methods that have a run of every task and seed.

    A row is a task and a seed, a column a method; equal accuracies share the mean of their ranks.
    """
    accuracies: dict[tuple[str, int], dict[str, float]] = {}
    for task, outcomes in found.items():
        for one in outcomes:
            of_task = accuracies.setdefault((task, one.result.seed), {})
            of_task[one.result.method] = float(one.accuracies_n.mean())
    frame = pd.DataFrame.from_dict(accuracies, orient="index").dropna(axis="columns")
    return frame.rank(axis="columns", ascending=False)


def critical_difference(methods: int, blocks: int, level: float = 0.05) -> float:
    """Return how far two mean ranks must be apart to differ at this level, by Nemenyi's test.

    Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 2006:
    q sqrt(k (k + 1) / (6 N)), q being the quantile of the studentized range over sqrt(2).

    >>> round(critical_difference(5, 30), 3)
    1.114
    """
    quantile = stats.studentized_range.ppf(1 - level, methods, np.inf) / math.sqrt(2)
    return float(quantile * math.sqrt(methods * (methods + 1) / (6 * blocks)))


def alike(means_k: Sequence[float], difference: float) -> list[tuple[int, int]]:
    """Return the longest groups of methods that do not differ: first and last place of ascending mean ranks.

    >>> alike([1.0, 1.5, 2.2, 4.0], 1.0)
    [(0, 1), (1, 2)]
    """
    found: list[tuple[int, int]] = []
    for first, low in enumerate(means_k):
        last = int(np.searchsorted(means_k, low + difference, side="right")) - 1
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found
