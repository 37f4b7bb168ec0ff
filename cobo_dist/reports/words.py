"""What runs have learned, in sentences: which clients collaborate, and who does better than alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from cobo_dist.reports.grouping import Group
from cobo_dist.reports.metrics import percent
from cobo_dist.reports.reading import Run
from cobo_dist.reports.selection import learning
from cobo_dist.reports.tables.scores import GroupResult, beside_local, runs_of_local
from cobo_dist.storage.schema import higher_is_better

_MAX_METHODS = 5  # that are put into words; tables have all
_MAX_GROUPS, _MAX_MEMBERS = 8, 8  # that a sentence lists


def learned_in_words(results: Sequence[GroupResult]) -> list[str]:
    """Return a sentence or two on each method of one problem that learns W; nothing if there is none.

    `results` are all groups of the problem, since Local among them is what the others are compared with.
    """
    learners = {id(group) for group in learning(one.group for one in results)}
    chosen = [one for one in results if id(one.group) in learners]
    lines = [_sentence(one, runs_of_local(results)) for one in chosen[:_MAX_METHODS]]
    if len(chosen) > _MAX_METHODS:
        lines.append(f"{len(chosen) - _MAX_METHODS} more methods: see the table.")
    return lines


def _sentence(result: GroupResult, local: Sequence[Run]) -> str:
    group = result.group
    found = f"{group.title} {_groups_found(group)}"
    compared = [beside_local(run, result.metric, result.split, local) for run in group.scored]
    pairs = [pair for own in compared if own for pair in own]
    if not pairs:
        return f"{found}. To see who gains, run algorithm.name=local with the same settings, too."
    sign = 1.0 if higher_is_better(result.metric) else -1.0
    better = sum(sign * own > sign * alone for own, alone in pairs)
    gain = percent(result.metric) * fmean(own - alone for own, alone in pairs)
    unit = "points" if result.metric == "accuracy" else result.metric
    seeds = sum(own is not None for own in compared)
    of = f" of {seeds} seeds" if seeds > 1 else ""
    return (
        f"{found}; {better} of {len(pairs)} clients{of} do better than alone ({gain:+.3g} {unit})."
    )


def _groups_found(group: Group) -> str:
    """Say which clients are linked in the first seed's last W, and how many groups other seeds have."""
    run = group.scored[0]
    components = run.summary.components if run.summary is not None else {}
    if not components:
        return "has not finished" if run.summary is None else "found groups that are not recorded"
    members: dict[int, list[int]] = {}
    for client, component in components.items():
        members.setdefault(component, []).append(client)
    if len(members) == len(components):
        words = f"found no groups: each of {len(components)} clients stands alone"
    elif len(members) == 1:
        words = f"found 1 group: all {len(components)} clients are linked"
    else:
        words = f"found {len(members)} groups: {_list_groups(members.values(), _names(run))}"
    if run.summary is not None and (agreement := run.summary.adjusted_rand) is not None:
        true = f"adjusted Rand index {agreement:.2f} with the true clusters"
        words += ", the true clusters" if agreement == 1 else f" ({true})"
    if len(group.scored) > 1:
        every = [one.summary.clusters_found for one in group.scored if one.summary is not None]
        words += f" (seed {run.seed}; groups by seed: {', '.join(map(str, every))})"
    return words


def _names(run: Run) -> Mapping[int, str]:
    return dict(enumerate(run.weights.names)) if run.weights is not None else {}


def _list_groups(groups: Iterable[Sequence[int]], names: Mapping[int, str]) -> str:
    """Return groups as sets, the largest first where they are too many to list.

    >>> _list_groups([[0, 1, 2, 5], [3, 4]], {})
    '{0-2,5} {3,4}'
    >>> _list_groups([[0], [1, 2]], {0: "no", 1: "sv", 2: "ca"})
    '{no} {sv,ca}'
    """
    every = list(groups)
    shown = every
    if len(every) > _MAX_GROUPS:
        shown = sorted(every, key=len, reverse=True)[:_MAX_GROUPS]
    words = " ".join(_set(members, names) for members in shown)
    left = len(every) - len(shown)
    return words + (f" and {left} smaller or equal ones" if left else "")


def _set(members: Sequence[int], names: Mapping[int, str]) -> str:
    parts = [names[one] for one in members] if names else _ranges(members)
    more = [f"... {len(members)} clients"] if len(parts) > _MAX_MEMBERS else []
    return "{" + ",".join([*parts[:_MAX_MEMBERS], *more]) + "}"


def _ranges(members: Sequence[int]) -> list[str]:
    """Return ascending numbers with three or more in a row as `first-last`."""
    runs: list[list[int]] = []
    for one in members:
        if runs and one == runs[-1][-1] + 1:
            runs[-1].append(one)
        else:
            runs.append([one])
    return [
        part
        for run in runs
        for part in ([f"{run[0]}-{run[-1]}"] if len(run) > 2 else map(str, run))
    ]
