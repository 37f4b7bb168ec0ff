"""The whole report as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from cobo_dist.reports.table import NOTE, Row, headings

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse } th, td { padding: .25rem .8rem; text-align: right }
th { border-bottom: 1px solid #888 } td:nth-child(-n+2), th:nth-child(-n+2) { text-align: left }
figure { margin: 2rem 0 } img { max-width: 100%; max-height: 60rem } figcaption, p { color: #555 }
"""
_CAPTIONS = {
    "accuracy": "Accuracy, mean over clients; band: ± one standard deviation over seeds.",
    "perplexity": "Perplexity, mean over clients; band: ± one standard deviation over seeds.",
    "loss": "Loss, mean over clients; band: ± one standard deviation over seeds.",
    "decay": "Theorem 1: bold lines are means over rounds 1..T; without noise they fall as 1/T.",
    "graph": "How the graph of links forms. A link is a weight of at least 0.5.",
    "weights": "Collaboration weights; the last panel shows the true clusters.",
}


def write_page(
    path: Path, tables: Mapping[str, Sequence[Row]], figures: Mapping[str, Sequence[Path]]
) -> Path:
    """Write tables and figures, by task, into one file with the images inside."""
    parts = ["<!doctype html><html lang='en'><meta charset='utf-8'><title>CoBo report</title>"]
    parts += [f"<style>{_STYLE}</style><h1>Results</h1>"]
    for task, rows in tables.items():
        parts += [f"<h2>{html.escape(task)}</h2>", _table(rows), f"<p>{html.escape(NOTE)}</p>"]
        parts += [_figure(file) for file in figures.get(task, ()) if file.suffix == ".png"]
    path.write_text("\n".join([*parts, "</html>", ""]), encoding="utf-8")
    return path


def _table(rows: Sequence[Row]) -> str:
    lines = [("th", headings(rows[0].metric)), *(("td", row.cells()) for row in rows)]
    body = (
        "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
        for tag, cells in lines
    )
    return "<table>" + "\n".join(body) + "</table>"


def _figure(path: Path) -> str:
    image = base64.b64encode(path.read_bytes()).decode("ascii")
    kind, _, name = path.stem.partition("_")
    caption = _CAPTIONS.get(kind, "") + (f" ({name.replace('_', ' ')})" if name else "")
    text = html.escape(caption)
    return (
        f"<figure><img alt='{html.escape(path.stem, quote=True)}' "
        f"src='data:image/png;base64,{image}'><figcaption>{text}</figcaption></figure>"
    )
