"""The table of each problem: one row a group, with all that is known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cobo_dist.formatting import INTERVAL_NOTE
from cobo_dist.reports.grouping import Problem
from cobo_dist.reports.grouping.groups import length_note
from cobo_dist.reports.grouping.settings import Settings, show_settings, show_value
from cobo_dist.reports.metrics import shown_metrics
from cobo_dist.reports.tables.scores import OTHER_MEANS, GroupResult, improvement_note
from cobo_dist.reports.tables.table import Table
from cobo_dist.reports.writing import write_csv
from cobo_dist.storage.schema import METRICS, higher_is_better

NOTE = (
    f"Last values of the mean over clients; {INTERVAL_NOTE} "
    "Imp.%: share of clients that do better than with Local (same task, seed and rounds). "
    "A link is a weight of at least 0.5 or, where a client's weights sum to 1, of more than an equal share. "
    "Link accuracy: client pairs whose final link agrees with the true clusters, in %; link F1: harmonic "
    "mean of precision and recall of the links; adjusted Rand: index of the connected components and the "
    "true clusters. A method that links nobody has F1 and index 0. Graph correlation: of W's weights and the "
    "right ones, where clusters do not say them. Clusters found: connected components. "
    "MB sent: 10^6 bytes between ranks, all together. MB a client: what a client would send (up) and receive "
    "(down) as a machine of its own, the same on any number of ranks."
)
_BEST = (
    "Bold: the best of a method's settings on validation data, the data on which to choose them, among "
    "runs of equal length."
)
_HEADINGS = {"accuracy": "accuracy %"}
_CSV_MEANS = {
    "imp_percent": "improved",
    "link_accuracy_percent": "link_accuracy",
    "link_f1": "link_f1",
    "adjusted_rand": "adjusted_rand",
    "graph_correlation": "graph_correlation",
    "clusters_found": "clusters_found",
    "mb_per_round": "megabytes",
    "mb_up_per_client_and_round": "megabytes_up",
    "mb_down_per_client_and_round": "megabytes_down",
    "seconds": "seconds",
}
# quantity -> heading, number format
_LINK_COLUMNS = {
    "link_accuracy": ("link accuracy %", ".1f"),
    "link_f1": ("link F1", ".2f"),
    "adjusted_rand": ("adjusted Rand", ".2f"),
    "graph_correlation": ("graph correlation", ".2f"),
    "clusters_found": ("clusters found", ".3g"),
}
_MAX_SETTING_COLUMNS = 4  # more settings than these share one column
_JOINED = "settings"
_LENGTH_KEYS = ("rounds", "run.rounds")  # have a column of their own in every table


def results_table(problem: Problem, results: Sequence[GroupResult]) -> Table:
    """Return the table of one problem. Settings that differ between groups have a column each, if few."""
    metric, split = results[0].metric, results[0].split
    keys = setting_keys(results)
    if len(keys) > _MAX_SETTING_COLUMNS:
        keys = [_JOINED]
    validated = any(result.score("validation") is not None for result in results)
    on = "validation " if split == "validation" else ""
    headings = ["method", *keys, "seeds"]
    headings += [f"validation {_HEADINGS.get(metric, metric)}"] * validated
    headings += [on + _HEADINGS.get(name, name) for name in shown_metrics(metric)]
    links = [name for name in _LINK_COLUMNS if any(one.score(name) for one in results)]
    headings += ["Imp.%", *(_LINK_COLUMNS[name][0] for name in links)]
    headings += ["rounds", "MB sent a round"]
    counted = any(one.score("megabytes_up") for one in results)
    headings += ["MB a client and round, up / down"] * counted + ["seconds"]
    best = _best_on_validation(results)
    cells = [
        _cells(one, keys, links, validated, counted, i in best) for i, one in enumerate(results)
    ]
    here = f"Here {show_settings(problem.settings)}." if problem.main and problem.settings else ""
    length = length_note(result.group for result in results)
    warning = f"Warning: {length}." if length else ""
    notes = (warning, here, improvement_note(results), _BEST if best else "")
    return Table(
        caption=problem.label,
        text=pd.DataFrame(cells, columns=headings),
        notes=tuple(note for note in notes if note),
        left=2 + len(keys),
    )


def setting_keys(results: Sequence[GroupResult]) -> list[str]:
    """Return the short keys that differ between groups of one method, of all methods together.

    Without the number of rounds, which is a column of every table.
    """
    keys = dict.fromkeys(key for result in results for key in result.group.settings)
    return [key for key in keys if key not in _LENGTH_KEYS]


def write_results_csv(path: Path, results: Mapping[Problem, Sequence[GroupResult]]) -> Path:
    """Write the results of all problems with all digits; accuracies and shares in percent."""
    every = [result for own in results.values() for result in own]
    keys = setting_keys(every)
    measured = [one for one in METRICS if any(result.score(one) for result in every)]
    rows: list[list[tuple[str, object]]] = []
    for problem, own in results.items():
        for result in own:
            group = result.group
            row: list[tuple[str, object]] = [("task", problem.label), ("method", group.label)]
            values = [group.settings.get(key) for key in keys]
            row += [(key, "" if v is None else v) for key, v in zip(keys, values, strict=True)]
            stopped = [run.last_round for run in group.scored if run.summary is None]
            row += [("seeds", len(group.scored)), ("rounds", result.rounds)]
            row.append(("unfinished_at_round", max(stopped, default="")))
            for name in (*measured, "validation"):
                row += result.csv_fields(name, csv_name(name)).items()
            for name in OTHER_MEANS:
                row += result.csv_fields(name, name).items()
            row += [(column, result.csv_mean(name)) for column, name in _CSV_MEANS.items()]
            rows.append(row)
    # The names are apart from the values, because a setting may be called like another column.
    frame = pd.DataFrame([[value for _, value in row] for row in rows], dtype=object)
    return write_csv(path, frame.set_axis([name for name, _ in rows[0]], axis=1))


def csv_name(metric: str) -> str:
    """Return the name of a metric in CSV files, which have accuracies in percent."""
    return "accuracy_percent" if metric == "accuracy" else metric


def _cells(
    result: GroupResult,
    keys: Sequence[str],
    links: Sequence[str],
    validated: bool,
    counted: bool,
    best: bool,
) -> list[str]:
    settings = result.group.settings
    up, down = (
        result.show(name, ".3g", interval=False) for name in ("megabytes_up", "megabytes_down")
    )
    score = result.show("validation", _score_format(result, "validation"))
    return [
        result.group.algorithm,
        *(_setting(settings, key) for key in keys),
        result.seeds,
        *([f"**{score}**" if best else score] if validated else []),
        *(result.show(n, _score_format(result, n)) for n in shown_metrics(result.metric)),
        result.show("improved", ".1f", interval=False),
        *(result.show(name, _LINK_COLUMNS[name][1], interval=False) for name in links),
        result.rounds,
        result.show("megabytes", ".3g", interval=False),
        *(["-" if up == "-" else f"{up} / {down}"] if counted else []),
        result.show("seconds", ".1f", interval=False),
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
    return {"accuracy": ".1f", "perplexity": ".2f", "rmse": ".4g", "mae": ".4g"}.get(metric, ".3f")


def _best_on_validation(results: Sequence[GroupResult]) -> set[int]:
    """The positions of the results that are best on validation data among the settings of their method.

    Settings are compared between runs of equal length.
    """
    sign = 1.0 if higher_is_better(results[0].metric) else -1.0
    methods = [f"{result.group.algorithm}, {result.rounds} rounds" for result in results]
    means = [result.mean("validation") for result in results]
    worth = pd.Series([np.nan if mean is None else sign * mean for mean in means]).dropna()
    families = worth.groupby([methods[i] for i in worth.index])
    return {int(i) for i in families.idxmax()[families.size() > 1]}
