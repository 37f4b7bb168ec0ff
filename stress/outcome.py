"""One row of the table, and the table."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table


@dataclass
class Outcome:
    """What was done, what should have come of it, and what did."""

    done: str
    expected: str
    seen: str
    seconds: float
    held: bool | None = True  # None: not tried here
    line: str = ""  # what the user was told
    details: list[str] = field(default_factory=list)  # of what did not hold

    @property
    def verdict(self) -> str:
        """`held`, `FAILED` or `skipped`."""
        return "skipped" if self.held is None else "held" if self.held else "FAILED"


def show(outcomes: Iterable[Outcome], width: int | None = None) -> None:
    """Print the table, and under it the details of what did not hold."""
    outcomes = list(outcomes)
    table = Table(show_lines=True)
    for name, share in (
        ("done", 4), ("expected", 4), ("seen", 5), ("s", None), ("line printed", 7), ("", None),
    ):  # fmt: skip
        table.add_column(
            name, ratio=share, overflow="fold", justify="right" if name == "s" else "left"
        )
    for one in outcomes:
        # A line that a program printed is no markup, whatever brackets it holds.
        cells = (one.done, one.expected, one.seen, f"{one.seconds:.1f}", one.line, one.verdict)
        table.add_row(*(cell.replace("[", "\\[") for cell in cells))
    console = Console(width=width or max(Console().width, 150), highlight=False)
    console.print(table)
    for one in outcomes:
        for detail in one.details:
            console.print(f"{one.done}: {detail}", markup=False, soft_wrap=True)


def progress(part: str, done: int, of: int, step: int = 1) -> None:
    """Say on standard error, twenty times a part, how far the last `step` have brought it."""
    if done * 20 // of > (done - step) * 20 // of:
        print(f"{part}: {done} of {of}", file=sys.stderr, flush=True)


def shorten(text: str, most: int = 400) -> str:
    """Return a text with its middle left out where it is longer than `most` characters."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"
