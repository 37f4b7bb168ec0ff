"""What a sweep writes beside its runs: sweep.csv, sweep.md and best/<method>.yaml, each whole or not."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cobo_dist.config import Config
from cobo_dist.storage.schema import METRICS
from cobo_dist.sweeps.choice import Candidate, Verdict
from cobo_dist.sweeps.folders import Result
from cobo_dist.sweeps.grid import Run, short_keys, show

_NOTE = (
    "Last values of the mean over clients; mean ± sample standard deviation over seeds. "
    "Settings are chosen on validation data; test figures are only shown."
)
_OF_A_RUN = ("dir", "overwrite", "resume", "seed")
_STATES = {"waiting": "not started", "stopped": "interrupted"}


@dataclass
class Record:
    """A run and what became of it: waiting, done, failed or stopped."""

    run: Run
    folder: Path
    state: str = "waiting"
    reason: str = ""
    result: Result | None = None


def write_all(
    out: Path, records: Sequence[Record], verdicts: Sequence[Verdict], ranks: int, typed: str
) -> None:
    """Write the tables and the chosen settings as they stand now.

    Raises:
        OSError: a file cannot be written.
    """
    _write(out / "sweep.csv", _csv(records))
    _write(out / "sweep.md", _markdown(records, verdicts, typed))
    for verdict in verdicts:
        file = out / "best" / f"{verdict.method}.yaml"
        if verdict.best is not None:
            file.parent.mkdir(exist_ok=True)
            _write(file, _best_yaml(file, verdict, verdict.best, ranks, typed))
        elif verdict.notes:  # there is a choice, but what an earlier sweep chose no longer stands
            file.unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    draft = path.with_name(path.name + ".part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


# -- a row a run -------------------------------------------------------------------------------------


def _csv(records: Sequence[Record]) -> str:
    keys = _keys([record.run for record in records])
    several = len({record.run.file for record in records}) > 1
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    scores = [(split, metric) for split in ("validation", "test") for metric in METRICS]
    writer.writerow(
        [
            *("name", "state", "task", "algorithm", *(["config"] if several else []), *keys),
            *("run.seed", "seconds", *(f"{split}_{metric}" for split, metric in scores)),
            *("reason", "folder"),
        ]
    )
    for record in records:
        run, result = record.run, record.result
        writer.writerow(
            [
                *(run.name, _STATES.get(record.state, record.state), run.config.task.name),
                *(run.config.algorithm.name, *([run.file] if several else [])),
                *(show(run.varied[key]) if key in run.varied else None for key in keys),
                *(run.seed, result.seconds if result else None),
                *(result.scores.get(score) if result else None for score in scores),
                *(record.reason, record.folder),
            ]
        )
    return text.getvalue()


def _keys(runs: Sequence[Run]) -> list[str]:
    """The choice axes of all runs, in the order in which they were given."""
    return list(dict.fromkeys(key for run in runs for key in run.varied))


# -- a row a setting ---------------------------------------------------------------------------------


def _cells(verdict: Verdict, candidate: Candidate) -> list[str]:
    short = short_keys({key for one in verdict.candidates for key in one.varied})
    setting = ", ".join(f"{short[key]}={show(value)}" for key, value in candidate.varied.items())
    return [
        verdict.method,
        setting or "-",
        f"{candidate.done}/{len(candidate.runs)}",
        verdict.metric or "-",
        _score(candidate.validation),
        _score(candidate.test),
        "chosen" if candidate.chosen and candidate.varied else "",
    ]


_TITLES = ("method", "setting", "seeds", "metric", "validation", "test", "")


def _score(score: tuple[float, float] | None) -> str:
    if score is None:
        return "-"
    mean, deviation = score
    return f"{mean:.4g}" if math.isnan(deviation) else f"{mean:.4g} ± {deviation:.2g}"


def remarks(verdicts: Sequence[Verdict]) -> list[str]:
    """What must be said of the choices, a line each; what holds for all methods once."""
    notes = {verdict.method: verdict.notes for verdict in verdicts}
    if len(notes) > 1 and len(set(notes.values())) == 1:
        return [f"all methods: {note}" for note in next(iter(notes.values()))]
    return [f"{method}: {note}" for method, some in notes.items() for note in some]


def print_table(verdicts: Sequence[Verdict], console: Console) -> None:
    """Print the settings of all methods."""
    table = Table()
    for title in _TITLES:
        table.add_column(title, overflow="fold")
    for verdict in verdicts:
        for candidate in verdict.candidates:
            style = "bold" if candidate.chosen else None
            table.add_row(*_cells(verdict, candidate), style=style)
    console.print(table, markup=False)


def _markdown(records: Sequence[Record], verdicts: Sequence[Verdict], typed: str) -> str:
    lines = ["# Sweep", "", f"`{typed}`", "", tally(records), ""]
    lines += [_line(_TITLES), "|---|---|---|---|---:|---:|---|"]
    lines += [_line(_cells(verdict, one)) for verdict in verdicts for one in verdict.candidates]
    lines += ["", _NOTE, ""]
    lines += [f"- {note}" for note in remarks(verdicts)]
    lines += [
        f"- {record.run.name} failed: {record.reason}"
        for record in records
        if record.state == "failed"
    ]
    return "\n".join(lines).rstrip() + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def tally(records: Sequence[Record]) -> str:
    """`24 runs: 20 done, 1 failed, 3 not started`."""
    count = {state: 0 for state in ("done", "failed", "stopped", "waiting")}
    for record in records:
        count[record.state] += 1
    parts = [f"{n} {_STATES.get(state, state)}" for state, n in count.items() if n]
    return f"{len(records)} run{'s' if len(records) != 1 else ''}: {', '.join(parts)}"


# -- the chosen settings -----------------------------------------------------------------------------


def _best_yaml(file: Path, verdict: Verdict, best: Candidate, ranks: int, typed: str) -> str:
    seeds = ", ".join(str(run.seed) for run in best.runs)
    tried = len(verdict.candidates)
    head = [
        f"torchrun --standalone --nproc_per_node={ranks} -m cobo_dist.train --config {file}",
        "",
        f"{best.label or 'Its only setting'}: validation {verdict.metric} {_score(best.validation)}",
        f"after {best.runs[0].config.run.rounds} rounds, seed {seeds}; "
        + (f"the best of {tried} settings tried by" if tried > 1 else "from"),
        typed,
        *verdict.notes,
    ]
    comment = "".join(f"# {' '.join(line.splitlines())}".rstrip() + "\n" for line in head)
    return comment + settings_yaml(best.runs[0].config)


def settings_yaml(config: Config) -> str:
    """Return the config as YAML without what belongs to one run: its folder and its seed."""
    run = config.run.model_copy(update={"dir": ""})
    kept, section = [], ""
    for line in config.model_copy(update={"run": run}).to_yaml().splitlines():
        section = section if line.startswith((" ", "-")) else line
        if section != "run:" or line.strip().partition(":")[0] not in _OF_A_RUN:
            kept.append(line)
    return "\n".join(kept) + "\n"
