"""Draws groups as figures, with the drawn numbers as CSV beside each. Only this package uses matplotlib.

backend           imports matplotlib
style             colors, markers, the canvas, legends
curves            accuracy, perplexity, loss over rounds (Figures 2b and 6)
decay             consensus distance and gradient norm (Theorem 1)
factors           final accuracy against a factor of the problem (Figure 2a)
events            the rounds in which clients join and leave
matrices          heat maps of the weights (Figures 3 and 5)
shares            what each client gives the others, where weights sum to 1 (Figure 4)
links             the graph of links over the rounds
clients           clients as points: colors and shapes by cluster
network           the graph of links as a network
seriated          W in order, with a dendrogram
client_map        clients in the plane, by models and by W
stability         what changes from one snapshot of W to the next
plots             figures of one run for Python code and notebooks
virtual_time      curves over virtual seconds; who works, waits and meets
traffic           the final metric against what a client sends and receives
ranks             mean ranks over data sets and seeds: the critical-difference figure
profile           where a round's time goes
gpus              busy share, memory and power of the GPUs
client_selection  two clients and their midpoint (Figure 1)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cobo_dist.reports.figures import backend  # isort: split  # before any import of matplotlib
from cobo_dist.reports.figures.client_selection import draw_client_selection
from cobo_dist.reports.figures.curves import draw_metric
from cobo_dist.reports.figures.decay import draw_decay
from cobo_dist.reports.figures.factors import draw_factors
from cobo_dist.reports.figures.gpus import draw_gpus
from cobo_dist.reports.figures.links import draw_graph
from cobo_dist.reports.figures.matrices import draw_all_weights, draw_weights
from cobo_dist.reports.figures.profile import draw_profile
from cobo_dist.reports.figures.ranks import draw_ranks, rank_note
from cobo_dist.reports.figures.shares import draw_shares, left_out
from cobo_dist.reports.figures.style import is_wide
from cobo_dist.reports.figures.traffic import draw_traffic
from cobo_dist.reports.figures.virtual_time import draw_over_seconds, draw_space_time
from cobo_dist.reports.grouping import Group
from cobo_dist.reports.metrics import problem_metric
from cobo_dist.reports.reading import Run, Weights
from cobo_dist.reports.selection import learning
from cobo_dist.reports.writing import slug

_MAX_MAPS = 12
"""Runs that have a heat map each; of more runs, the first seed of each method has one."""

__all__ = [
    "backend",
    "draw_client_selection",
    "draw_factors",
    "draw_over_rounds",
    "draw_ranks",
    "draw_settings",
    "draw_single",
    "draw_traffic",
    "is_wide",
    "rank_note",
    "weights_notes",
]


def draw_over_rounds(groups: Sequence[Group], out: Path) -> list[Path]:
    """Draw what compares the methods on one problem: curves, decay, and W of those that learn it.

    Where weights sum to 1, this includes each client's weights over the rounds, and where a run was
    profiled or on GPUs, its time and what the GPUs did.
    """
    metric = problem_metric(groups)
    files = [] if metric == "loss" else draw_metric(groups, metric, out / f"{metric}.png")
    files += draw_metric(groups, "loss", out / "loss.png")
    files += draw_over_seconds(groups, metric, out / "seconds.png")
    files += draw_decay(groups, out / "decay.png")
    entries = [(group, _first_weights(group)) for group in learning(groups)]
    moving = [(group, weights) for group, weights in entries if weights.moves]
    if len(moving) > 1:
        files += draw_all_weights(moving, out / "weights_all.png")
    files += draw_profile(groups, out / "profile.png")
    files += draw_gpus(groups, out / "gpus.png")
    sharing = [group for group, weights in entries if weights.share]
    for group in sharing:
        name = "shares" if len(sharing) == 1 else f"shares_{slug(group.label)}"
        files += draw_shares(group, out / f"{name}.png")
    return files


def _first_weights(group: Group) -> Weights:
    return next(run.weights for run in group.runs if run.weights is not None)


def weights_notes(groups: Sequence[Group]) -> list[str]:
    """Return which methods have no row or heat maps of all seeds among the figures of W, and why."""
    entries = [(group, _first_weights(group)) for group in learning(groups)]
    still = [group.title for group, weights in entries if not weights.moves]
    notes = []
    if still and len(entries) - len(still) > 1:
        notes.append(
            f"W of {', '.join(still)} is the same at all rounds, so it has no row of heat maps."
        )
    if len(_runs_with_map(groups)) < sum(len(group.runs) for group, _ in entries):
        notes.append(
            "Heat maps of single runs are those of each method's first seed; the slider has all."
        )
    return [*notes, *left_out(groups)]


def _runs_with_map(groups: Sequence[Group]) -> list[tuple[Group, Run]]:
    """The runs whose W moves; of many, the first of each group."""
    found = [
        (group, run)
        for group in learning(groups)
        for run in group.runs
        if run.weights is not None and run.weights.moves
    ]
    if len(found) <= _MAX_MAPS:
        return found
    return list({id(group): (group, run) for group, run in reversed(found)}.values())[::-1]


def draw_settings(groups: Sequence[Group], out: Path) -> list[Path]:
    """Draw all settings of one method, of which the figures that compare methods show only one."""
    metric = problem_metric(groups)
    name = groups[0].algorithm
    path = out / f"{metric}_{slug(name)}.png"
    return draw_metric(groups, metric, path, groups[0].method_title)


def draw_single(groups: Sequence[Group], out: Path) -> list[Path]:
    """Draw how W and its graph form, run by run, for the methods that learn W."""
    files: list[Path] = []
    single = sum(len(group.runs) for group in groups) == 1
    changing = learning(groups)
    moving = [
        group
        for group in changing
        if any(run.weights is not None and run.weights.moves for run in group.runs)
    ]
    for group in moving:
        name = "graph" if len(moving) == 1 else f"graph_{slug(group.label)}"
        files += draw_graph(group, out / f"{name}.png")
    first = groups[0].runs[0]
    for group, run in [(groups[0], first)] if single else _runs_with_map(changing):
        if run.weights is not None:
            name = "weights" if single else f"weights_{slug(group.label)}_s{run.seed}"
            files += draw_weights(run.weights, out / f"{name}.png", "" if single else group.title)
    for group in groups:
        name = "timeline" if single else f"timeline_{slug(group.label)}"
        timeline = next((run.timeline for run in group.runs if run.timeline), {})
        files += draw_space_time(timeline, out / f"{name}.png", "" if single else group.title)
    return files
