"""What captions say of the runs behind a table or figure, and the figures' captions in LaTeX."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from cobo_dist.formatting import latex_text
from cobo_dist.reports.grouping import Group
from cobo_dist.reports.reading import Run
from cobo_dist.reports.writing import slug
from cobo_dist.storage.files import replace_text

_MAX_LISTED_SEEDS = 5

Caption = tuple[Path, str, str]
"""A figure's file, its caption, and what runs it is about; empty if about none."""


def about(groups: Iterable[Group]) -> str:
    """Return how many clients, which seeds and how many rounds the runs of some groups have.

    For runs that differ: from the smallest to the largest number.
    """
    runs = [run for group in groups for run in group.scored]
    clients, rounds = {_clients(run) for run in runs} - {0}, {run.last_round for run in runs}
    seeds = sorted({run.seed for run in runs})
    shown = ", ".join(map(str, seeds))
    if len(seeds) > _MAX_LISTED_SEEDS:
        shown = f"{seeds[0]} to {seeds[-1]}"
    parts = [f"{_span(clients)} client{'s' * (clients != {1})}"] if clients else []
    parts.append(f"{len(seeds)} seed{'s' * (len(seeds) > 1)} ({shown})")
    return ", ".join([*parts, f"{_span(rounds)} round{'s' * (rounds != {1})}"])


def sentence(runs: str) -> str:
    """Return what `about` says as a sentence; empty for nothing."""
    return f"{runs[:1].upper()}{runs[1:]}." if runs else ""


def _clients(run: Run) -> int:
    if run.summary is not None and run.summary.per_client:
        return len(run.summary.per_client)
    return 0 if run.weights is None else run.weights.clients


def _span(numbers: Iterable[int]) -> str:
    found = sorted(numbers)
    return f"{found[0]}" if found[0] == found[-1] else f"{found[0]} to {found[-1]}"


def write_figures_tex(path: Path, captions: Sequence[Caption], wide: Iterable[Path]) -> Path:
    """Write a LaTeX file that includes each figure as PDF with its caption; `wide` ones take two columns."""
    lines = [r"% \usepackage{graphicx}; paths are relative to the folder of this file.", ""]
    two = set(wide)
    for file, caption, runs in captions:
        place = file.relative_to(path.parent).with_suffix("").as_posix()
        environment = "figure*" if file in two else "figure"
        lines += [
            rf"\begin{{{environment}}}[t]",
            r"\centering",
            rf"\includegraphics{{{{{place}}}.pdf}}",
            rf"\caption{{{latex_text(f'{caption} {sentence(runs)}'.strip())}}}",
            rf"\label{{fig:{slug(place).replace('_', '-')}}}",
            rf"\end{{{environment}}}",
            "",
        ]
    return replace_text(path, "\n".join(lines))
