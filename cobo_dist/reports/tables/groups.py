"""Which groups of clients W shows: run by run in words, and one run's groups in rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cobo_dist.reports.grouping import Group
from cobo_dist.reports.reading import Run
from cobo_dist.reports.reading.graph import Graph
from cobo_dist.reports.reading.groups import listed
from cobo_dist.reports.tables.table import Table

_MAX_ROWS = 40
"""Groups of one run that a table lists, the largest."""
_MAX_TREE = 512
"""The most clients for which other thresholds are looked at."""
_MAX_CLUSTERS = 4
"""True clusters in one group that a table lists."""


@dataclass(frozen=True, eq=False)
class Entry:
    """The last graph of one run."""

    group: Group
    run: Run
    graph: Graph

    @property
    def title(self) -> str:
        """The method and the seed."""
        return f"{self.group.title}, seed {self.run.seed}"


def groups_table(entries: Sequence[Entry], caption: str) -> Table:
    """Return a row for each run: its groups in words, mean weights, agreement with the true clusters."""
    text, numbers = [], []
    for entry in entries:
        graph = entry.graph
        within, across = graph.means
        scores = graph.adjusted_rand, graph.link_f1
        words = [entry.group.title, str(entry.run.seed), str(graph.groups)]
        text.append([*words, *(_show(value) for value in (within, across, *scores))])
        sizes = [len(group) for group in graph.groups]
        low, high = _same_groups(graph)
        numbers.append(
            {
                "method": entry.group.label,
                "seed": entry.run.seed,
                "round": graph.round,
                "threshold": graph.threshold,
                "groups": sum(size > 1 for size in sizes),
                "alone": sum(size == 1 for size in sizes),
                "largest": max(sizes, default=0),
                "mean_within": _known(within),
                "mean_across": _known(across),
                "adjusted_rand": _known(scores[0]),
                "link_f1": _known(scores[1]),
                "same_above": _known(low),
                "same_up_to": _known(high),
            }
        )
    names = [
        "method",
        "seed",
        "groups found",
        "mean weight within",
        "across",
        "adjusted Rand",
        "F1",
    ]
    return Table(
        caption, pd.DataFrame(text, columns=names), (_note(entries),), 3,
        pd.DataFrame(numbers, dtype=object),
    )  # fmt: skip


def members_table(entry: Entry, caption: str) -> Table:
    """Return a row for each group of one run: who is in it, mean weights, which true clusters they are of.

    Clients that are alone share a row, the last.
    """
    graph = entry.graph
    sizes = np.bincount(graph.label_m)
    order = np.argsort(-sizes, kind="stable")
    shown = [int(k) for k in order if sizes[k] > 1][:_MAX_ROWS]
    number = np.full(len(sizes), len(shown))
    number[shown] = np.arange(len(shown))
    row_m = number[graph.label_m]
    means = graph.mean_between(row_m)
    counts = np.bincount(row_m, minlength=len(means))
    text, numbers = [], []
    for row, size in enumerate(counts.tolist()):
        known = row < len(shown)
        members = graph.members[row_m == row].tolist()
        others = np.delete(counts, row)
        across = np.delete(means[row], row) @ others / others.sum() if others.sum() else np.nan
        within = means[row, row] if size > 1 else np.nan
        name = str(row) if known else "others"
        words = [name, listed(members, graph.names), *_true_clusters(graph, row_m == row)]
        text.append([*words, str(size), _show(within), _show(across)])
        numbers.append(
            {
                "method": entry.group.label,
                "seed": entry.run.seed,
                "group": name,
                "clients": " ".join(map(str, members)),
                "size": size,
                "mean_within": _known(within),
                "mean_across": _known(across),
            }
        )
    truth = [] if graph.clusters is None else ["of true cluster"]
    names = ["group", "clients", *truth, "size", "mean weight within", "to others"]
    left = int((sizes > 1).sum()) - len(shown)
    note = f"The {_MAX_ROWS} largest groups; {left} more are among the others." if left else ""
    return Table(
        caption, pd.DataFrame(text, columns=names), (note,) if note else (), 2 + len(truth),
        pd.DataFrame(numbers, dtype=object),
    )  # fmt: skip


def _true_clusters(graph: Graph, here_m: np.ndarray) -> list[str]:
    """The true clusters of some clients in words: which, and how many of its clients; [] if unknown."""
    if graph.clusters is None:
        return []
    values, counts = np.unique(graph.clusters[here_m], return_counts=True)
    parts = [
        f"{value} ({count} of {int((graph.clusters == value).sum())})"
        for value, count in zip(values.tolist(), counts.tolist(), strict=True)
    ]
    more = len(parts) - _MAX_CLUSTERS
    return [", ".join(parts[:_MAX_CLUSTERS]) + (f" and {more} more" if more > 0 else "")]


def _same_groups(graph: Graph) -> tuple[float, float]:
    if not 1 < len(graph.members) <= _MAX_TREE:
        return np.nan, np.nan
    return graph.same_groups


def _note(entries: Sequence[Entry]) -> str:
    """What a group is, and, for one run, which other thresholds give the same."""
    thresholds = sorted({entry.graph.threshold for entry in entries})
    least = " or ".join(f"{value:.3g}" for value in thresholds[:3])
    rule = (
        "where a client's weights sum to 1, a link is more than an equal share"
        if any(entry.graph.threshold < 0.5 for entry in entries)
        else "1 is a full link, and 0 none"
    )
    note = (
        f"Groups are the connected components of the last W's links, weights of at least {least} in "
        f"either direction ({rule}). Means are of weights within and across the groups found."
    )
    low, high = _same_groups(entries[0].graph) if len(entries) == 1 else (np.nan, np.nan)
    if np.isnan(low):
        return note
    upper = f" and up to {high:.3g}" if np.isfinite(high) else ""
    return f"{note} Any threshold above {low:.3g}{upper} gives the same groups."


def _known(value: float | None) -> object:
    """A number for a CSV; empty where there is none."""
    return "" if value is None or np.isnan(value) else float(value)


def _show(value: float | None) -> str:
    return "" if value is None or np.isnan(value) else f"{value:.2f}"
