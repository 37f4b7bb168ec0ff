"""Which groups a table or a figure shows, where there are too many for it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from cobo_dist.reports.grouping import Group, Problem
from cobo_dist.reports.grouping.groups import SAMPLING, STRATEGIES, by_algorithm, name_groups
from cobo_dist.reports.grouping.settings import identity, rank
from cobo_dist.reports.metrics import last_value, problem_metric
from cobo_dist.storage.schema import higher_is_better

RATE = "algorithm.sampling.rate"
# Only `mixed` uses a switch, and a rate is a factor on 1/n in one strategy and on 1/t in another. So runs
# that differ in these keys are compared as strategies.
_SAMPLING_KEYS = (SAMPLING, RATE, "algorithm.sampling.switch_fraction")

_MAX_VARIANTS = 3  # settings of one method that a figure of several methods shows


def without_sampling_variants(problems: Sequence[Problem]) -> list[Problem]:
    """Return the problems of all tasks with one sampling strategy of each method.

    It is the first in the paper's order: constant, the default, if it was run. Table 1 has the others.
    Groups get new names, so that CoBo is called CoBo again.
    """
    left = []
    for problem in problems:
        families = sampling_families(problem.groups)
        dropped = {
            group
            for family in families
            for group in [member for members in family.values() for member in members]
            if group is not family[min(family, key=lambda name: rank(name, STRATEGIES))][0]
        }
        groups = tuple(group for group in problem.groups if group not in dropped)
        left.append(replace(problem, groups=groups))
    return _rename(left)


def sampling_families(groups: Sequence[Group]) -> list[dict[str, list[Group]]]:
    """Return sets of groups that differ in their sampling only, as strategy -> groups.

    A set has two strategies or more.
    """
    families: dict[object, dict[str, list[Group]]] = {}
    for group in groups:
        settings = group.method_settings
        strategy = settings.get(SAMPLING)
        if strategy is None:
            continue
        rest = {key: value for key, value in settings.items() if key not in _SAMPLING_KEYS}
        family = families.setdefault((group.algorithm, identity(rest)), {})
        family.setdefault(str(strategy), []).append(group)
    return [family for family in families.values() if len(family) > 1]


def learning(groups: Iterable[Group]) -> list[Group]:
    """Return the groups that learn W and logged it: those of methods that learn it, and any whose W moves.

    A learned W may stand still: the paper's IFCA joins all clients from the start.
    """
    found = []
    for group in groups:
        logged = [run.weights for run in group.runs if run.weights is not None]
        moves = any(weights.moves for weights in logged)
        if logged and (moves or group.method.learns_weights):
            found.append(group)
    return found


def representatives(problem: Problem) -> list[Group]:
    """Return the groups for the figures that compare methods.

    A method with more than `_MAX_VARIANTS` settings is represented by the one that is best on validation
    data. Without validation data all are shown, because test data must not choose.
    """
    shown: list[Group] = []
    metric = problem_metric(problem.groups)
    for family in by_algorithm(problem.groups).values():
        scores = [
            score for group in family if (score := _validation_mean(group, metric)) is not None
        ]
        if len(family) <= _MAX_VARIANTS or len(scores) < len(family):
            shown += family
        else:
            best = max(scores) if higher_is_better(metric) else min(scores)
            # It has its method's color to itself, and keeps its settings in its name.
            shown.append(replace(family[scores.index(best)], variant=0, variants=1))
    return shown


def _validation_mean(group: Group, metric: str) -> float | None:
    """The last metric on validation data, mean over the runs that count; None if there is none."""
    values = [last_value(run, "validation", metric) for run in group.scored]
    known = [value for value in values if value is not None]
    mean = sum(known) / len(known) if known else math.nan
    return None if math.isnan(mean) else mean


def _rename(problems: Sequence[Problem]) -> list[Problem]:
    """Name the groups again, task by task, among those that are left."""
    named: list[Group] = []
    for task in dict.fromkeys(problem.task for problem in problems):
        named += name_groups(group for one in problems if one.task == task for group in one.groups)
    owners = {group.runs[0].path: problem for problem in problems for group in problem.groups}
    return [
        replace(problem, groups=tuple(g for g in named if owners[g.runs[0].path] is problem))
        for problem in problems
    ]
