"""The table of each problem: one row a group, with all that is known of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from cobo_dist.reports.grouping.groups import Settings, show_settings, show_value
from cobo_dist.reports.grouping.problems import Problem
from cobo_dist.reports.reading.events import METRICS
from cobo_dist.reports.tables.scores import Row, columns, higher_is_better, improvement_note
from cobo_dist.reports.tables.table import Table, score_numbers, show, show_score
from cobo_dist.reports.writing import write_csv

NOTE = (
    "Last values of the mean over clients; mean ± sample standard deviation over seeds. "
    "Imp.%: share of clients that do better than with Local (same task, seed and rounds). "
    "Links right: client pairs whose final link agrees with the true clusters, in %. "
    "MB = 10^6 bytes, all ranks together."
)
_BEST = (
    "Bold: the best of a method's settings on validation data, the data on which to choose them."
)
_HEADINGS = {"accuracy": "accuracy %", "perplexity": "perplexity", "loss": "loss"}
_COLUMNS = 4  # settings, beyond which they share one column
_TOGETHER = "settings"


def results_table(problem: Problem, rows: Sequence[Row]) -> Table:
    """The table of one problem. Settings that tell groups apart have a column each, if few."""
    metric, split = rows[0].metric, rows[0].split
    keys = setting_keys(rows)
    if len(keys) > _COLUMNS:
        keys = [_TOGETHER]
    validated = any(row.validation is not None for row in rows)
    on = "validation " if split == "validation" else ""
    headings = ["method", *keys, "seeds"]
    headings += [f"validation {_HEADINGS[metric]}"] * validated
    headings += [on + _HEADINGS[name] for name in columns(metric)]
    headings += ["Imp.%", "links right %", "MB sent a round", "seconds"]
    best = _best(rows)
    here = f"Here {show_settings(problem.settings)}." if problem.main and problem.settings else ""
    notes = [note for note in (here, improvement_note(rows), _BEST if best else "") if note]
    return Table(
        caption=problem.label,
        headings=tuple(headings),
        rows=tuple(_cells(row, keys, validated, id(row) in best) for row in rows),
        notes=tuple(notes),
        left=2 + len(keys),
    )


def setting_keys(rows: Sequence[Row]) -> list[str]:
    """The short keys that tell groups of one method apart, of all methods together."""
    return list(dict.fromkeys(key for row in rows for key in row.group.settings))


def write_results_csv(path: Path, results: Mapping[Problem, Sequence[Row]]) -> Path:
    """Write the rows of all problems with all digits; accuracies and shares in percent."""
    every = [row for rows in results.values() for row in rows]
    keys = setting_keys(every)
    header = ["task", "method", *keys, "seeds", "unfinished_at_round"]
    for name in ("accuracy_percent", "perplexity", "loss", "validation"):
        header += [f"{name}_mean", f"{name}_std"]
    header += ["imp_percent", "links_right_percent", "mb_per_round", "seconds"]
    lines: list[list[object]] = []
    for problem, rows in results.items():
        for row in rows:
            stopped = [run.last_round for run in row.group.scored if run.summary is None]
            line: list[object] = [problem.label, row.group.label]
            line += [row.group.settings.get(key) for key in keys]
            line += [len(row.group.scored), max(stopped, default=None)]
            for score in (*(row.scores.get(name) for name in METRICS), row.validation):
                line += score_numbers(score)
            line += [row.improved, row.links_right, row.megabytes, row.seconds]
            lines.append(line)
    return write_csv(path, header, lines)


def _cells(row: Row, keys: Sequence[str], validated: bool, best: bool) -> tuple[str, ...]:
    settings = row.group.settings
    score = show_score(row.validation, score_form(row.metric, row.validation))
    return (
        row.group.algorithm,
        *(_setting(settings, key) for key in keys),
        row.seeds,
        *([f"**{score}**" if best else score] if validated else []),
        *(
            show_score(row.scores.get(name), score_form(name, row.scores.get(name)))
            for name in columns(row.metric)
        ),
        show(row.improved, ".1f"),
        show(row.links_right, ".1f"),
        show(row.megabytes, ".3g"),
        show(row.seconds, ".1f"),
    )


def _setting(settings: Settings, key: str) -> str:
    if key == _TOGETHER and key not in settings:
        return show_settings(settings)
    return show_value(settings[key]) if key in settings else ""


def score_form(metric: str, score: tuple[float, float] | None) -> str:
    """The format of a metric's values."""
    if metric == "loss" and score is not None and 0 < abs(score[0]) < 0.01:
        return ".2e"  # the quadratic's losses fall below any fixed number of decimals
    return {"accuracy": ".1f", "perplexity": ".2f"}.get(metric, ".3f")


def _best(rows: Sequence[Row]) -> set[int]:
    """The ids of the rows that do best on validation data among the settings of their method."""
    families: dict[str, list[tuple[float, Row]]] = {}
    for row in rows:
        if row.validation is not None and not math.isnan(row.validation[0]):
            worth = row.validation[0] if higher_is_better(row.metric) else -row.validation[0]
            families.setdefault(row.group.algorithm, []).append((worth, row))
    choices = [pairs for pairs in families.values() if len(pairs) > 1]
    return {id(max(pairs, key=lambda pair: pair[0])[1]) for pairs in choices}
