"""The whole report as one HTML page that needs no other file and no network."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cobo_dist.reports.page.weights_slider import SCRIPT, STYLE
from cobo_dist.reports.tables.table import Table

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem }
.wide { overflow-x: auto } table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .25rem .8rem; text-align: right; white-space: nowrap }
th { border-bottom: 1px solid #888 } th[colspan] { text-align: center }
.word { text-align: left; white-space: normal } caption { text-align: left; font-weight: bold }
figure { margin: 2rem 0 } img { max-width: 100%; max-height: 60rem } figcaption, p { color: #555 }
summary { cursor: pointer; margin: 1rem 0 }
"""
_CAPTIONS = {
    "accuracy": "Accuracy, mean over clients; band: ± one standard deviation over seeds.",
    "perplexity": "Perplexity, mean over clients; band: ± one standard deviation over seeds.",
    "loss": "Loss, mean over clients; band: ± one standard deviation over seeds.",
    "decay": "Theorem 1: bold lines are means over rounds 1..T; without noise they fall as 1/T.",
    "graph": "How the graph of links forms. A link is a weight of at least 0.5 or, where a client's "
    "weights sum to 1, of more than an equal share.",
    "weights_all": "Collaboration weights of the methods that learn them, beside the true clusters "
    "where these are known; diagonals are masked out. Where a client's weights sum to 1, colours reach "
    "up to the largest weight logged. The first seed of each method.",
    "weights": "Collaboration weights beside the true clusters where these are known; diagonals are "
    "masked out. Where a client's weights sum to 1, colours reach up to the largest weight logged.",
    "shares": "The weights that each client gives the others, against rounds (Figure 4). Faint: as "
    "logged; bold: their exponential moving average; grey: an equal share.",
    "profile": "Where a round's time goes on each rank, mean over rounds after the first 10. Each second "
    "counts once, to the innermost kind of work.",
    "factors": "Final values against one factor of the problem at a time; bars: ± one standard "
    "deviation over seeds.",
    "figure1": "Client selection: gradients at the midpoint of two models decide whether their "
    "clients collaborate.",
}


@dataclass
class Section:
    """One heading of the page: tables, the PNGs among `figures`, a player; the rest folded away."""

    title: str
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: list[Path] = field(default_factory=list)
    player: str = ""
    folded: list[Path] = field(default_factory=list)


def write_page(path: Path, sections: Sequence[Section]) -> Path:
    """Write the sections into one file with the images inside."""
    lines = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>CoBo report</title><style>{_STYLE}{STYLE}</style></head><body><h1>Results</h1>",
    ]
    for section in sections:
        lines += _section(section)
    if any(section.player for section in sections):
        lines.append(f"<script>{SCRIPT}</script>")
    path.write_text("\n".join([*lines, "</body></html>", ""]), encoding="utf-8")
    return path


def _section(section: Section) -> Iterator[str]:
    yield f"<h2>{html.escape(section.title)}</h2>"
    yield from (_table(table, section.title) for table in section.tables)
    yield from (f"<p>{html.escape(note)}</p>" for note in section.notes)
    yield from _figures(section.figures)
    if section.player:
        yield section.player
    if folded := list(_figures(section.folded)):
        yield f"<details><summary>{len(folded)} more figures, run by run</summary>"
        yield from folded
        yield "</details>"


def _table(table: Table, title: str) -> str:
    parts = ["<div class='wide'><table>"]
    if table.caption and table.caption != title:
        parts.append(f"<caption>{html.escape(table.caption)}</caption>")
    if table.spans:
        cells = (f"<th colspan='{width}'>{html.escape(name)}</th>" for name, width in table.spans)
        parts.append(f"<tr>{''.join(cells)}</tr>")
    parts.append(_row(table.headings, "th scope='col'", table.left))
    parts += [_row(row, "td", table.left) for row in table.rows]
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in table.notes)
    return "\n".join([*parts, f"</table></div>{notes}"])


def _row(cells: Sequence[str], tag: str, left: int) -> str:
    line = []
    for position, cell in enumerate(cells):
        text = html.escape(cell)
        if text.startswith("**") and text.endswith("**"):
            text = f"<b>{text[2:-2]}</b>"
        kind = " class='word'" if position < left else ""
        line.append(f"<{tag}{kind}>{text}</{tag.split()[0]}>")
    return f"<tr>{''.join(line)}</tr>"


def _figures(files: Sequence[Path]) -> Iterator[str]:
    for path in files:
        if path.suffix != ".png":
            continue
        image = base64.b64encode(path.read_bytes()).decode("ascii")
        kind, _, name = path.stem.partition("_")
        if path.stem in _CAPTIONS:
            kind, name = path.stem, ""
        caption = _CAPTIONS.get(kind, "") + (f" ({name.replace('_', ' ')})" if name else "")
        text = html.escape(caption)
        yield (
            f"<figure><img alt='{text or html.escape(path.stem)}' "
            f"src='data:image/png;base64,{image}'><figcaption>{text}</figcaption></figure>"
        )
