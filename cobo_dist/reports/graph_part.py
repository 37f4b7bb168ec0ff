"""The part of a report that is about the graph: groups found in words, in tables and in figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cobo_dist.errors import ConfigError
from cobo_dist.reports.figures.client_map import Panel, draw_map, map_of_models, map_of_weights
from cobo_dist.reports.figures.network import draw_network
from cobo_dist.reports.figures.seriated import MAX_LEAVES, draw_seriated
from cobo_dist.reports.figures.stability import draw_stability
from cobo_dist.reports.grouping import Group
from cobo_dist.reports.reading.graph import graph_of
from cobo_dist.reports.selection import learning
from cobo_dist.reports.tables.groups import Entry
from cobo_dist.reports.writing import slug

MAX_DRAWN = 3
"""The most methods whose graphs are drawn in one report, a run of each."""
_MAX_MODEL_BYTES = 1 << 30
"""The most bytes of models that are read for one map."""


def graph_entries(groups: Sequence[Group]) -> list[Entry]:
    """Return the last graph of each run of the methods that learn W; of a single run, whatever it is of."""
    single = sum(len(group.runs) for group in groups) == 1
    return [
        Entry(group, run, graph_of(run.weights))
        for group in (groups if single else learning(groups))
        for run in group.runs
        if run.weights is not None
    ]


def draw_graphs(
    entries: Sequence[Entry], out: Path, single: bool
) -> tuple[list[Entry], list[Path], list[str]]:
    """Draw the graph of the first run of each method.

    Returns:
        the runs drawn; the files written; sentences on what is not drawn, and why.
    """
    firsts = {id(entry.group): entry for entry in reversed(entries)}
    order = sorted(
        reversed(firsts.values()), key=lambda entry: entry.group.method.role != "emphasized"
    )
    files: list[Path] = []
    notes: list[str] = []
    for entry in order[:MAX_DRAWN]:
        name = "" if single else f"_{slug(entry.group.label)}"
        about = "" if single else f"{entry.title}: "
        drawn, why = _draw(entry, out, name)
        files += drawn
        notes += [f"No {what} of the graph, {about}{reason}." for what, reason in why.items()]
    if len(order) > MAX_DRAWN:
        left = ", ".join(entry.group.title for entry in order[MAX_DRAWN:])
        notes.append(
            f"Graphs are drawn of {MAX_DRAWN} methods; report these alone for theirs: {left}."
        )
    return order[:MAX_DRAWN], files, notes


def _draw(entry: Entry, out: Path, name: str) -> tuple[list[Path], dict[str, str]]:
    """Draw the figures of one run; return the files and, of what is not drawn, why."""
    graph = entry.graph
    if graph.empty:
        return [], {"figures": graph.empty}
    files, why = draw_network(graph, out / f"network{name}.png"), {}
    if len(graph.members) <= MAX_LEAVES:
        files += draw_seriated(graph, out / f"tree{name}.png")
    else:
        why["tree"] = f"it has {len(graph.members)} clients, and a tree shows at most {MAX_LEAVES}"
    maps: list[Callable[[], Panel]] = [
        lambda: map_of_models(entry.run.path, graph, _MAX_MODEL_BYTES),
        lambda: map_of_weights(graph),
    ]
    panels = []
    for what, place in zip(("map of models", "map of W"), maps, strict=True):
        try:
            panels.append(place())
        except ConfigError as reason:
            why[what] = str(reason)
    files += draw_map(panels, out / f"map{name}.png") if panels else []
    files += draw_stability(entry.group, out / f"stability{name}.png")
    return files, why
