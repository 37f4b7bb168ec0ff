"""The table of final results: one row per group, as Markdown, CSV and on the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cobo_dist.reports.grouping import Group, mean_over_clients, task_metric, task_split
from cobo_dist.reports.reading import Run
from cobo_dist.reports.series import mean_std
from cobo_dist.reports.writing import write_csv

_HEADINGS = {"accuracy": "accuracy %", "perplexity": "perplexity", "loss": "loss"}

NOTE = (
    "Last values of the mean over clients; mean ± sample standard deviation over seeds. "
    "Imp.%: share of clients that do better than with Local (same task, seed and rounds). "
    "Links right: client pairs whose final link agrees with the true clusters, in %. "
    "MB = 10^6 bytes, all ranks together."
)


@dataclass(frozen=True)
class Row:
    """One group's results. Shares and accuracy are in percent; None: there is no such number."""

    group: Group
    metric: str
    scores: Mapping[str, tuple[float, float] | None]  # metric -> mean, std over seeds
    improved: float | None
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
            return f"{counted} (unfinished, round {', '.join(map(str, rounds))})"
        parts = [f"seed {run.seed} unfinished, round {run.last_round}" for run in stopped]
        return f"{counted} (left out: {'; '.join(parts)})"

    def cells(self) -> list[str]:
        """The row as text, in the order of `headings`."""
        scores = [_show_score(self.scores.get(name), name) for name in columns(self.metric)]
        return [
            self.group.label,
            self.seeds,
            *scores,
            _show(self.improved, ".1f"),
            _show(self.links_right, ".1f"),
            _show(self.megabytes, ".3g"),
            _show(self.seconds, ".1f"),
        ]


def columns(metric: str) -> list[str]:
    """The metrics of a task's table: its own, and the loss."""
    return [metric] if metric == "loss" else [metric, "loss"]


def headings(metric: str) -> list[str]:
    """The column titles of a task's table."""
    scores = [_HEADINGS[name] for name in columns(metric)]
    return ["method", "seeds", *scores, "Imp.%", "links right %", "MB sent a round", "seconds"]


def make_rows(groups: Sequence[Group]) -> list[Row]:
    """The results of the groups of one task."""
    metric, split = task_metric(groups), task_split(groups)
    local = [run for group in groups if group.algorithm == "local" for run in group.runs]
    return [_make_row(group, metric, split, local) for group in groups]


def write_markdown(path: Path, tables: Mapping[str, Sequence[Row]]) -> Path:
    """Write one Markdown table per task."""
    lines = ["# Results", ""]
    for task, rows in tables.items():
        titles = headings(rows[0].metric)
        lines += [f"## {task}", "", _line(titles), "|---|---|" + "---:|" * (len(titles) - 2)]
        lines += [*(_line(row.cells()) for row in rows), ""]
    path.write_text("\n".join([*lines, NOTE, ""]), encoding="utf-8")
    return path


def write_table_csv(path: Path, tables: Mapping[str, Sequence[Row]]) -> Path:
    """Write the rows of all tasks with all digits; accuracy and shares in percent."""
    header = ["task", "method", "seeds", "unfinished_at_round"]
    for name in ("accuracy_percent", "perplexity", "loss"):
        header += [f"{name}_mean", f"{name}_std"]
    header += ["imp_percent", "links_right_percent", "mb_per_round", "seconds"]
    lines: list[list[object]] = []
    for task, rows in tables.items():
        for row in rows:
            stopped = [run.last_round for run in row.group.scored if run.summary is None]
            line: list[object] = [task, row.group.label, len(row.group.scored)]
            line.append(max(stopped, default=None))
            for name in ("accuracy", "perplexity", "loss"):
                mean, std = row.scores.get(name) or (None, None)
                single = len(row.group.scored) == 1
                line += [mean, None if single else std]
            line += [row.improved, row.links_right, row.megabytes, row.seconds]
            lines.append(line)
    return write_csv(path, header, lines)


def print_tables(tables: Mapping[str, Sequence[Row]], console: Console) -> None:
    """Print one table per task."""
    for task, rows in tables.items():
        titles = headings(rows[0].metric)
        table = Table(title=task, title_justify="left")
        for position, title in enumerate(titles):
            table.add_column(
                title, justify="left" if position < 2 else "right", no_wrap=position == 0
            )
        for row in rows:
            table.add_row(*row.cells())
        console.print(table)


def _make_row(group: Group, metric: str, split: str, local: Sequence[Run]) -> Row:
    scored = group.scored
    scores: dict[str, tuple[float, float] | None] = {}
    for name in columns(metric):
        values = [_final(run, split, name) for run in scored]
        known = [value * _scale(name) for value in values if value is not None]
        scores[name] = mean_std(known) if known else None
    compared = () if group.algorithm == "local" else scored
    shares = [_improved(run, metric, split, local) for run in compared]
    matches = [run.summary.cluster_match for run in scored if run.summary is not None]
    return Row(
        group,
        metric,
        scores,
        _mean(shares, 100.0),
        _mean(matches, 100.0),
        _mean([_bytes_a_round(run) for run in scored], 1e-6),
        _mean([_seconds(run) for run in scored]),
    )


def _final(run: Run, split: str, metric: str) -> float | None:
    if run.summary is not None:
        return run.summary.final.get(metric)
    series = mean_over_clients(run, split, metric)
    return series[max(series)] if series else None


def _clients(run: Run, split: str, metric: str) -> tuple[int, dict[int, float]]:
    """The round of the last values of the clients, and those values."""
    if run.summary is not None:
        finals = run.summary.per_client
        return run.summary.rounds, {i: f[metric] for i, f in finals.items() if metric in f}
    logged = run.evals.get((split, metric), {})
    series = {client: values for client, values in logged.items() if client is not None}
    last = max((max(values) for values in series.values()), default=0)
    return last, {i: values[last] for i, values in series.items() if last in values}


def _improved(run: Run, metric: str, split: str, local: Sequence[Run]) -> float | None:
    """Share of the clients of `run` that beat the same client in the Local run beside it."""
    number, mine = _clients(run, split, metric)
    best: tuple[int, dict[int, float]] | None = None
    for other in local:
        theirs_at, theirs = _clients(other, split, metric)
        comparable = other.seed == run.seed and theirs_at == number and theirs.keys() == mine.keys()
        if comparable and _section(other, "task") == _section(run, "task"):
            # Several Locals may fit (another model, another rate): take the likeliest setting.
            distance = _distance(other, run)
            best = min(best or (distance, theirs), (distance, theirs), key=lambda pair: pair[0])
    if best is None or not mine:
        return None
    sign = 1.0 if metric == "accuracy" else -1.0
    return sum(sign * value > sign * best[1][client] for client, value in mine.items()) / len(mine)


def _section(run: Run, name: str) -> dict[str, object]:
    return {key: value for key, value in run.config.items() if key.startswith(f"{name}.")}


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


def _scale(metric: str) -> float:
    return 100.0 if metric == "accuracy" else 1.0


def _show(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _show_score(score: tuple[float, float] | None, metric: str) -> str:
    """`73.1 ± 0.2`; the deviation is left out where there is none."""
    if score is None:
        return "-"
    mean, std = score
    form = {"accuracy": ".1f", "perplexity": ".2f"}.get(metric, ".3f")
    if metric == "loss" and 0 < abs(mean) < 0.01:
        form = ".2e"  # the quadratic's losses fall below any fixed number of decimals
    return format(mean, form) if math.isnan(std) else f"{mean:{form}} ± {std:{form}}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
