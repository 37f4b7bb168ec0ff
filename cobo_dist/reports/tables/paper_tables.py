"""The paper's tables: Table 1, CoBo's sampling strategies, and Table 2, all methods on all tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from cobo_dist.formatting import INTERVAL_NOTE
from cobo_dist.reports.grouping import Group, Problem
from cobo_dist.reports.grouping.groups import SAMPLING, STRATEGIES, length_note
from cobo_dist.reports.grouping.settings import Settings, show_settings, show_value
from cobo_dist.reports.metrics import shown_metrics
from cobo_dist.reports.selection import RATE, sampling_families
from cobo_dist.reports.tables.results import csv_name
from cobo_dist.reports.tables.scores import GroupResult, improvement_note
from cobo_dist.reports.tables.table import Table

Results = Mapping[Problem, Sequence[GroupResult]]

# metric -> heading, number format
_COLUMNS_1 = {
    "accuracy": ("Accuracy (%)", ".2f"),
    "perplexity": ("Perplexity", ".2f"),
    "loss": ("Loss", ".3f"),
}
_COLUMNS_2 = {
    "accuracy": ("acc. %", ".1f"),
    "perplexity": ("perplexity", ".2f"),
    "loss": ("loss", ".2f"),
}
# The paper gives losses beside accuracies only: a perplexity is a function of its loss.
_METRICS_2 = {"accuracy": ("accuracy", "loss"), "perplexity": ("perplexity",), "loss": ("loss",)}
_OVER_SEEDS = f"Of the mean over clients: {INTERVAL_NOTE}"
_IMPROVED = "Imp.%: share of clients that do better than with Local and the same seed."


def table_1(results: Results) -> list[Table]:
    """Return a table for each setting of CoBo that was run with two sampling strategies or more.

    The number of rounds is a setting, so the runs of one table are of equal length.

    Strategies are in the paper's order; one that was not run has a row of `-` and a note.
    """
    tables = []
    for problem, own in results.items():
        families = sampling_families(problem.groups)
        by_group = {result.group: result for result in own}
        for family in families:
            found = {name: [by_group[group] for group in groups] for name, groups in family.items()}
            title = _family_title(family, len(families) > 1)
            caption = f"Table 1: sampling strategies of {title}, {problem.label}"
            tables.append(_strategy_table(caption, problem.label, found))
    return tables


def _family_title(family: Mapping[str, Sequence[Group]], several: bool) -> str:
    group = next(iter(family.values()))[0]
    own = (SAMPLING, RATE)
    rest = {k: v for k, v in group.settings.items() if not any(o.endswith(f".{k}") for o in own)}
    name = group.method_title
    return f"{name} ({show_settings(rest)})" if several and rest else name


def _strategy_table(caption: str, task: str, found: Mapping[str, Sequence[GroupResult]]) -> Table:
    metrics = shown_metrics(next(iter(found.values()))[0].metric)
    headings = [
        "Sampling strategy",
        *(_COLUMNS_1.get(name, (name, ""))[0] for name in metrics),
        "Seeds",
    ]
    rates = {str(_rate(result)) for own in found.values() for result in own}
    notes = [_OVER_SEEDS]
    if len(rates) > 1:
        notes.append("rate: factor on 1/n or 1/t (algorithm.sampling.rate).")
    text: list[list[str]] = []
    numbers: list[dict[str, object]] = []
    for strategy in dict.fromkeys((*STRATEGIES, *sorted(found))):
        title = STRATEGIES.get(strategy, strategy)
        if strategy not in found:
            text.append([title, *["-"] * (len(metrics) + 1)])
            notes.append(f"{title}: no run with {SAMPLING}={strategy} among these.")
        for result in found.get(strategy, ()):
            name = title
            if len(found[strategy]) > 1:
                name = f"{title}, {show_settings(result.group.settings)}"
            elif len(rates) > 1:
                name = f"{title}, rate {show_value(_rate(result))}"
            cells = [result.show(one, _COLUMNS_1.get(one, ("", ".4g"))[1]) for one in metrics]
            text.append([name, *cells, result.seeds])
            line: dict[str, object] = {"task": task, "method": result.group.label}
            line["strategy"] = strategy
            for one in metrics:
                line |= result.csv_fields(one, csv_name(one))
            numbers.append(line | {"rounds": result.rounds, "seeds": len(result.group.scored)})
    return Table(
        caption=caption,
        text=pd.DataFrame(text, columns=headings),
        notes=tuple(notes),
        numbers=pd.DataFrame(numbers, dtype=object),
    )


def _rate(result: GroupResult) -> object:
    return result.group.method_settings.get(RATE)


def table_2(results: Results) -> Table | None:
    """Return the table of all methods on the main problems of all tasks, None if that is a single result.

    `results` are those of the problems without the sampling variants that Table 1 holds.
    """
    mains = {problem: own for problem, own in results.items() if problem.main}
    places = _places(mains)
    titles = list(dict.fromkeys(title for title, _, _ in places))
    if len(titles) < 2 and len(mains) < 2:
        return None
    text = {"": pd.DataFrame({"Method": titles}, index=titles)}
    numbers = [pd.DataFrame({"method": titles}, index=titles, dtype=object)]
    for problem, own in mains.items():
        found = {title: result for title, place, result in places if place is problem}
        differ = length_note(result.group for result in own) is not None
        cells = pd.DataFrame({title: _cells(one, differ) for title, one in found.items()}).T
        text[_problem_title(problem, own)] = cells.reindex(titles, fill_value="-")
        fields = pd.DataFrame({title: _fields(problem.task, one) for title, one in found.items()})
        numbers.append(fields.T.astype(object).reindex(titles, fill_value=""))
    return Table(
        caption="Table 2: all methods",
        text=pd.concat(text, axis=1),
        notes=tuple(_notes(results, mains)),
        numbers=pd.concat(numbers, axis=1),
    )


def _places(mains: Results) -> list[tuple[str, Problem, GroupResult]]:
    """The results of all tasks with the titles of their rows, in the order of the methods.

    A method may have one setting on one task and several on another. Then the one stands in the row of
    the same setting, if it is among the several.
    """
    places = []
    order = sorted({one.group.place for own in mains.values() for one in own})
    for algorithm in dict.fromkeys(name for _, name in order):
        own = [
            (problem, result)
            for problem, found in mains.items()
            for result in found
            if result.group.algorithm == algorithm
        ]
        groups = [result.group for _, result in own if result.group.settings]
        for problem, result in sorted(own, key=lambda pair: bool(pair[1].group.settings)):
            title, config = result.group.title, result.group.method_settings
            if not result.group.settings:
                same = (other.title for other in groups if _has_settings(config, other.settings))
                title = next(same, title)
            places.append((title, problem, result))
    return places


def _has_settings(config: Settings, settings: Settings) -> bool:
    """Whether a full config has these short keys at these values."""
    return all(
        any((k == key or k.endswith(f".{key}")) and v == value for k, v in config.items())
        for key, value in settings.items()
    )


def _problem_title(problem: Problem, results: Sequence[GroupResult]) -> str:
    clients = {
        len(run.summary.per_client)
        for result in results
        for run in result.group.runs
        if run.summary is not None
    }
    return f"{problem.title} ({clients.pop()} clients)" if len(clients) == 1 else problem.title


def _cells(result: GroupResult, with_rounds: bool) -> dict[str, str]:
    """The cells of one result in Table 2, by heading."""
    cells = {}
    for name in _METRICS_2.get(result.metric, (result.metric,)):
        heading, form = _COLUMNS_2.get(name, (name, ".4g"))
        mean = result.mean(name)
        small = name == "loss" and mean is not None and 0 < abs(mean) < 0.05
        cells[heading] = result.show(name, ".1e" if small else form)
    cells["Imp.%"] = result.show("improved", ".0f", interval=False)
    return cells | ({"rounds": result.rounds} if with_rounds else {})


def _fields(task: str, result: GroupResult) -> dict[str, object]:
    """The numbers of one result in the CSV of Table 2, by column."""
    fields: dict[str, object] = {}
    for name in _METRICS_2.get(result.metric, (result.metric,)):
        fields |= result.csv_fields(name, f"{task}_{csv_name(name)}")
    fields[f"{task}_imp_percent"] = result.csv_mean("improved")
    fields[f"{task}_rounds"] = result.rounds
    return fields | {f"{task}_seeds": len(result.group.scored)}


def _notes(results: Results, mains: Results) -> Iterator[str]:
    yield f"{_OVER_SEEDS} {_IMPROVED} -: not run, or no such number."
    counts = {result.seeds for own in mains.values() for result in own}
    if len(counts) == 1:
        yield f"Seeds: {counts.pop()} each."
    else:
        yield from (_seed_note(problem, own) for problem, own in mains.items())
    for problem, own in mains.items():
        if length := length_note(result.group for result in own):
            yield f"{problem.title}: warning: {length}."
        if note := improvement_note(own):
            yield f"{problem.title}: {note}"
    for problem in mains:
        if any(other.task == problem.task and not other.main for other in results):
            yield (
                f"{problem.title}: with {show_settings(problem.settings)}; runs with other task "
                "settings have tables of their own."
            )


def _seed_note(problem: Problem, results: Sequence[GroupResult]) -> str:
    """How many seeds the methods have: the most common number, and which methods differ."""
    usual, _ = Counter(result.seeds for result in results).most_common(1)[0]
    others = [f"{one.group.title} {one.seeds}" for one in results if one.seeds != usual]
    return f"{problem.title}, seeds: {usual}" + (f"; {', '.join(others)}." if others else ".")
