"""The paper's tables: Table 1, CoBo's sampling strategies, and Table 2, all methods on all tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from cobo_dist.reports.grouping.groups import METHODS, Group, show_settings, show_value
from cobo_dist.reports.grouping.problems import Problem
from cobo_dist.reports.selection import RATE, SAMPLING, STRATEGIES, sampling_families
from cobo_dist.reports.tables.scores import Row, columns, improvement_note
from cobo_dist.reports.tables.table import Table, score_numbers, show, show_score

_TABLE_1 = {
    "accuracy": ("Accuracy (%)", ".2f"),
    "perplexity": ("Perplexity", ".2f"),
    "loss": ("Loss", ".3f"),
}
_TABLE_2 = {
    "accuracy": ("acc. %", ".1f"),
    "perplexity": ("perplexity", ".2f"),
    "loss": ("loss", ".2f"),
}
# The paper gives losses beside accuracies alone: a perplexity is its loss.
_COLUMNS_2 = {"accuracy": ("accuracy", "loss"), "perplexity": ("perplexity",), "loss": ("loss",)}
_OVER_SEEDS = "Mean ± sample standard deviation over seeds, of the mean over clients."
_IMPROVED = "Imp.%: share of clients that do better than with Local and the same seed."


def table_1(results: Mapping[Problem, Sequence[Row]]) -> list[Table]:
    """The sampling strategies of CoBo: a table for each setting that was run with two or more.

    Strategies are in the paper's order; one that was not run has a row of `-` and a note.
    """
    tables = []
    for problem, rows in results.items():
        families = sampling_families(problem.groups)
        by_group = {id(row.group): row for row in rows}
        for family in families:
            found = {name: [by_group[id(group)] for group in own] for name, own in family.items()}
            caption = f"Table 1: sampling strategies of {_family_title(family, len(families) > 1)}"
            tables.append(_strategies(f"{caption}, {problem.label}", problem.label, found))
    return tables


def _family_title(family: Mapping[str, Sequence[Group]], several: bool) -> str:
    group = next(iter(family.values()))[0]
    own = (SAMPLING, RATE)
    rest = {k: v for k, v in group.settings.items() if not any(o.endswith(f".{k}") for o in own)}
    name = METHODS.get(group.algorithm, group.algorithm)
    return f"{name} ({show_settings(rest)})" if several and rest else name


def _strategies(caption: str, task: str, found: Mapping[str, Sequence[Row]]) -> Table:
    metric = next(iter(found.values()))[0].metric
    names = columns(metric)
    rows: list[tuple[str, ...]] = []
    numbers: list[tuple[object, ...]] = []
    notes = [_OVER_SEEDS]
    rates = {str(row.group.method_settings.get(RATE)) for own in found.values() for row in own}
    if len(rates) > 1:
        notes.append("rate: factor on 1/n or 1/t (algorithm.sampling.rate).")
    for strategy in dict.fromkeys((*STRATEGIES, *sorted(found))):
        title = STRATEGIES.get(strategy, strategy)
        if strategy not in found:
            rows.append((title, *["-"] * (len(names) + 1)))
            notes.append(f"{title}: no run with {SAMPLING}={strategy} among these.")
        for row in found.get(strategy, ()):
            same = len(found[strategy]) > 1
            name = f"{title}, {show_settings(row.group.settings)}" if same else title
            if not same and len(rates) > 1:
                name = f"{title}, rate {show_value(row.group.method_settings.get(RATE))}"
            cells = [show_score(row.scores[one], _TABLE_1[one][1]) for one in names]
            rows.append((name, *cells, row.seeds))
            scores = [number for one in names for number in score_numbers(_score(row, one))]
            numbers.append((task, row.group.label, strategy, *scores, len(row.group.scored)))
    statistics = [f"{_csv_name(name)}_{what}" for name in names for what in ("mean", "std")]
    return Table(
        caption=caption,
        headings=("Sampling strategy", *(_TABLE_1[name][0] for name in names), "Seeds"),
        rows=tuple(rows),
        notes=tuple(notes),
        csv_header=("task", "method", "strategy", *statistics, "seeds"),
        csv_rows=tuple(numbers),
    )


def table_2(results: Mapping[Problem, Sequence[Row]]) -> Table | None:
    """All methods on the main problems of all tasks, or None where there is nothing to compare.

    `results` are those of the problems without the sampling variants that Table 1 holds.
    """
    mains = {problem: rows for problem, rows in results.items() if problem.main}
    places = _place(mains)
    if len(places) < 2 and len(mains) < 2:
        return None
    spans, headings, header = [], ["Method"], ["method"]
    for problem, rows in mains.items():
        names = _COLUMNS_2[rows[0].metric]
        spans.append((_problem_title(problem, rows), len(names) + 1))
        headings += [*(_TABLE_2[name][0] for name in names), "Imp.%"]
        for name in names:
            header += [f"{problem.task}_{_csv_name(name)}_{what}" for what in ("mean", "std")]
        header += [f"{problem.task}_imp_percent", f"{problem.task}_seeds"]
    lines: list[tuple[str, ...]] = []
    numbers: list[tuple[object, ...]] = []
    for title, own in places.items():
        cells: list[str] = [title]
        line: list[object] = [title]
        for problem, rows in mains.items():
            cells += _cells(own.get(id(problem)), rows[0].metric)
            line += _numbers(own.get(id(problem)), rows[0].metric)
        lines.append(tuple(cells))
        numbers.append(tuple(line))
    return Table(
        caption="Table 2: all methods",
        headings=tuple(headings),
        rows=tuple(lines),
        notes=tuple(_notes(results, mains)),
        spans=(("", 1), *spans),
        csv_header=tuple(header),
        csv_rows=tuple(numbers),
    )


def _place(mains: Mapping[Problem, Sequence[Row]]) -> dict[str, dict[int, Row]]:
    """Title of a row -> its results by problem, in the order of the methods.

    A method that has one setting on a task, and several on another, stands in the row of that
    setting if it is one of them.
    """
    order = [*METHODS, *sorted({row.group.algorithm for rows in mains.values() for row in rows})]
    places: dict[str, dict[int, Row]] = {}
    for algorithm in dict.fromkeys(order):
        own = [
            (problem, row)
            for problem, rows in mains.items()
            for row in rows
            if row.group.algorithm == algorithm
        ]
        for problem, row in sorted(own, key=lambda pair: bool(pair[1].group.settings)):
            title = row.group.title
            if not row.group.settings:
                config = row.group.method_settings
                title = next(
                    (other for other, at in _settings_of(own) if _agrees(config, at)), title
                )
            places.setdefault(title, {})[id(problem)] = row
    return places


def _settings_of(own: Sequence[tuple[Problem, Row]]) -> Iterator[tuple[str, Mapping[str, object]]]:
    for _, row in own:
        if row.group.settings:
            yield row.group.title, row.group.settings


def _agrees(config: Mapping[str, object], settings: Mapping[str, object]) -> bool:
    """Whether a full config has these short keys at these values."""
    return all(
        any((k == key or k.endswith(f".{key}")) and v == value for k, v in config.items())
        for key, value in settings.items()
    )


def _problem_title(problem: Problem, rows: Sequence[Row]) -> str:
    clients = {
        len(run.summary.per_client)
        for row in rows
        for run in row.group.runs
        if run.summary is not None
    }
    return f"{problem.title} ({clients.pop()} clients)" if len(clients) == 1 else problem.title


def _cells(row: Row | None, metric: str) -> list[str]:
    names = _COLUMNS_2[metric]
    if row is None:
        return ["-"] * (len(names) + 1)
    scores = [show_score(row.scores[name], _form(row, name)) for name in names]
    return [*scores, show(row.improved, ".0f")]


def _form(row: Row, name: str) -> str:
    score = _score(row, name)
    small = name == "loss" and score is not None and 0 < abs(score[0]) < 0.05
    return ".1e" if small else _TABLE_2[name][1]


def _numbers(row: Row | None, metric: str) -> list[object]:
    names = _COLUMNS_2[metric]
    if row is None:
        return [None] * (2 * len(names) + 2)
    scores: list[object] = [number for one in names for number in score_numbers(_score(row, one))]
    return [*scores, row.improved, len(row.group.scored)]


def _notes(
    results: Mapping[Problem, Sequence[Row]], mains: Mapping[Problem, Sequence[Row]]
) -> Iterator[str]:
    yield f"{_OVER_SEEDS} {_IMPROVED} -: not run, or no such number."
    counts = {row.seeds for rows in mains.values() for row in rows}
    if len(counts) == 1:
        yield f"Seeds: {counts.pop()} each."
    else:
        yield from (_seed_note(problem, rows) for problem, rows in mains.items())
    for problem, rows in mains.items():
        if note := improvement_note(rows):
            yield f"{problem.title}: {note}"
    for problem in mains:
        others = [other for other in results if other.task == problem.task and not other.main]
        if others:
            yield (
                f"{problem.title}: with {show_settings(problem.settings)}; runs with other task "
                "settings have tables of their own."
            )


def _seed_note(problem: Problem, rows: Sequence[Row]) -> str:
    """How many seeds each method has: the usual number, and who differs."""
    usual, _ = Counter(row.seeds for row in rows).most_common(1)[0]
    others = [f"{row.group.title} {row.seeds}" for row in rows if row.seeds != usual]
    return f"{problem.title}, seeds: {usual}" + (f"; {', '.join(others)}." if others else ".")


def _score(row: Row, metric: str) -> tuple[float, float] | None:
    return row.scores.get(metric)


def _csv_name(metric: str) -> str:
    return "accuracy_percent" if metric == "accuracy" else metric
