"""Run a sweep: skip finished runs, start the others in order, print a line for each, update the tables."""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from cobo_dist.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, ConfigError
from cobo_dist.storage.files import open_file
from cobo_dist.storage.reading import read_status
from cobo_dist.storage.schema import METRICS
from cobo_dist.sweeps import process
from cobo_dist.sweeps.axes import Axis
from cobo_dist.sweeps.folders import look, read_result
from cobo_dist.sweeps.grid import Run
from cobo_dist.sweeps.selection import Selection, select
from cobo_dist.sweeps.tables import RunRecord, print_table, remarks, tally, write_tables
from cobo_dist.terminal import open_console

_PLANNED = {
    "new": "run",
    "again": "run again (it did not finish)",
    "resume": "go on (it has a checkpoint)",
    "done": "skip (done)",
}


@dataclass(frozen=True)
class Sweep:
    """A sweep that is ready to start."""

    records: Sequence[RunRecord]
    axes: Sequence[Axis]
    out: Path
    ranks: int
    command: str  # as the user can type it again

    @property
    def skipped(self) -> int:
        """The number of runs that were done before the sweep began."""
        return sum(record.found == "done" for record in self.records)

    def log_of(self, record: RunRecord) -> Path:
        """The file with what the run prints."""
        return self.out / "logs" / f"{record.run.name}.log"


def open_sweep(
    runs: Sequence[Run], axes: Sequence[Axis], out: Path, ranks: int, command: str
) -> Sweep:
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
        records = [RunRecord(run, out / run.name, look(out / run.name, run.config)) for run in runs]
    except OSError as error:
        raise ConfigError(
            f"--out {out} cannot be used ({error.strerror}); give another --out"
        ) from None
    return Sweep(records, axes, out, ranks, command)


def print_dry_run(sweep: Sweep) -> None:
    """Print which runs would start and which would be skipped."""
    total = len(sweep.records)
    width = max(len(record.run.name) for record in sweep.records)
    for number, record in enumerate(sweep.records, start=1):
        place = f"[{number:>{len(str(total))}}/{total}]"
        print(f"{place} {record.run.name:<{width}}  {_PLANNED[record.found]}")
    print(
        f"{total - sweep.skipped} to run on {sweep.ranks} rank(s) each, {sweep.skipped} to skip, "
        f"into {sweep.out}; --dry-run: nothing was started"
    )


def run_one(sweep: Sweep, number: int) -> int:
    """Run the run of this number (from 1) unless it is done; other jobs may run other numbers.

    No tables are written. Returns 0, 1 if the run failed, 75 if a signal stopped it with a checkpoint, or
    128 + the signal if there is none.

    Raises:
        ConfigError: there is no such run, --out cannot be written, or another sweep uses it.
    """
    if not 1 <= number <= len(sweep.records):
        raise ConfigError(f"--only {number}: this sweep has the runs 1 to {len(sweep.records)}")
    record = sweep.records[number - 1]
    place = f"[{number}/{len(sweep.records)}] {record.run.name} ..."
    if record.found == "done":
        print(f"{place} skipped, done before")
        return EXIT_DONE
    logs = _make_folder(sweep.out / "logs")
    stop = process.StopSignal()
    run_lock = logs / f".{record.run.name}.lock"
    with locked(sweep.out / ".lock", shared=True), locked(run_lock), stop.listening():
        print(place, end=" ", flush=True)
        print(_train(sweep, record, stop), flush=True)
    if record.outcome == "interrupted":
        status = read_status(record.folder)
        saved = status is not None and status.exit_code == EXIT_STOPPED
        return EXIT_STOPPED if saved else 128 + stop.signal
    return EXIT_DONE if record.outcome == "done" else EXIT_FAILED


def run_sweep(sweep: Sweep, only_tables: bool = False) -> int:
    """Run what is not done; return 0, 1 if a run failed, or 128 + the signal that ended the sweep.

    With `only_tables` no run is started: the tables are written from the runs that are done.

    Raises:
        ConfigError: --out cannot be written, or another sweep uses it.
        OSError: a table or log cannot be written later on.
    """
    _make_folder(sweep.out / "logs")
    stop = process.StopSignal()
    with nullcontext() if only_tables else locked(sweep.out / ".lock"), stop.listening():
        for record in sweep.records:
            if record.found == "done":
                _read_result(record)
        selections = _update_tables(sweep)
        for number, record in enumerate(sweep.records, start=1):
            if stop or only_tables:
                break
            print(f"[{number}/{len(sweep.records)}] {record.run.name} ... ", end="", flush=True)
            if record.found == "done":
                words = "skipped, done before" if record.result else "failed"
                print(f"{words}{_details(record)}")
                continue
            print(_train(sweep, record, stop), flush=True)
            selections = _update_tables(sweep)
    return _finish(sweep, selections, stop)


def _make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--out: {folder} cannot be made ({error.strerror}); give another --out"
        ) from None
    return folder


@contextmanager
def locked(path: Path, shared: bool = False) -> Iterator[None]:
    """Hold a lock: a second sweep would take this one's running trainings for unfinished ones.

    Jobs of one run each (`--only`) share the lock of the folder, which a whole sweep holds exclusively.
    The lock holds between hosts if their file system passes on locks; NFS mounted with `nolock` or
    `local_lock=flock` does not. Then the owner of each run folder still refuses a second run in it.
    """
    try:
        lock = open_file(path, append=True)
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


def _train(sweep: Sweep, record: RunRecord, stop: process.StopSignal) -> str:
    """Train one run, enter its outcome into the record, and return that in words."""
    command = process.command(record.run, record.folder, sweep.ranks, record.found)
    exited = process.train(command, record.folder, sweep.log_of(record), stop)
    words = f"failed (exit {exited.code})"
    if not exited.reason:
        _read_result(record)
        if record.result:
            words = f"done in {exited.seconds:.1f} s"
    elif stop:
        record.outcome, words = "interrupted", "interrupted"
    else:
        record.outcome, record.reason = "failed", exited.reason
    return words + _details(record)


def _read_result(record: RunRecord) -> None:
    try:
        record.result = read_result(record.folder)
        record.outcome = "done"
    except ConfigError as error:
        record.outcome, record.reason = "failed", str(error)


def _details(record: RunRecord) -> str:
    """What follows `done in 12.3 s`: the test score, or the reason of a failure."""
    if record.result is None:
        return f": {record.reason}" if record.reason else ""
    scores = record.result.scores
    metric = next((one for one in METRICS if ("test", one) in scores), None)
    return f", test {metric} {scores['test', metric]:.4g}" if metric else ""


def _update_tables(sweep: Sweep) -> list[Selection]:
    """Write the tables as they stand, so that an interrupted sweep has them too."""
    results = {one.run.name: one.result for one in sweep.records if one.result}
    selections = select([record.run for record in sweep.records], results, sweep.axes)
    write_tables(sweep.out, sweep.records, selections, sweep.ranks, sweep.command)
    return selections


def _finish(sweep: Sweep, selections: Sequence[Selection], stop: process.StopSignal) -> int:
    """Print the table, the choices and the failed runs; return the exit code."""
    print()
    print_table(selections, open_console(plain_width=120))
    for note in remarks(selections):
        print(note)
    for selection in selections:
        if selection.best is not None and selection.best.varied:
            file = sweep.out / "best" / f"{selection.method}.yaml"
            print(f"{selection.method}: chosen on validation data: {selection.best.label} ({file})")
    before = f" ({sweep.skipped} of them before)" if sweep.skipped else ""
    print(f"{tally(sweep.records)}{before}; see {sweep.out}")
    failed = [record for record in sweep.records if record.outcome == "failed"]
    for record in failed:
        name, log = record.run.name, sweep.log_of(record)
        print(f"failed: {name}: {record.reason} ({log})", file=sys.stderr)
    if stop:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 128 + stop.signal
    return EXIT_FAILED if failed else EXIT_DONE
