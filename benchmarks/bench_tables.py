"""Tables and ranks of benchmarks/bench.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from markdown_table import markdown
from numpy.typing import NDArray
from study_tables import Result, interval

import cobo_dist
from cobo_dist.reports.comparison import harmed, ranks, worst_tenth

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
        compared = [_harmed_percent(one, alone[one.result.seed]) for one in own if alone]
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


def _harmed_percent(own: Outcome, alone: NDArray[np.float64]) -> float:
    values, others = (dict(enumerate(one.tolist())) for one in (own.accuracies_n, alone))
    return 100.0 * len(harmed(values, others) or ()) / len(values)


def ranks_of(found: Mapping[str, Sequence[Outcome]]) -> pd.DataFrame:
    """Return ranks by accuracy of the methods that ran with every task and seed, [task and seed, method]."""
    accuracies: dict[object, dict[str, float]] = {}
    for task, outcomes in found.items():
        for one in outcomes:
            of_task = accuracies.setdefault((task, one.result.seed), {})
            of_task[one.result.method] = float(one.accuracies_n.mean())
    return ranks(accuracies)
