"""Which groups a table or a figure shows, where there are more than it has room for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from cobo_dist.reports.grouping.groups import Group, identity, name_groups
from cobo_dist.reports.grouping.problems import Problem
from cobo_dist.reports.tables.scores import higher_is_better, problem_metric, validation_score

SAMPLING = "algorithm.sampling.name"
STRATEGIES = {
    "constant": "Constant (O(1/n))",
    "time": "Time-dependent (O(1/t))",
    "mixed": "Mixed",
    "all": "No sampling (all pairs)",
}
"""The sampling strategies in the order and the words of the paper's Table 1."""

RATE = "algorithm.sampling.rate"
# A mixed strategy's switch plays no part in the others, and a factor on 1/n is none on 1/t: neither makes
# another family.
_SAMPLING_KEYS = (SAMPLING, RATE, "algorithm.sampling.switch_fraction")

_LEARN = ("ifca", "federated_clustering", "validation_based", "cobo")
_FEW = 3  # settings of one method that a figure of several methods has room for


def without_sampling_variants(problems: Sequence[Problem]) -> list[Problem]:
    """The problems of all tasks with one sampling strategy of each method: Table 1 has the others.

    The one kept is the first in the paper's order: constant, its default, where it was run. Groups
    are named anew, so that CoBo is CoBo again.
    """
    kept = []
    for problem in problems:
        families = sampling_families(problem.groups)
        firsts = {id(family[min(family, key=_strategy)][0]) for family in families}
        extras = {
            id(group) for family in families for members in family.values() for group in members
        } - firsts
        left = tuple(group for group in problem.groups if id(group) not in extras)
        kept.append(replace(problem, groups=left))
    return _rename(kept)


def sampling_families(groups: Sequence[Group]) -> list[dict[str, list[Group]]]:
    """Groups that differ in their sampling alone: strategy -> groups, for two strategies or more."""
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
    """The groups that learn W and logged it: methods that choose partners, and any whose W moves.

    A learnt W may stand still too: the paper's IFCA joins all clients from the start.
    """
    found = []
    for group in groups:
        logged = [run.weights for run in group.runs if run.weights is not None]
        moves = any(weights.moves for weights in logged)
        if logged and (moves or group.algorithm in _LEARN):
            found.append(group)
    return found


def representatives(problem: Problem) -> list[Group]:
    """The groups for the figures that compare methods.

    Of a method with more than a few settings the best on validation data stands for it. Without
    validation data all are shown: the test data must not choose.
    """
    shown: list[Group] = []
    metric = problem_metric(problem.groups)
    for family in by_method(problem):
        scores = [validation_score(group, metric) for group in family]
        known = [score[0] for score in scores if score is not None and not math.isnan(score[0])]
        if len(family) <= _FEW or len(known) < len(family):
            shown += family
        else:
            best = max(known) if higher_is_better(metric) else min(known)
            # Alone in its method's colour, and still with its settings in its name.
            shown.append(replace(family[known.index(best)], variant=0, variants=1))
    return shown


def by_method(problem: Problem) -> list[list[Group]]:
    """The groups of each method, in the order of tables."""
    found: dict[str, list[Group]] = {}
    for group in problem.groups:
        found.setdefault(group.algorithm, []).append(group)
    return list(found.values())


def _strategy(name: str) -> tuple[int, str]:
    known = list(STRATEGIES)
    return known.index(name) if name in known else len(known), name


def _rename(problems: Sequence[Problem]) -> list[Problem]:
    """Name the groups anew, task by task, among those that are left."""
    places = {id(group.runs[0]): i for i, one in enumerate(problems) for group in one.groups}
    named: list[list[Group]] = [[] for _ in problems]
    for task in dict.fromkeys(problem.task for problem in problems):
        members = [group for one in problems if one.task == task for group in one.groups]
        for group in name_groups(members):
            named[places[id(group.runs[0])]].append(group)
    return [replace(one, groups=tuple(groups)) for one, groups in zip(problems, named, strict=True)]
