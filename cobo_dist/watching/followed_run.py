"""One run folder, read again and again, and how its run stands.

A run says how it ended in status.json. A run that goes on renews its owner's record every few seconds. This
works on a shared file system, too: the host of the run is not asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from cobo_dist.errors import EXIT_DONE, EXIT_STOPPED, ConfigError
from cobo_dist.reports.metrics import mean_over_clients, percent
from cobo_dist.reports.reading import Run
from cobo_dist.reports.reading.run import RunReader, file_stamp
from cobo_dist.reports.reading.series import Series
from cobo_dist.storage.owner_record import STALE_SECONDS, is_gone, latest
from cobo_dist.storage.reading import read_status
from cobo_dist.storage.schema import (
    CONFIG_FILE,
    METRICS,
    METRICS_FILE,
    STATUS_FILE,
    SUMMARY_FILE,
    WEIGHTS_FILE,
    WarningRow,
)

State = Literal["waiting", "running", "silent", "done", "stopped", "failed", "unreadable"]
ENDED: tuple[State, ...] = ("done", "stopped", "failed")
_RATE_ROUNDS = 50
"""How many of the last rounds the rate is the mean of."""
_FILES = (CONFIG_FILE, METRICS_FILE, WEIGHTS_FILE, SUMMARY_FILE, STATUS_FILE)


class FollowedRun:
    """A run folder that may not exist yet, may be resumed, and may be overwritten.

    `run` is what its files said last, None before there are any; `words` is why, where the state needs it.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self._clock = path, clock
        self.run: Run | None = None
        self.state: State = "waiting"
        self.words = ""
        self._reader = RunReader(path)
        self._stamps: object = None
        self._heartbeat: tuple[object, float] = (None, clock())

    def poll(self) -> bool:
        """Read what is new; return whether anything is."""
        before = self.state, self.words
        stamps = [file_stamp(self.path / name) for name in _FILES]
        is_new = stamps != self._stamps
        if is_new:
            self._stamps = stamps
            self._read()
        if self.run is not None and self.state != "unreadable":
            self.state, self.words = self._stand()
        return is_new or before != (self.state, self.words)

    def _read(self) -> None:
        if not all((self.path / name).is_file() for name in (CONFIG_FILE, METRICS_FILE)):
            self.run, self.state = None, "waiting"
            self.words = "no run in this folder yet" if self.path.is_dir() else "no such folder yet"
            return
        try:
            self.run = self._reader.read()
            self.state = "running"
        except ConfigError as error:
            # A file may have been replaced while it was read; the next look tells.
            self.state, self.words = "unreadable", str(error)
            self._reader = RunReader(self.path)
            self._stamps = None

    def _stand(self) -> tuple[State, str]:
        """The state of a run whose files can be read."""
        status = read_status(self.path)
        if status is not None:
            if status.exit_code == EXIT_DONE:
                return "done", ""
            return ("stopped" if status.exit_code == EXIT_STOPPED else "failed"), status.reason
        try:
            owner = latest(self.path)
        except OSError as error:
            return "silent", f"owner unknown: {error.strerror}"
        if owner is None:  # an earlier version, or a copy of the folder
            return ("done" if self.run and self.run.summary else "running"), ""
        if is_gone(owner):
            return "failed", "its process has ended without a word"
        seconds = self._seconds_since(owner.heartbeat)
        if seconds > STALE_SECONDS:
            return "silent", f"no sign of life for {seconds:.0f} s"
        return "running", ""

    def _seconds_since(self, heartbeat: object) -> float:
        """How long a heartbeat has been the last one. The clock of another host is not compared with ours."""
        if heartbeat != self._heartbeat[0]:
            self._heartbeat = heartbeat, self._clock()
        return self._clock() - self._heartbeat[1]

    # -- how far it is ----------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        """What to call it."""
        return self.path.name or str(self.path)

    @property
    def has_ended(self) -> bool:
        """Whether its process writes no more."""
        return self.state in ENDED

    @property
    def round(self) -> int:
        """The last round on record."""
        return 0 if self.run is None else self.run.last_round

    @property
    def rounds(self) -> int:
        """How many rounds it is to have; 0 if that is not known."""
        found = None if self.run is None else self.run.config.get("run.rounds")
        return found if isinstance(found, int) else 0

    @property
    def seconds_per_round(self) -> float | None:
        """The mean over the last rounds; None before the first."""
        seconds = {} if self.run is None else self.run.rounds.get("seconds", {})
        last = [seconds[number] for number in sorted(seconds)[-_RATE_ROUNDS:]]
        return sum(last) / len(last) if last else None

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at the rate of the last rounds; None if it does not go on, or unknown."""
        rate = self.seconds_per_round
        if rate is None or not self.rounds or self.state != "running":
            return None
        return rate * max(0, self.rounds - self.round)

    @property
    def loss(self) -> Series:
        """The training loss by round; the loss of evaluations where a task logs no other."""
        if self.run is None:
            return {}
        return self.run.rounds.get("loss") or self._evaluated("loss")

    @property
    def metric(self) -> tuple[str, Series]:
        """The task's own metric, such as `accuracy (%)`, and its mean over clients by round."""
        names = {name for _, name in (self.run.evals if self.run else {})} - {"loss"}
        known = [name for name in METRICS if name in names] or sorted(names)
        if not known:
            return "", {}
        scale = percent(known[0])
        series = {r: scale * value for r, value in self._evaluated(known[0]).items()}
        return f"{known[0]} (%)" if scale != 1 else known[0], series

    def _evaluated(self, metric: str) -> Series:
        run = self.run
        if run is None:
            return {}
        split = "test" if ("test", metric) in run.evals else "validation"
        return mean_over_clients(run, split, metric)

    @property
    def warnings(self) -> tuple[WarningRow, ...]:
        """What looks wrong, oldest first."""
        return () if self.run is None else self.run.warnings
