"""What a section's explorer shows, as JSON: the methods' curves and, run by run, W and each client's curves.

Shapes: n clients, k evaluations.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import to_hex

from cobo_dist.reports.figures.curves import evaluations
from cobo_dist.reports.figures.style import METRIC_LABELS, group_style
from cobo_dist.reports.grouping import Group
from cobo_dist.reports.metrics import percent, problem_metric, problem_split, shown_metrics
from cobo_dist.reports.page.weights_data import weights_data
from cobo_dist.reports.reading import Run
from cobo_dist.reports.selection import learning
from cobo_dist.reports.statistics import Curve, over_seeds
from cobo_dist.storage.schema import higher_is_better

MAX_SNAPSHOT_BYTES = 6_000_000
"""The most weights of one explorer that are tried at all, before zlib."""
MAX_POINTS = 400
"""The most points of a method's curve."""
MAX_CLIENT_POINTS = 100
"""The most points of a client's curve."""
TRAINING_LOSS = "training loss"

MIN_KEPT = 0.2
"""The least share of snapshots and points that is kept of a run, unless it is the only one."""

Json = dict[str, Any]
_Ranked = tuple[Group, int, Run]
"""A run with its group and its place among the seeds of the group."""


@dataclass(frozen=True)
class Explorer:
    """The explorer of one problem; `name` makes ids unique on the page."""

    name: str
    methods: Sequence[Group]
    learned: Sequence[Group]

    def data(self, limit: int) -> Json:
        """Return the JSON object that `templates/explorer.js` shows, in at most `limit` letters of `encode`.

        If all of it is too long, snapshots of W and points of clients' curves are left out evenly, down to
        `MIN_KEPT` of them, and then runs: of each method the first seeds stay longest. `left_out` says so.
        """
        split = problem_split(self.methods)
        head = {"metrics": self._metrics(split), "lines": list(self._lines(split))}
        every = self._runs()
        runs, kept = self._to_try(sorted(every, key=lambda one: one[1]))
        before = 0
        while True:
            chosen = {id(run) for _, _, run in runs}
            shown = [
                self._run(group, run, split, kept) for group, _, run in every if id(run) in chosen
            ]
            left = len(every) - len(runs)
            words = f"Runs that are not on this page: {left}." if left else ""
            data = head | {"runs": shown, "left_out": words}
            size = len(encode(data))
            if size <= limit or not runs:
                return data
            share = min(0.9, limit / size)
            if len(runs) == 1 and size != before:
                kept, before = kept * share, size
            elif kept > MIN_KEPT:
                kept = max(MIN_KEPT, kept * share)
            else:
                runs = runs[: int(len(runs) * share)]

    def _to_try(self, runs: list[_Ranked]) -> tuple[list[_Ranked], float]:
        """The first runs, and the share of their snapshots, that have no more than `MAX_SNAPSHOT_BYTES`."""
        sizes = [_size(run) if self._learns(run) else 0 for _, _, run in runs]
        kept = min(1.0, max(MIN_KEPT, MAX_SNAPSHOT_BYTES / max(1, sum(sizes))))
        while len(runs) > 1 and kept * sum(sizes[: len(runs)]) > MAX_SNAPSHOT_BYTES:
            runs = runs[:-1]
        return runs, min(kept, MAX_SNAPSHOT_BYTES / max(1, sum(sizes[: len(runs)])))

    def _runs(self) -> list[_Ranked]:
        """The runs of the methods that learn W, the emphasized one first; then the others."""
        ordered = sorted(self.learned, key=lambda group: group.method.role != "emphasized")
        found: dict[object, _Ranked] = {}
        for group in (*ordered, *self.methods):
            for number, run in enumerate(group.runs):
                found.setdefault(run.path, (group, number, run))
        return list(found.values())

    def _learns(self, run: Run) -> bool:
        """Whether the run has a W to show: its method learns it."""
        learned = any(run is one for group in self.learned for one in group.runs)
        return learned and run.weights is not None

    def _metrics(self, split: str) -> list[Json]:
        named = {
            name: f"{split} {METRIC_LABELS.get(name, name)}"
            for name in shown_metrics(problem_metric(self.methods))
        }
        higher = [name for name in named if higher_is_better(name)]
        named[TRAINING_LOSS] = TRAINING_LOSS
        return [{"key": k, "label": label, "higher": k in higher} for k, label in named.items()]

    def _lines(self, split: str) -> Iterator[Json]:
        for group in self.methods:
            style = group_style(group)
            series = {TRAINING_LOSS: _curve(_training_loss(group), 1.0)}
            for name in shown_metrics(problem_metric(self.methods)):
                series[name] = _curve(evaluations(group, split, name).line, percent(name))
            yield {
                "title": group.title,
                "color": to_hex(style.color),
                "dash": "" if isinstance(style.dashes, str) else _dash_array(style.dashes[1]),
                "width": style.width,
                "alone": group.method.role == "alone",
                "series": {name: one for name, one in series.items() if one is not None},
            }

    def _run(self, group: Group, run: Run, split: str, kept: float) -> Json:
        weights = run.weights if self._learns(run) else None
        shown = None if weights is None else weights_data(weights, kept)
        names = () if run.weights is None else run.weights.names
        return {
            "title": f"{group.title}, seed {run.seed}" + ("" if run.summary else " (not finished)"),
            "method": group.title,
            "ended": run.summary is not None,
            "alone": group.method.role == "alone",
            "seed": run.seed,
            "color": to_hex(group_style(group).color),
            "weights": shown,
            "names": list(names),
            "curves": {} if shown and "cells" in shown else self._client_curves(run, split, kept),
        }

    def _client_curves(self, run: Run, split: str, kept: float) -> Json:
        """By metric, each client's values at the rounds of its run; null where it was not evaluated."""
        curves: Json = {}
        for name in shown_metrics(problem_metric(self.methods)):
            found = run.evals.get((split, name), {})
            clients = [client for client in found if client is not None]
            rounds = sorted({number for client in clients for number in found[client]})
            rounds = _spread(rounds, max(8, int(MAX_CLIENT_POINTS * kept)))
            if rounds:
                rows: list[Mapping[int, float]] = [
                    found.get(i, {}) for i in range(max(clients) + 1)
                ]
                scale = percent(name)
                scaled = [[_short(row.get(r), scale, digits=4) for r in rounds] for row in rows]
                curves[name] = {"rounds": rounds, "clients": scaled}
        return curves


def make_explorer(methods: Sequence[Group], every: Sequence[Group], name: str) -> Explorer | None:
    """Return the explorer of a problem, None where there is nothing to draw.

    Args:
        methods: the groups whose curves are compared.
        every: all groups of the problem; runs of those that learn W are in the explorer, too.
        name: makes ids unique on the page.
    """
    explorer = Explorer(name, methods, learning(every))
    evaluated = any(run.evals or run.rounds for group in methods for run in group.runs)
    return explorer if explorer.learned or evaluated else None


def encode(data: object) -> str:
    """Return JSON as text for a `script` element: by zlib, in base64."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode(), 6)).decode("ascii")


def decode(text: str) -> Any:
    """Return the JSON of `encode`, as the page's JavaScript does."""
    return json.loads(zlib.decompress(base64.b64decode(text)))


def _training_loss(group: Group) -> Curve:
    return over_seeds([run.rounds.get("loss", {}) for run in group.runs])


def _curve(curve: Curve, scale: float) -> Json | None:
    """A curve with half the width of its interval (`ci`; null with one seed); None without a finite value."""
    if not curve.drawable:
        return None
    chosen = _spread(range(len(curve.rounds)), MAX_POINTS)
    return {
        "rounds": curve.rounds[chosen].tolist(),
        "mean": [_short(one, scale) for one in curve.mean[chosen].tolist()],
        "ci": [_short(one, scale) for one in curve.ci95[chosen].tolist()],
    }


def _spread(values: Sequence[int], most: int) -> list[int]:
    """At most so many of the values, evenly spread, with the first and the last."""
    if len(values) <= most:
        return list(values)
    return [values[i] for i in np.linspace(0, len(values) - 1, most).round().astype(int)]


def _short(value: float | None, scale: float = 1.0, digits: int = 5) -> float | None:
    """A number with so many digits; None for what JSON does not have."""
    return (
        None if value is None or not math.isfinite(value) else float(f"{value * scale:.{digits}g}")
    )


def _dash_array(lengths: Sequence[float]) -> str:
    return " ".join(f"{1.6 * one:g}" for one in lengths)


def _size(run: Run) -> int:
    """How many weights a run has logged."""
    return 0 if run.weights is None else int(run.weights.weights.size)
