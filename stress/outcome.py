"""The result of one stress test, and the table of all results."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table


@dataclass
class Outcome:
    """One row of the table: what was done to the runs, the expected result, and the observed one."""

    action: str
    expected: str
    observed: str
    seconds: float
    passed: bool | None = True  # None: skipped
    line: str = ""  # the message that the run printed
    details: list[str] = field(default_factory=list)  # of what failed

    @property
    def verdict(self) -> str:
        """`passed`, `FAILED` or `skipped`."""
        return "skipped" if self.passed is None else "passed" if self.passed else "FAILED"


def show(outcomes: Iterable[Outcome], width: int | None = None) -> None:
    """Print the table, and under it the details of the failures."""
    outcomes = list(outcomes)
    table = Table(show_lines=True)
    for name, share in (
        ("action", 4), ("expected", 4), ("observed", 5), ("s", None), ("line printed", 7), ("", None),
    ):  # fmt: skip
        table.add_column(
            name, ratio=share, overflow="fold", justify="right" if name == "s" else "left"
        )
    for one in outcomes:
        # Escape brackets: rich would read them as markup.
        cells = (
            one.action,
            one.expected,
            one.observed,
            f"{one.seconds:.1f}",
            one.line,
            one.verdict,
        )
        table.add_row(*(cell.replace("[", "\\[") for cell in cells))
    console = Console(width=width or max(Console().width, 150), highlight=False)
    console.print(table)
    for one in outcomes:
        for detail in one.details:
            console.print(f"{one.action}: {detail}", markup=False, soft_wrap=True)


def progress(part: str, done: int, of: int, step: int = 1) -> None:
    """Print progress on standard error twenty times a part, after `step` more of its cases."""
    if done * 20 // of > (done - step) * 20 // of:
        print(f"{part}: {done} of {of}", file=sys.stderr, flush=True)


def shorten(text: str, most: int = 400) -> str:
    """Return a text with its middle left out where it is longer than `most` characters."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"
