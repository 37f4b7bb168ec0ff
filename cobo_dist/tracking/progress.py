"""Progress for people: a bar on a terminal, a plain line every so often in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cobo_dist.formatting import human_bytes
from cobo_dist.run_config import LogConfig


@dataclass
class Now:
    """What there is to show."""

    round: int = 0
    loss: float = float("nan")
    metric: str = ""  # for example "accuracy 0.893"
    pairs: float = 0.0  # a round
    bytes: float = 0.0  # a round, all ranks

    def words(self) -> str:
        """Return the figures in one line."""
        parts = [f"loss {self.loss:.4g}"]
        if self.metric:
            parts.append(self.metric)
        parts.append(f"pairs {self.pairs:.1f}")
        parts.append(f"{human_bytes(self.bytes)}/round")
        return "  ".join(parts)


class Display(Protocol):
    """Shows progress on rank 0."""

    def update(self, now: Now) -> None:
        """Show the present state."""

    def say(self, line: str) -> None:
        """Print a line without tearing the display."""

    def close(self) -> None:
        """End the display."""


class Bar:
    """A rich progress bar."""

    def __init__(self, rounds: int, console: Console) -> None:
        self.progress = Progress(
            TextColumn("round"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[words]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self.task = self.progress.add_task("", total=rounds, words="")
        self.progress.start()

    def update(self, now: Now) -> None:
        """Move the bar."""
        self.progress.update(self.task, completed=now.round, words=now.words())

    def say(self, line: str) -> None:
        """Print above the bar."""
        self.progress.console.print(line, highlight=False, soft_wrap=True, markup=False)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.progress.stop()


class PlainProgress:
    """Plain lines, at most one every `interval` seconds, with the time left."""

    def __init__(self, rounds: int, interval: float, first: int = 0) -> None:
        """Begin after round `first`, where a resumed run goes on."""
        self.rounds, self.interval, self.first = rounds, interval, first
        self.started = self.last = time.monotonic()

    def update(self, now: Now) -> None:
        """Print a line if it is time, and at the end."""
        now_seconds = time.monotonic()
        if now.round < self.rounds and now_seconds - self.last < self.interval:
            return
        self.last = now_seconds
        done = max(1, now.round - self.first)
        left = (now_seconds - self.started) / done * (self.rounds - now.round)
        self.say(f"round {now.round}/{self.rounds}  {now.words()}  {left:.0f} s left")

    def say(self, line: str) -> None:
        """Print the line at once: a log file is read while it grows."""
        print(line, flush=True)

    def close(self) -> None:
        """Have nothing to end."""


class NullProgress:
    """Nothing but what is said."""

    def update(self, now: Now) -> None:
        """Show nothing."""

    def say(self, line: str) -> None:
        """Print the line."""
        print(line, flush=True)

    def close(self) -> None:
        """Have nothing to end."""


def open_display(config: LogConfig, rounds: int, first: int = 0) -> Display:
    """Return the display that fits where standard output goes, of a run that begins after `first`."""
    kind = config.progress
    if kind == "auto":
        kind = "bar" if sys.stdout.isatty() else "plain"
    if kind == "bar":
        return Bar(rounds, Console())
    return PlainProgress(rounds, config.interval, first) if kind == "plain" else NullProgress()


def final_table(rows: Sequence[tuple[str, ...]], headers: tuple[str, ...]) -> None:
    """Print the small table at the end of a run."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for header in headers:
        table.add_column(header, justify="left" if header == headers[0] else "right")
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.width = max(console.width, 80)
    console.print(table)
