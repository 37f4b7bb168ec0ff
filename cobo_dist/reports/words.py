"""What runs have learned, in sentences: which clients collaborate, and who does better than alone."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np

from cobo_dist.reports.grouping import Group
from cobo_dist.reports.metrics import percent
from cobo_dist.reports.reading import Run
from cobo_dist.reports.reading.groups import groups_in_words
from cobo_dist.reports.selection import learning
from cobo_dist.reports.tables.scores import GroupResult, alone_values, client_values
from cobo_dist.storage.schema import higher_is_better

_MAX_METHODS = 5  # that are put into words; tables have all


def learned_in_words(results: Sequence[GroupResult]) -> list[str]:
    """Return a sentence or two on each method of one problem that learns W; nothing if there is none.

    `results` are all groups of the problem, since Local among them is what the others are compared with.
    """
    learners = {id(group) for group in learning(one.group for one in results)}
    chosen = [one for one in results if id(one.group) in learners]
    local = [run for one in results for run in one.group.runs if one.group.method.role == "alone"]
    lines = [_sentence(one, local) for one in chosen[:_MAX_METHODS]]
    if len(chosen) > _MAX_METHODS:
        lines.append(f"{len(chosen) - _MAX_METHODS} more methods: see the table.")
    return lines


def _sentence(result: GroupResult, local: Sequence[Run]) -> str:
    group = result.group
    found = f"{group.title} {_groups_found(group)}"
    pairs, seeds = [], 0
    for run in group.scored:
        own = client_values(run, result.split, result.metric)[1]
        if (alone := alone_values(run, result.metric, result.split, local)) is not None:
            pairs += [(value, alone[client]) for client, value in own.items()]
            seeds += 1
    if not pairs:
        return f"{found}. To see who gains, run algorithm.name=local with the same settings, too."
    sign = 1.0 if higher_is_better(result.metric) else -1.0
    better = sum(sign * own > sign * alone for own, alone in pairs)
    gain = percent(result.metric) * fmean(own - alone for own, alone in pairs)
    unit = "points" if result.metric == "accuracy" else result.metric
    of = f" of {seeds} seeds" if seeds > 1 else ""
    return (
        f"{found}; {better} of {len(pairs)} clients{of} do better than alone ({gain:+.3g} {unit})."
    )


def _groups_found(group: Group) -> str:
    """Say which clients are linked in the first seed's last W, and how many groups other seeds have."""
    run = group.scored[0]
    if run.summary is None:
        return "has not finished"
    if not (components := run.summary.components):
        return "found groups that its version did not record"
    labels_n = np.full(max(components) + 1, -1)
    labels_n[[*components]] = [*components.values()]
    words = (
        f"found {groups_in_words(labels_n, run.weights.names if run.weights is not None else ())}"
    )
    if (agreement := run.summary.adjusted_rand) is not None:
        true = f" (adjusted Rand index {agreement:.2f} with the true clusters)"
        words += ", the true clusters" if agreement == 1 else true
    if len(group.scored) > 1:
        every = [one.summary.clusters_found for one in group.scored if one.summary is not None]
        words += f" (seed {run.seed}; components by seed: {', '.join(map(str, every))})"
    return words
