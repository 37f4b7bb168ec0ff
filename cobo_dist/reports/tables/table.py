"""A table of text, and how it looks as Markdown and on the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

Line = Sequence[object]


@dataclass(frozen=True)
class Table:
    """Text in rows and columns, and the numbers behind it for a CSV.

    The first `left` columns hold words, the others numbers. `spans` are headings above the
    headings, each with the columns it covers; there may be none.
    """

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    left: int = 1
    spans: tuple[tuple[str, int], ...] = ()
    csv_header: tuple[str, ...] = ()
    csv_rows: tuple[Line, ...] = ()

    def flat_headings(self) -> tuple[str, ...]:
        """The headings with what spans them in front, for where there is but one line of them."""
        above = [title for title, width in self.spans for _ in range(width)]
        if not above:
            return self.headings
        pairs = zip(above, self.headings, strict=True)
        return tuple(f"{title} {heading}".strip() for title, heading in pairs)


def markdown(table: Table) -> list[str]:
    """The lines of a Markdown table with its notes, without its caption."""
    right = len(table.headings) - table.left
    lines = [_line(table.flat_headings()), "|" + "---|" * table.left + "---:|" * right]
    lines += [_line(row) for row in table.rows]
    for note in table.notes:
        lines += ["", note]
    return [*lines, ""]


def write_markdown(path: Path, title: str, tables: Sequence[Table], note: str = "") -> Path:
    """Write tables under one title, captions as headings, and a note below them all."""
    lines = [f"# {title}", ""]
    for table in tables:
        if table.caption and table.caption != title:
            lines += [f"## {table.caption}", ""]
        lines += markdown(table)
    lines.append(note)
    path.write_text("\n".join(lines).rstrip("\n") + "\n", encoding="utf-8")
    return path


def print_table(table: Table, console: Console) -> None:
    """Print a table and its notes."""
    shown = RichTable(title=table.caption, title_justify="left")
    for position, title in enumerate(table.flat_headings()):
        words = position < table.left
        shown.add_column(title, justify="left" if words else "right", no_wrap=position == 0)
    for row in table.rows:
        shown.add_row(*row)
    console.print(shown)
    for note in table.notes:
        console.print(note, highlight=False, markup=False)


def show(value: float | None, form: str) -> str:
    """A number as text; `-` where there is none."""
    return "-" if value is None else format(value, form)


def show_score(score: tuple[float, float] | None, form: str) -> str:
    """`73.1 ± 0.2`; the deviation is left out where there is none."""
    if score is None:
        return "-"
    mean, std = score
    return format(mean, form) if math.isnan(std) else f"{mean:{form}} ± {std:{form}}"


def score_numbers(score: tuple[float, float] | None) -> tuple[float | None, float | None]:
    """Mean and deviation for a CSV: empty where there is none."""
    if score is None:
        return None, None
    mean, std = score
    # A NaN mean is a run that diverged, and stays; a NaN deviation alone is a single seed.
    return mean, None if math.isnan(std) and not math.isnan(mean) else std


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
