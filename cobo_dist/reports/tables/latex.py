"""Tables in LaTeX with rules of booktabs, one file a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cobo_dist.formatting import latex_text
from cobo_dist.reports.tables.table import Table
from cobo_dist.reports.writing import slug
from cobo_dist.storage.files import replace_text

HEADER = r"""% \usepackage{booktabs,graphicx} and \input this file. Names in other scripts than Latin
% need XeLaTeX or LuaLaTeX.
"""
_MAX_COLUMN_LETTERS, _MAX_PAGE_LETTERS = 46, 96  # of a line of a table that fits


def write_latex(path: Path, tables: Sequence[Table], note: str = "") -> list[Path]:
    """Write each table into a file of its own: `path`, or `path` with the caption in its name if several."""
    files = []
    for table in tables:
        own = path
        if len(tables) > 1:
            own = path.with_name(f"{path.stem}_{slug(table.caption)}.tex")
        files.append(replace_text(own, _latex(table, own.stem, note)))
    return files


def _latex(table: Table, name: str, note: str) -> str:
    count = len(table.headings)
    rows = [table.headings, *table.rows]
    letters = sum(2 + max(len(row[column]) for row in rows) for column in range(count))
    environment = "table" if letters <= _MAX_COLUMN_LETTERS else "table*"
    shrunk = letters > _MAX_PAGE_LETTERS
    columns = "l" * table.left + "r" * (count - table.left)
    lines = [
        rf"\begin{{{environment}}}[t]",
        r"\centering\small",
        rf"\caption{{{latex_text(table.captioned)}.}}",
        rf"\label{{tab:{name.replace('_', '-')}}}",
        *([r"\resizebox{\linewidth}{!}{%"] if shrunk else []),
        rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
        r"\toprule",
        *_spans(table),
        _line(table.headings),
        r"\midrule",
        *map(_line, table.rows),
        r"\bottomrule",
        r"\end{tabular}" + "}" * shrunk,
    ]
    notes = [latex_text(one) for one in (*table.notes, note) if one]
    if notes:
        lines.append(r"\par\medskip\parbox{\linewidth}{\footnotesize " + " ".join(notes) + "}")
    return HEADER + "\n".join([*lines, rf"\end{{{environment}}}", ""])


def _spans(table: Table) -> list[str]:
    """The headings above the headings, with a rule under each."""
    if not table.spans:
        return []
    cells, rules, first = [], [], 1
    for name, width in table.spans:
        cells.append(rf"\multicolumn{{{width}}}{{c}}{{{latex_text(name)}}}")
        if name:
            rules.append(rf"\cmidrule(lr){{{first}-{first + width - 1}}}")
        first += width
    return [" & ".join(cells) + r" \\", "".join(rules)]


def _line(cells: Sequence[str]) -> str:
    return " & ".join(map(latex_text, cells)) + r" \\"
