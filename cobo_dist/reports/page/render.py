"""Renders the report as one HTML page that needs no other file and no network.

The page's Content-Security-Policy allows its own script and style, by their digests, and pictures inside it.
It allows no connection but, where `cobo_dist.watch` serves the page, to its server.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup
from PIL import Image

from cobo_dist.reports.page.explorer import Explorer, encode
from cobo_dist.reports.tables.table import Table
from cobo_dist.storage.files import replace_text

_ORDER = (
    "Where the true clusters are unknown, clients are in a seriated order: the last W decides, and linked "
    "clients are next to each other (single linkage; for W of many clients, connected components)."
)
_BAND = "band: 95% confidence interval of the mean over seeds (Student's t), cut where it would hide lines."
_CAPTIONS = {
    "accuracy": f"Accuracy, mean over clients; {_BAND}",
    "perplexity": f"Perplexity, mean over clients; {_BAND}",
    "rmse": f"Root of the mean squared error, mean over clients; {_BAND}",
    "loss": f"Loss, mean over clients; {_BAND}",
    "decay": "Theorem 1: bold lines are means over rounds 1..T; without noise they fall as 1/T.",
    "graph": f"How the graph of links forms; {_BAND} A link is a weight of at least 0.5 or, where a client's "
    "weights sum to 1, of more than an equal share.",
    "weights_all": "Collaboration weights of the methods that learn them, beside the true clusters "
    f"or the right graph where these are known; diagonals are masked out. {_ORDER} Each method has its own "
    "order then. Where a client's weights sum to 1, colors reach up to the largest weight logged. The first "
    "seed of each method.",
    "weights": "Collaboration weights beside the true clusters or the right graph where these are known; "
    f"diagonals are masked out. {_ORDER} Where a client's weights sum to 1, colors reach up to the largest "
    "weight logged.",
    "shares": "The weights that each client gives the others, against rounds (Figure 4). Faint: as "
    "logged; bold: their exponential moving average; grey: an equal share.",
    "network": "The graph of the last W: clients are points, colored and shaped by true cluster or, where "
    "it is unknown, by the group found. A grey disk is a group: clients that links join, however "
    "indirectly. Where weights differ by direction, the larger counts. Of more than 200 clients, a disk is "
    "a group with a sector for each true cluster in it.",
    "tree": "The last W in a seriated order, under the tree that the order comes from: branches join at the "
    "largest weight at which their clients are in one group (single linkage, optimal order of leaves). What "
    "hangs together below the dashed line is a group, framed in W. The band shows true clusters.",
    "map": "Clients in the plane. Models: the first two principal components of the saved models, with "
    "their shares of the variance. W: two eigenvectors of its normalized graph Laplacian; of more than three "
    "groups that are not linked, the plane of their eigenvectors that is nearest to having them in a circle. "
    "Points that would hide each other are moved apart a little.",
    "stability": "How the graph changes from a snapshot of W to the next: the share of pairs whose link "
    "appeared or went; agreement of the groups with those of the snapshot before, and with the true "
    f"clusters (1: the same, 0: as by chance); {_BAND}",
    "seconds": "The same over virtual seconds: what the rounds take where clients have speeds. A point is "
    f"the mean over clients and seeds at one round; {_BAND}",
    "timeline": "What clients do in the first rounds of virtual time: work, wait for others, and meet "
    "another client. The first seed.",
    "traffic": "The final value against what a client would send and receive in the whole run as a machine "
    "of its own; bars: 95% confidence intervals of the mean over seeds (Student's t).",
    "ranks": "Critical-difference figure: mean ranks of the methods over data sets and seeds; bars join "
    "methods that do not differ by Nemenyi's test at 0.05.",
    "profile": "Where a round's time goes on each rank, mean over rounds after the first 10. Each second "
    "counts once, to the innermost kind of work.",
    "gpus": "The GPU of each rank: the share of the time in which kernels ran, memory that tensors use "
    "(dotted: that PyTorch took from the GPU) and power, whenever metrics were written. The first seed of "
    "each method.",
    "factors": "Final values against one factor of the problem at a time; bars: 95% confidence intervals of "
    "the mean over seeds (Student's t), cut where they would hide the lines.",
    "figure1": "Client selection: gradients at the midpoint of two models decide whether their "
    "clients collaborate.",
}
"""Captions by file name, without what follows the first underscore (a method, a run)."""


MAX_PAGE_BYTES = 1_500_000
"""The most bytes of a page; figures that do not fit are named on it."""
MAX_EXPLORER_BYTES = 700_000
"""The most bytes of all explorers of a page."""

_SCRIPTS = ("page.js", "weights.js", "curves.js", "explorer.js", "start.js")
_COLORS = 128  # of a picture on the page; the file beside it has all


@dataclass
class Section:
    """One heading of the page, with its explorer, tables, notes and figures.

    `figures` and `folded` are files: the PNGs among them are shown, those of `folded` only on a click.
    `is_folded` says whether the explorer is shown on a click, too.
    """

    title: str
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: list[Path] = field(default_factory=list)
    explorer: Explorer | None = None
    folded: list[Path] = field(default_factory=list)
    is_folded: bool = False


@dataclass(frozen=True)
class Live:
    """What the page of a running run has beside the report's: where its data come from, and how runs go.

    `layout` names the sections: a page with another layout loads itself again.
    """

    address: str
    layout: str
    status: str


@dataclass
class _Image:
    name: str
    caption: str
    png: str  # in base64


@dataclass
class _Shown:
    """A section as the template takes it: the explorer's data and the figures are text."""

    title: str
    tables: list[Table]
    notes: list[str]
    name: str
    encoded: str
    is_folded: bool
    figures: list[_Image] = field(default_factory=list)
    folded: list[_Image] = field(default_factory=list)
    omitted: list[str] = field(default_factory=list)


def write_page(path: Path, sections: Sequence[Section]) -> Path:
    """Write the sections into one file with the images inside."""
    return replace_text(path, render_page("CoBo report", sections) + "\n")


def render_page(title: str, sections: Sequence[Section], live: Live | None = None) -> str:
    """Return the page as text."""
    explorers = [section.explorer for section in sections if section.explorer]
    limit = MAX_EXPLORER_BYTES // max(1, len(explorers))
    shown = [
        _Shown(
            one.title,
            one.tables,
            one.notes,
            one.explorer.name if one.explorer else "",
            encode(one.explorer.data(limit)) if one.explorer else "",
            one.is_folded,
        )
        for one in sections
    ]
    script, style = _script(), _style()
    page = _environment().get_template("report.html.j2")
    words = {
        "title": title,
        "sections": shown,
        "policy": _policy(script, style, bool(live)),
        "script": Markup(script),
        "style": Markup(style),
        "live": live.address if live else "",
        "layout": live.layout if live else "",
        "status": Markup(live.status) if live else "",
    }
    _add_figures(sections, shown, MAX_PAGE_BYTES - len(page.render(words).encode()))
    return page.render(words)


def _add_figures(sections: Sequence[Section], shown: Sequence[_Shown], left: int) -> None:
    """Give the sections their pictures, in order, as long as they fit in the bytes that are left."""
    for section, one in zip(sections, shown, strict=True):
        for files, images in ((section.figures, one.figures), (section.folded, one.folded)):
            for file in (file for file in files if file.suffix == ".png"):
                image = _image(file)
                size = len(image.png) + 2 * len(image.caption.encode()) + 200
                if size <= left:
                    images.append(image)
                else:
                    one.omitted.append(file.name)
                    size = 2 * len(file.name)
                left -= size


def render_tables(section: Section) -> str:
    """Return the tables and notes of a section as HTML."""
    parts = _environment().get_template("parts.html.j2").module
    return str(parts.show_tables(section))  # type: ignore[attr-defined]  # a macro


def policy_header() -> str:
    """Return the Content-Security-Policy of a page that a server keeps up to date."""
    return _policy(_script(), _style(), live=True) + "; frame-ancestors 'none'"


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader(__package__), autoescape=True, undefined=jinja2.StrictUndefined
    )


def _policy(script: str, style: str, live: bool) -> str:
    source = "'self'" if live else "'none'"
    return (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; img-src data:; "
        f"connect-src {source}; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _script() -> str:
    return '(function () {\n"use strict";\n' + "".join(map(_template, _SCRIPTS)) + "}());"


@cache
def _style() -> str:
    return _template("style.css")


def _template(name: str) -> str:
    folder = importlib.resources.files(__package__) / "templates"
    return (folder / name).read_text(encoding="utf-8")


def caption_of(figure: Path) -> str:
    """Return the caption of a figure, by its file name."""
    kind, _, name = figure.stem.partition("_")
    if figure.stem in _CAPTIONS:
        kind, name = figure.stem, ""
    return _CAPTIONS.get(kind, "") + (f" ({name.replace('_', ' ')})" if name else "")


def _image(path: Path) -> _Image:
    """A figure with its caption, in fewer colors than its file has: a quarter of its size."""
    small = io.BytesIO()
    with Image.open(path) as image:
        white = Image.new("RGBA", image.size, "white")
        flat = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
        flat.quantize(_COLORS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(
            small, "PNG", optimize=True
        )
    return _Image(path.stem, caption_of(path), base64.b64encode(small.getvalue()).decode("ascii"))
