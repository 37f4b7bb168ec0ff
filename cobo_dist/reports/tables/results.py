"""The table of each problem: one row a group, with all that is known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cobo_dist.reports.grouping import Problem
from cobo_dist.reports.grouping.settings import Settings, show_settings, show_value
from cobo_dist.reports.metrics import higher_is_better, shown_metrics
from cobo_dist.reports.tables.scores import GroupResult, improvement_note
from cobo_dist.reports.tables.table import Table
from cobo_dist.reports.writing import write_csv
from cobo_dist.storage.schema import METRICS

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
_MAX_SETTING_COLUMNS = 4  # more settings than these share one column
_JOINED = "settings"


def results_table(problem: Problem, results: Sequence[GroupResult]) -> Table:
    """Return the table of one problem. Settings that differ between groups have a column each, if few."""
    metric, split = results[0].metric, results[0].split
    keys = setting_keys(results)
    if len(keys) > _MAX_SETTING_COLUMNS:
        keys = [_JOINED]
    validated = any(result.score("validation") is not None for result in results)
    on = "validation " if split == "validation" else ""
    headings = ["method", *keys, "seeds"]
    headings += [f"validation {_HEADINGS[metric]}"] * validated
    headings += [on + _HEADINGS[name] for name in shown_metrics(metric)]
    headings += ["Imp.%", "links right %", "MB sent a round", "seconds"]
    best = _best_on_validation(results)
    cells = [_cells(one, keys, validated, i in best) for i, one in enumerate(results)]
    here = f"Here {show_settings(problem.settings)}." if problem.main and problem.settings else ""
    notes = (here, improvement_note(results), _BEST if best else "")
    return Table(
        caption=problem.label,
        text=pd.DataFrame(cells, columns=headings),
        notes=tuple(note for note in notes if note),
        left=2 + len(keys),
    )


def setting_keys(results: Sequence[GroupResult]) -> list[str]:
    """Return the short keys that differ between groups of one method, of all methods together."""
    return list(dict.fromkeys(key for result in results for key in result.group.settings))


def write_results_csv(path: Path, results: Mapping[Problem, Sequence[GroupResult]]) -> Path:
    """Write the results of all problems with all digits; accuracies and shares in percent."""
    keys = setting_keys([one for own in results.values() for one in own])
    labels: list[dict[str, object]] = []
    settings: list[list[object]] = []
    numbers: list[dict[str, object]] = []
    for problem, own in results.items():
        for result in own:
            group = result.group
            labels.append({"task": problem.label, "method": group.label})
            values = [group.settings.get(key) for key in keys]
            settings.append(["" if value is None else value for value in values])
            stopped = [run.last_round for run in group.scored if run.summary is None]
            line: dict[str, object] = {"seeds": len(group.scored)}
            line["unfinished_at_round"] = max(stopped, default="")
            for name in (*METRICS, "validation"):
                line |= result.csv_fields(name, csv_name(name))
            line["imp_percent"] = result.csv_mean("improved")
            line["links_right_percent"] = result.csv_mean("links_right")
            line["mb_per_round"] = result.csv_mean("megabytes")
            line["seconds"] = result.csv_mean("seconds")
            numbers.append(line)
    # Three frames side by side, because a setting may have the name of another column.
    parts = [
        pd.DataFrame(labels, dtype=object),
        pd.DataFrame(settings, columns=keys, dtype=object),
        pd.DataFrame(numbers, dtype=object),
    ]
    return write_csv(path, pd.concat(parts, axis=1))


def csv_name(metric: str) -> str:
    """Return the name of a metric in CSV files, which have accuracies in percent."""
    return "accuracy_percent" if metric == "accuracy" else metric


def _cells(result: GroupResult, keys: Sequence[str], validated: bool, best: bool) -> list[str]:
    settings = result.group.settings
    score = result.show("validation", _score_format(result, "validation"))
    return [
        result.group.algorithm,
        *(_setting(settings, key) for key in keys),
        result.seeds,
        *([f"**{score}**" if best else score] if validated else []),
        *(result.show(n, _score_format(result, n)) for n in shown_metrics(result.metric)),
        result.show("improved", ".1f", deviation=False),
        result.show("links_right", ".1f", deviation=False),
        result.show("megabytes", ".3g", deviation=False),
        result.show("seconds", ".1f", deviation=False),
    ]


def _setting(settings: Settings, key: str) -> str:
    if key == _JOINED and key not in settings:
        return show_settings(settings)
    return show_value(settings[key]) if key in settings else ""


def _score_format(result: GroupResult, quantity: str) -> str:
    metric = result.metric if quantity == "validation" else quantity
    mean = result.mean(quantity)
    if metric == "loss" and mean is not None and 0 < abs(mean) < 0.01:
        return ".2e"  # the quadratic's losses fall below any fixed number of decimals
    return {"accuracy": ".1f", "perplexity": ".2f"}.get(metric, ".3f")


def _best_on_validation(results: Sequence[GroupResult]) -> set[int]:
    """The positions of the results that are best on validation data among the settings of their method."""
    sign = 1.0 if higher_is_better(results[0].metric) else -1.0
    methods = [result.group.algorithm for result in results]
    means = [result.mean("validation") for result in results]
    worth = pd.Series([np.nan if mean is None else sign * mean for mean in means]).dropna()
    families = worth.groupby([methods[i] for i in worth.index])
    return {int(i) for i in families.idxmax()[families.size() > 1]}
