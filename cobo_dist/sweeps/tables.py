"""What a sweep writes beside its runs: sweep.csv, sweep.md and best/METHOD.yaml."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cobo_dist.formatting import INTERVAL_NOTE, markdown_text
from cobo_dist.storage.files import replace_text
from cobo_dist.storage.schema import METRICS
from cobo_dist.sweeps.folders import Result, State
from cobo_dist.sweeps.grid import Run, short_keys, show
from cobo_dist.sweeps.selection import Score, Selection, Setting

_NOTE = (
    f"Last values of the mean over clients; {INTERVAL_NOTE} "
    "Settings are chosen on validation data; test scores are only shown."
)
_TITLES = ("method", "setting", "seeds", "metric", "validation", "test", "")
_SPLITS = ("validation", "test")
_OF_ONE_RUN = {"run": {"dir", "overwrite", "resume", "seed"}}


@dataclass
class RunRecord:
    """A run of the sweep and its outcome."""

    run: Run
    folder: Path
    found: State  # what the folder held when the sweep began
    outcome: str = "not started"  # or done, failed, interrupted
    reason: str = ""
    result: Result | None = None


def write_tables(
    out: Path,
    records: Sequence[RunRecord],
    selections: Sequence[Selection],
    ranks: int,
    command: str,
) -> None:
    """Write the tables and the chosen settings as they stand now.

    Raises:
        OSError: a file cannot be written.
    """
    replace_text(out / "sweep.csv", _csv(records))
    replace_text(out / "sweep.md", _markdown(records, selections, command))
    for selection in selections:
        file = out / "best" / f"{selection.method}.yaml"
        if selection.best is not None:
            file.parent.mkdir(exist_ok=True)
            replace_text(file, _best_yaml(file, selection, selection.best, ranks, command))
        elif selection.notes:  # what an earlier sweep chose no longer holds
            file.unlink(missing_ok=True)


# -- one row for each run ------------------------------------------------------------------------------


def _csv(records: Sequence[RunRecord]) -> str:
    runs = [record.run for record in records]
    axes = list(dict.fromkeys(key for run in runs for key in (*run.problem, *run.varied)))
    several_files = len({record.run.file for record in records}) > 1
    rows = [_csv_row(record, axes, several_files) for record in records]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _csv_row(record: RunRecord, axes: Sequence[str], several_files: bool) -> dict[str, object]:
    run, result = record.run, record.result
    varied = {**run.problem, **run.varied}
    return {
        "name": run.name,
        "state": record.outcome,
        "task": run.config.task.name,
        "algorithm": run.config.algorithm.name,
        **({"config": run.file} if several_files else {}),
        **{key: show(varied[key]) if key in varied else None for key in axes},
        "run.seed": run.seed,
        "seconds": result.seconds if result else None,
        **{
            f"{split}_{metric}": result.scores.get((split, metric)) if result else None
            for split in _SPLITS
            for metric in METRICS
        },
        "reason": record.reason,
        "folder": record.folder,
    }


# -- one row for each setting --------------------------------------------------------------------------


def _cells(selection: Selection, setting: Setting) -> list[str]:
    short = short_keys({key for one in selection.settings for key in one.varied})
    values = ", ".join(f"{short[key]}={show(value)}" for key, value in setting.varied.items())
    return [
        selection.method,
        values or "-",
        f"{setting.done}/{len(setting.runs)}",
        selection.metric or "-",
        _score(setting.validation),
        _score(setting.test),
        "chosen" if setting.chosen and setting.varied else "",
    ]


def _score(score: Score | None) -> str:
    if score is None:
        return "-"
    mean, half = score
    return f"{mean:.4g}" if math.isnan(half) else f"{mean:.4g} ± {half:.2g}"


def remarks(selections: Sequence[Selection]) -> list[str]:
    """Return the notes on the choices, a line each; a note on all methods once."""
    return [*_notes(selections), *_length_note(selections)]


def _length_note(selections: Sequence[Selection]) -> list[str]:
    """Return a warning if finished runs have different numbers of rounds."""
    found: dict[int, dict[str, None]] = {}
    for selection in selections:
        for setting in selection.settings:
            if setting.done:
                name = (
                    f"{selection.method} ({setting.label})" if setting.label else selection.method
                )
                found.setdefault(setting.runs[0].config.run.rounds, {})[name] = None
    if len(found) < 2:
        return []
    parts = "; ".join(f"{rounds:,}: {', '.join(found[rounds])}" for rounds in sorted(found))
    return [
        f"warning: these runs differ in their number of rounds ({parts}): values compare only between equal "
        "numbers; set run.rounds alike"
    ]


def _notes(selections: Sequence[Selection]) -> list[str]:
    notes = {selection.method: selection.notes for selection in selections}
    if len(notes) > 1 and len(set(notes.values())) == 1:
        return [f"all methods: {note}" for note in next(iter(notes.values()))]
    return [f"{method}: {note}" for method, some in notes.items() for note in some]


def print_table(selections: Sequence[Selection], console: Console) -> None:
    """Print the settings of all methods."""
    table = Table()
    for title in _TITLES:
        table.add_column(title, overflow="fold")
    for selection in selections:
        for setting in selection.settings:
            table.add_row(*_cells(selection, setting), style="bold" if setting.chosen else None)
    console.print(table)


def _markdown(records: Sequence[RunRecord], selections: Sequence[Selection], command: str) -> str:
    failed = [record for record in records if record.outcome == "failed"]
    lines = [
        *("# Sweep", "", f"`{command}`", "", tally(records), ""),
        *(_line(_TITLES), "|---|---|---|---|---:|---:|---|"),
        *(_line(_cells(selection, one)) for selection in selections for one in selection.settings),
        *("", _NOTE, ""),
        *(f"- {note}" for note in remarks(selections)),
        *(f"- {record.run.name} failed: {record.reason}" for record in failed),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(markdown_text, cells)) + " |"


def tally(records: Sequence[RunRecord]) -> str:
    """`24 runs: 20 done, 1 failed, 3 not started`."""
    count = Counter(record.outcome for record in records)
    parts = [
        f"{count[outcome]} {outcome}"
        for outcome in ("done", "failed", "interrupted", "not started")
        if count[outcome]
    ]
    return f"{len(records)} run{'s' if len(records) != 1 else ''}: {', '.join(parts)}"


def _best_yaml(file: Path, selection: Selection, best: Setting, ranks: int, command: str) -> str:
    """The chosen config without what belongs to one run, and where it comes from as a comment."""
    seeds = ", ".join(str(run.seed) for run in best.runs)
    tried = len(selection.settings)
    config = best.runs[0].config
    head = [
        f"torchrun --standalone --nproc_per_node={ranks} -m cobo_dist.train --config {file}",
        "",
        f"{best.label or 'Its only setting'}: validation {selection.metric} {_score(best.validation)}",
        f"after {config.run.rounds} rounds, seed {seeds}; "
        + (f"the best of {tried} settings tried by" if tried > 1 else "from"),
        command,
        *selection.notes,
    ]
    comment = "".join(f"# {' '.join(line.splitlines())}".rstrip() + "\n" for line in head)
    return comment + config.to_yaml(exclude=_OF_ONE_RUN)
