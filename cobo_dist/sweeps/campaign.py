"""The runs one after another: skipped where done, started where not, a line each, tables kept fresh."""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from cobo_dist.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, ConfigError
from cobo_dist.storage.reading import read_status
from cobo_dist.storage.schema import METRICS
from cobo_dist.sweeps import process
from cobo_dist.sweeps.axes import Axis
from cobo_dist.sweeps.choice import Verdict, judge
from cobo_dist.sweeps.folders import Result, State, look, read_result
from cobo_dist.sweeps.grid import Run
from cobo_dist.sweeps.tables import Record, print_table, remarks, tally, write_all


@dataclass(frozen=True)
class Plan:
    """A sweep, ready to start: its runs in order, and what their folders hold already."""

    runs: Sequence[Run]
    axes: Sequence[Axis]
    states: Mapping[str, State]
    out: Path
    ranks: int
    typed: str  # the command, as the user can give it again

    def folder(self, run: Run) -> Path:
        """Where the run goes."""
        return self.out / run.name


def make_plan(runs: Sequence[Run], axes: Sequence[Axis], out: Path, ranks: int, typed: str) -> Plan:
    """Look into the folders of all runs.

    Raises:
        ConfigError: --out cannot be used, or a folder holds a finished run of other settings.
    """
    try:
        for part in (out, *out.parents):
            if part.exists() and not part.is_dir():
                raise ConfigError(
                    f"--out {out}: {part} is a file, not a folder; give another --out"
                )
        states = {run.name: look(out / run.name, run.config) for run in runs}
    except OSError as error:
        raise ConfigError(
            f"--out {out} cannot be used ({error.strerror}); give another --out"
        ) from None
    return Plan(runs, axes, states, out, ranks, typed)


def show_plan(plan: Plan) -> None:
    """Print what would be run and what skipped."""
    words = {
        "new": "run",
        "again": "run again (it did not finish)",
        "resume": "go on (it has a checkpoint)",
        "done": "skip (done)",
    }
    width, total = max(len(run.name) for run in plan.runs), str(len(plan.runs))
    for number, run in enumerate(plan.runs, start=1):
        place = f"[{number:>{len(total)}}/{total}]"
        print(f"{place} {run.name:<{width}}  {words[plan.states[run.name]]}")
    skipped = sum(state == "done" for state in plan.states.values())
    print(
        f"{len(plan.runs) - skipped} to run on {plan.ranks} rank(s) each, {skipped} to skip, "
        f"into {plan.out}; --dry-run: nothing was started"
    )


def carry_out_one(plan: Plan, number: int) -> int:
    """Run the run of this number (from 1) unless it is done, while others may run theirs.

    Tables are left alone. Returns 0, 1 if it failed, 75 if a signal stopped it with a checkpoint, or
    128 + the signal if there is none.

    Raises:
        ConfigError: there is no such run, --out cannot be written, or another sweep is at work on it.
    """
    if not 1 <= number <= len(plan.runs):
        raise ConfigError(f"--only {number}: this sweep has the runs 1 to {len(plan.runs)}")
    run = plan.runs[number - 1]
    record = Record(run, plan.folder(run))
    place = f"[{number}/{len(plan.runs)}] {run.name} ..."
    if plan.states[run.name] == "done":
        print(f"{place} skipped, done before")
        return EXIT_DONE
    _make_folder(plan.out / "logs")
    stop = process.Stop()
    own = plan.out / "logs" / f".{run.name}.lock"
    with alone(plan.out / ".lock", shared=True), alone(own), stop.listening():
        print(place, end=" ", flush=True)
        print(_train(plan, record, stop) + _tail(record), flush=True)
    if record.state == "stopped":
        status = read_status(record.folder)
        saved = status is not None and status.exit_code == EXIT_STOPPED
        return EXIT_STOPPED if saved else 128 + stop.signal
    return EXIT_DONE if record.state == "done" else EXIT_FAILED


def carry_out(plan: Plan, only_tables: bool = False) -> int:
    """Run what is not done; return 0, 1 if a run failed, or 128 + the signal that ended the sweep.

    With `only_tables` nothing is run: tables are written and printed of what is done by now.

    Raises:
        ConfigError: --out cannot be written, or another sweep is at work in it.
        OSError: a table or log cannot be written later on.
    """
    _make_folder(plan.out / "logs")
    stop = process.Stop()
    guard = nullcontext() if only_tables else alone(plan.out / ".lock")
    with guard, stop.listening():
        records = [Record(run, plan.folder(run)) for run in plan.runs]
        for record in records:
            if plan.states[record.run.name] == "done":
                _take_result(record)
        verdicts = _keep_tables(plan, records)
        for number, record in enumerate(records, start=1):
            if stop or only_tables:
                break
            print(f"[{number}/{len(records)}] {record.run.name} ... ", end="", flush=True)
            if plan.states[record.run.name] == "done":
                print(f"{'skipped, done before' if record.result else 'failed'}{_tail(record)}")
                continue
            print(_train(plan, record, stop) + _tail(record), flush=True)
            verdicts = _keep_tables(plan, records)
    return _conclude(plan, records, verdicts, stop)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--out: {folder} cannot be made ({error.strerror}); give another --out"
        ) from None


@contextmanager
def alone(path: Path, shared: bool = False) -> Iterator[None]:
    """Keep a second sweep off: each would take the other's runs for unfinished.

    Tasks with a run each share the folder's lock, which a whole sweep wants for itself.
    """
    try:
        lock = path.open("w")
    except OSError as error:
        raise ConfigError(
            f"--out: {path} cannot be written ({error.strerror}); give another"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"--out: {path.parent} is in use by another sweep; wait for it, or give another --out"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield


def _train(plan: Plan, record: Record, stop: process.Stop) -> str:
    """Train one run, enter what became of it, and return that in words."""
    run, folder = record.run, record.folder
    log = plan.out / "logs" / f"{run.name}.log"
    started = process.command(run, folder, plan.ranks, plan.states[run.name])
    ended = process.train(started, folder, log, stop)
    if not ended.reason:
        _take_result(record)
        if record.result:
            return f"done in {ended.seconds:.1f} s"
    elif stop:
        record.state = "stopped"
        return "interrupted"
    else:
        record.state, record.reason = "failed", ended.reason
    return f"failed (exit {ended.code})"


def _take_result(record: Record) -> None:
    try:
        record.result = read_result(record.folder)
        record.state = "done"
    except ConfigError as refusal:
        record.state, record.reason = "failed", str(refusal)


def _tail(record: Record) -> str:
    """What follows `done in 12.3 s`: the test figure, or the reason of a failure."""
    if record.result is None:
        return f": {record.reason}" if record.reason else ""
    return next(
        (
            f", test {metric} {record.result.scores['test', metric]:.4g}"
            for metric in METRICS
            if ("test", metric) in record.result.scores
        ),
        "",
    )


def _keep_tables(plan: Plan, records: Sequence[Record]) -> list[Verdict]:
    """Write the tables as they stand, so that an interrupted sweep has them too."""
    results: dict[str, Result] = {one.run.name: one.result for one in records if one.result}
    verdicts = judge(plan.runs, results, plan.axes)
    write_all(plan.out, records, verdicts, plan.ranks, plan.typed)
    return verdicts


def _conclude(
    plan: Plan, records: Sequence[Record], verdicts: Sequence[Verdict], stop: process.Stop
) -> int:
    """Print the table, the choices and what failed; return the exit code."""
    print()
    print_table(verdicts, Console(width=None if sys.stdout.isatty() else 120))
    for note in remarks(verdicts):
        print(note)
    for verdict in verdicts:
        if verdict.best is not None and verdict.best.varied:
            file = plan.out / "best" / f"{verdict.method}.yaml"
            print(f"{verdict.method}: chosen on validation data: {verdict.best.label} ({file})")
    skipped = sum(state == "done" for state in plan.states.values())
    print(f"{tally(records)}{f' ({skipped} of them before)' if skipped else ''}; see {plan.out}")
    failed = [record for record in records if record.state == "failed"]
    for record in failed:
        log = plan.out / "logs" / f"{record.run.name}.log"
        print(f"failed: {record.run.name}: {record.reason} ({log})", file=sys.stderr)
    if stop:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 128 + stop.signal
    return EXIT_FAILED if failed else EXIT_DONE
