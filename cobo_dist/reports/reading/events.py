"""The rows of `metrics.jsonl`: what was measured in which round, on which client, on which data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cobo_dist.errors import ConfigError
from cobo_dist.host import free_memory
from cobo_dist.reports.reading.series import Series
from cobo_dist.storage.files import open_file
from cobo_dist.storage.reading import NotJson, SchemaError, read_row
from cobo_dist.storage.schema import (
    METRICS,
    EvalRow,
    GpuRow,
    JoinedRow,
    LeftRow,
    ProfileRow,
    RoundRow,
    Row,
    TimelineRow,
    WarningRow,
)

Profile = dict[int, dict[str, list[float]]]
"""By round and kind of work, the seconds on each rank."""
Gpus = dict[int, dict[str, list[float]]]
"""By round and quantity of a row `gpu`, the value on each rank; NaN where it is not known."""
Event = tuple[int, int, bool]
"""A round, a client, and whether it joins before that round, or else leaves."""
Timeline = dict[int, TimelineRow]
"""By round, what clients do in virtual time."""
_TAIL_BYTES = 256
_GPU_QUANTITIES = ("utilisation", "allocated", "reserved", "power")


@dataclass
class Metrics:
    """What the rows say. A resumed run repeats some rounds: the later row wins.

    `evals[split, metric][client]` and `rounds[quantity]` are values by round; the client None is
    the mean over clients. `parts[split]` holds the rounds at which only a part of the split was
    evaluated, and the most examples a client had then (None where the rows do not say).
    `sizes[split][client]` is on how many examples a client was evaluated last. `events` are clients that
    join and leave.
    """

    evals: dict[tuple[str, str], dict[int | None, Series]] = field(default_factory=dict)
    rounds: dict[str, Series] = field(default_factory=dict)
    parts: dict[str, dict[int, int | None]] = field(default_factory=dict)
    sizes: dict[str, dict[int, int]] = field(default_factory=dict)
    profile: Profile = field(default_factory=dict)
    gpus: Gpus = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    timeline: Timeline = field(default_factory=dict)
    warnings: list[WarningRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, row: Row | None) -> None:
        """Enter one row. Events of other kinds are not needed here.

        Raises:
            SchemaError: a profile, or a row of GPUs, has lists of different lengths.
        """
        if isinstance(row, RoundRow):
            for key, value in row:
                # A quantity that had nothing to measure (no pair drawn) is null: no point, not NaN.
                if key not in ("event", "round") and value is not None:
                    self.rounds.setdefault(key, {})[row.round] = float(value)
        elif isinstance(row, EvalRow) and row.model == "personal":
            self._add_eval(row)
        elif isinstance(row, JoinedRow | LeftRow):
            if (event := (row.round, row.client, isinstance(row, JoinedRow))) not in self.events:
                self.events.append(event)
        elif isinstance(row, ProfileRow):
            if len({len(ranks) for ranks in row.seconds.values()}) != 1:
                raise SchemaError("seconds are not one list of all ranks for each kind")
            self.profile[row.round] = row.seconds
        elif isinstance(row, WarningRow):
            self.warnings.append(row)
        elif isinstance(row, TimelineRow):
            self.timeline[row.round] = row
        elif isinstance(row, GpuRow):
            values = {name: [or_nan(one) for one in getattr(row, name)] for name in _GPU_QUANTITIES}
            if len({len(ranks) for ranks in values.values()}) != 1:
                raise SchemaError("the quantities of GPUs are not one list of all ranks each")
            self.gpus[row.round] = values

    def _add_eval(self, row: EvalRow) -> None:
        for metric in (*METRICS, *(row.model_extra or {})):  # plug-ins add metrics
            if metric in row.model_fields_set:
                clients = self.evals.setdefault((row.split, metric), {})
                clients.setdefault(row.client, {})[row.round] = or_nan(getattr(row, metric))
        if row.client is not None and row.examples is not None:
            self.sizes.setdefault(row.split, {})[row.client] = row.examples
        parts = self.parts.setdefault(row.split, {})
        if row.whole:
            parts.pop(row.round, None)
            return
        parts.setdefault(row.round, None)
        # The row of the mean counts the examples of all clients together.
        if row.client is not None and row.examples is not None:
            parts[row.round] = max(parts[row.round] or 0, row.examples)


class MetricsReader:
    """Reads metrics.jsonl while it grows: each time, only what is new.

    A resumed run replaces the file, and `run.overwrite` removes it; then all is read again. `metrics` is what
    the rows say so far.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._forget()

    def _forget(self) -> None:
        self.metrics = Metrics()
        self._offset, self._lines = 0, 0
        self._tail = b""  # the last bytes read, by which another file is noticed
        self._rest = b""  # a line without its end
        self._torn: tuple[str, NotJson] | None = None

    def read(self) -> bool:
        """Read the complete lines that are new, and return whether there are any.

        Raises:
            OSError: the file cannot be read.
            ConfigError: a line is malformed; the message names it.
        """
        new = self._new_bytes()
        *lines, self._rest = (self._rest + new).split(b"\n")
        for line in lines:
            self._lines += 1
            self._add(line)
        return bool(lines)

    def end(self) -> None:
        """Take what follows the last complete line: a line too, or half of one, which is noted.

        A run that was killed, or is writing right now, may leave half a line at the end.

        Raises:
            ConfigError: as `read`.
        """
        if self._rest.strip():
            self._lines += 1
            self._add(self._rest)
            self._rest = b""
        if self._torn is not None:
            self.metrics.notes.append(f"{self._torn[0]} is torn (the last line); it is left out")

    def _new_bytes(self) -> bytes:
        with open_file(self.path, limit=free_memory()) as file:
            file.seek(max(0, self._offset - len(self._tail)))
            if file.read(len(self._tail)) != self._tail:
                self._forget()
                file.seek(0)
            new = file.read()
        self._offset += len(new)
        self._tail = (self._tail + new)[-_TAIL_BYTES:]
        return new

    def _add(self, line: bytes) -> None:
        if not line.strip():
            return
        if self._torn is not None:
            raise ConfigError(f"{self._torn[0]}: {self._torn[1]}; repair or remove it")
        place = f"{self.path}, line {self._lines}"
        try:
            self.metrics.add(read_row(line))
        except NotJson as error:
            self._torn = place, error
        except SchemaError as error:
            raise ConfigError(f"{place}: {error}; repair or remove it") from None


class _WithRounds(Protocol):
    @property
    def rounds(self) -> Mapping[str, Series]: ...


def virtual_seconds(run: _WithRounds) -> Series:
    """Return the virtual seconds at the end of each round, 0 at the start; empty without virtual time."""
    found = run.rounds.get("virtual_seconds", {})
    return {0: 0.0, **found} if found else {}


def or_nan(value: float | None) -> float:
    """Return a number of a file: NaN was written as null."""
    return float("nan") if value is None else float(value)
