"""Progress output of rank 0: a bar on a terminal, a plain line every few seconds in a log file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cobo_dist.formatting import human_bytes
from cobo_dist.run_config import LogConfig
from cobo_dist.storage.schema import ProgressState
from cobo_dist.terminal import is_terminal, open_console


def describe(now: ProgressState) -> str:
    """Return the present state in one line.

    >>> describe(ProgressState(round=3, loss=0.25, pairs=2, bytes=1500))
    'loss 0.25  pairs 2.0  1.5 kB/round'
    """
    parts = [f"loss {now.loss:.4g}"]
    if now.metric:
        parts.append(now.metric)
    parts += [f"pairs {now.pairs:.1f}", f"{human_bytes(now.bytes)}/round"]
    return "  ".join(parts)


class ProgressDisplay(Protocol):
    """Shows progress."""

    def update(self, now: ProgressState) -> None:
        """Show the present state."""

    def print(self, line: str) -> None:
        """Print a line above the display."""

    def close(self) -> None:
        """End the display."""


class ProgressBar:
    """A rich progress bar."""

    def __init__(self, rounds: int, console: Console) -> None:
        self.rounds = rounds
        self.last: ProgressState | None = None
        self.progress = Progress(
            TextColumn("round"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[words]}", markup=False),
            TimeRemainingColumn(),
            console=console,
        )
        self.task = self.progress.add_task("", total=rounds, words="")
        self.progress.start()

    def update(self, now: ProgressState) -> None:
        """Move the bar. The state after the last round is left to `close`, which draws it once."""
        self.last = now
        if now.round < self.rounds:
            self._show(now)

    def print(self, line: str) -> None:
        """Print above the bar."""
        self.progress.console.print(line, soft_wrap=True)

    def close(self) -> None:
        """Draw the last state once and leave it as it stands."""
        if self.progress.live.is_started:
            if self.last is not None:
                self._show(self.last)
            self.progress.stop()

    def _show(self, now: ProgressState) -> None:
        self.progress.update(self.task, completed=now.round, words=describe(now))


class NullProgress:
    """Prints lines, but shows no progress."""

    def update(self, now: ProgressState) -> None:
        """Show nothing."""

    def print(self, line: str) -> None:
        """Print the line at once: a log file is read while it grows."""
        print(line, flush=True)

    def close(self) -> None:
        """Do nothing."""


class PlainProgress(NullProgress):
    """Prints a progress line at most every `interval` seconds, with the time left."""

    def __init__(self, rounds: int, interval: float, first: int = 0) -> None:
        """Start after round `first`, which is not 0 in a resumed run."""
        self.rounds, self.interval, self.first = rounds, interval, first
        self.started = self.last = time.monotonic()

    def update(self, now: ProgressState) -> None:
        """Print a line if it is time, and at the end."""
        seconds = time.monotonic()
        if now.round < self.rounds and seconds - self.last < self.interval:
            return
        self.last = seconds
        done = max(1, now.round - self.first)
        left = (seconds - self.started) / done * (self.rounds - now.round)
        self.print(f"round {now.round}/{self.rounds}  {describe(now)}  {left:.0f} s left")


def open_display(config: LogConfig, rounds: int, first: int = 0) -> ProgressDisplay:
    """Return the display for where standard output goes; the run starts after round `first`."""
    kind = config.progress
    if kind == "auto":
        kind = "bar" if is_terminal() else "plain"
    if kind == "bar":
        return ProgressBar(rounds, open_console())
    return PlainProgress(rounds, config.interval, first) if kind == "plain" else NullProgress()


def final_table(rows: Sequence[tuple[str, ...]], headers: tuple[str, ...]) -> None:
    """Print the table at the end of a run."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for header in headers:
        table.add_column(header, justify="left" if header == headers[0] else "right")
    for row in rows:
        table.add_row(*row)
    console = open_console()
    console.width = max(console.width, 80)
    console.print(table)
