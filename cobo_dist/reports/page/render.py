"""Renders the report as one HTML page that needs no other file and no network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

from cobo_dist.reports.page.weights_slider import WeightsSlider
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


@dataclass
class Section:
    """One heading of the page, with its tables, notes, figures and slider.

    `figures` and `folded` are files: the PNGs among them are shown, those of `folded` only on a click.
    """

    title: str
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: list[Path] = field(default_factory=list)
    slider: WeightsSlider | None = None
    folded: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class _Image:
    name: str
    caption: str
    png: str  # in base64


def write_page(path: Path, sections: Sequence[Section]) -> Path:
    """Write the sections into one file with the images inside."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.filters["images"] = _images
    page = environment.get_template("report.html.j2").render(sections=sections)
    return replace_text(path, page + "\n")


def _images(files: Sequence[Path]) -> list[_Image]:
    images = []
    for path in files:
        if path.suffix != ".png":
            continue
        png = base64.b64encode(path.read_bytes()).decode("ascii")
        images.append(_Image(path.stem, caption_of(path), png))
    return images


def caption_of(figure: Path) -> str:
    """Return the caption of a figure, by its file name."""
    kind, _, name = figure.stem.partition("_")
    if figure.stem in _CAPTIONS:
        kind, name = figure.stem, ""
    return _CAPTIONS.get(kind, "") + (f" ({name.replace('_', ' ')})" if name else "")
