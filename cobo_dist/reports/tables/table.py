"""A table of text: as Markdown, on the terminal, and the numbers behind it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table as RichTable

from cobo_dist.formatting import markdown_text
from cobo_dist.storage.files import replace_text


@dataclass(frozen=True, eq=False)
class Table:
    """Text in rows and columns, and the numbers behind it for a CSV.

    The columns of `text` are headings, or pairs of a heading above and a heading. The first `left` columns
    hold words, the others numbers. `about` says of which runs.
    """

    caption: str
    text: pd.DataFrame
    notes: tuple[str, ...] = ()
    left: int = 1
    numbers: pd.DataFrame | None = None
    about: str = ""

    @property
    def captioned(self) -> str:
        """The caption with what the table is about: how many clients, which seeds, how many rounds."""
        return f"{self.caption}: {self.about}" if self.about else self.caption

    @property
    def headings(self) -> list[str]:
        """The headings of the columns."""
        return [str(name) for name in self.text.columns.get_level_values(-1)]

    @property
    def spans(self) -> list[tuple[str, int]]:
        """The headings above the headings, each with the number of columns that it covers."""
        if self.text.columns.nlevels == 1:
            return []
        above = self.text.columns.get_level_values(0)
        return [(str(name), len(list(columns))) for name, columns in itertools.groupby(above)]

    @property
    def flat_headings(self) -> list[str]:
        """The headings on one line: each with the one above it in front."""
        columns = self.text.columns
        if columns.nlevels == 1:
            return self.headings
        return [" ".join(map(str, names)).strip() for names in columns]

    @property
    def rows(self) -> list[list[str]]:
        """The cells, row by row."""
        return [list(cells) for cells in self.text.itertuples(index=False, name=None)]


def write_markdown(path: Path, title: str, tables: Sequence[Table], note: str = "") -> Path:
    """Write tables under one title, captions as headings, and a note below them all."""
    lines = [f"# {title}", ""]
    for table in tables:
        if table.caption and table.caption != title:
            lines += [f"## {markdown_text(table.caption)}", ""]
        lines += _markdown(table)
    lines.append(note)
    return replace_text(path, "\n".join(lines).rstrip("\n") + "\n")


def _markdown(table: Table) -> list[str]:
    right = len(table.headings) - table.left
    lines = [f"{table.about[:1].upper()}{table.about[1:]}.", ""] if table.about else []
    lines += [_line(table.flat_headings), "|" + "---|" * table.left + "---:|" * right]
    lines += [_line(row) for row in table.rows]
    for note in table.notes:
        lines += ["", note]
    return [*lines, ""]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(markdown_text, cells)) + " |"


def print_table(table: Table, console: Console) -> None:
    """Print a table and its notes."""
    shown = RichTable(title=table.captioned, title_justify="left")
    for position, title in enumerate(table.flat_headings):
        words = position < table.left
        shown.add_column(title, justify="left" if words else "right", no_wrap=position == 0)
    for row in table.rows:
        shown.add_row(*row)
    console.print(shown)
    for note in table.notes:
        console.print(note)
