"""Problems: a task with one set of task settings, and the groups that were trained on it.

Every problem has its own table, because accuracies on different problems do not compare. One problem of
each task is the main one: Table 2 and the figures over rounds show it. The others show how the methods
fare as a factor of the problem varies (Figure 2a).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cobo_dist.reports.grouping.groups import Group, join_seeds, length_note, name_groups
from cobo_dist.reports.grouping.settings import (
    Settings,
    differing,
    identity,
    rank,
    short_keys,
    show_settings,
    sort_key,
)
from cobo_dist.reports.reading import Run
from cobo_dist.tasks.registry import TASKS
from cobo_dist.tasks.sections import TaskSection

# The paper's own problem: it decides which problem is the main one if nothing else does.
_PAPER: Settings = {"task.data_fraction": 1.0, "task.clusters": 4, "task.clients_per_cluster": 2}


@dataclass(frozen=True, eq=False)
class Problem:
    """One task with one set of task settings.

    `settings` (short key -> value) are those that vary among the problems of the task; `apart` are those
    of them in which this problem differs from the main one. `values` are all its settings with full keys.
    """

    task: str
    settings: Settings
    apart: Settings
    values: Settings
    main: bool
    groups: tuple[Group, ...]

    @property
    def label(self) -> str:
        """`cross_silo`, or `cross_silo (clusters=8)` if it is not the main problem."""
        return f"{self.task} ({show_settings(self.apart)})" if self.apart else self.task

    @property
    def title(self) -> str:
        """The task's title: `Cross-silo`."""
        known = TASKS.get(self.task)
        return (known and known.target.title) or self.task


def _place(task: str) -> tuple[int, str]:
    """Return a task's place in tables: the paper's Table 2, then others by name."""
    known = TASKS.get(task)
    return (known.target.place if known else TaskSection.place), task


def group_runs(runs: Iterable[Run]) -> tuple[list[Problem], list[str]]:
    """Sort runs into groups and problems.

    Returns the problems (tasks in the paper's order, each task's main problem first) and notes to the user:
    on runs that are left out as repetitions, and on W of several sizes and runs of several lengths in one
    problem.
    """
    groups, notes = join_seeds(runs)
    tasks: dict[str, list[Group]] = {}
    for group in groups:
        tasks.setdefault(group.runs[0].task, []).append(group)
    problems = [
        problem
        for task in sorted(tasks, key=_place)
        for problem in _problems_of(task, name_groups(tasks[task]))
    ]
    for problem in problems:
        notes += _size_notes(problem)
        if note := length_note(problem.groups):
            notes.append(f"{problem.label}: {note}")
    return problems, notes


def _problems_of(task: str, groups: Sequence[Group]) -> list[Problem]:
    members: dict[object, list[Group]] = {}
    for group in groups:
        members.setdefault(identity(group.problem_settings), []).append(group)
    values = [own[0].problem_settings for own in members.values()]
    # The paper's factors come first, in the order of Figure 2a.
    differ = sorted(differing(values), key=lambda key: rank(key, _PAPER))
    short = short_keys(differ, {key for one in values for key in one})
    main = max(range(len(values)), key=lambda i: _importance(i, list(members.values()), values))
    problems = []
    for i, (one, own) in enumerate(zip(values, members.values(), strict=True)):
        settings = {short[key]: one.get(key) for key in differ}
        apart = {
            short[key]: one.get(key) for key in differ if one.get(key) != values[main].get(key)
        }
        problems.append(Problem(task, settings, apart, one, i == main, tuple(own)))
    order = list(short.values())
    return sorted(
        problems,
        key=lambda one: (
            not one.main,
            [order.index(key) for key in one.apart],
            sort_key(one.apart.values()),
        ),
    )


def _importance(
    i: int, groups: Sequence[Sequence[Group]], values: Sequence[Settings]
) -> tuple[int, int, int, int]:
    """Of problem i: methods, problems that differ in one setting, settings as in the paper, runs."""
    near = sum(len(differing([values[i], other])) == 1 for other in values)
    paper = sum(values[i].get(key) == value for key, value in _PAPER.items())
    runs = sum(len(group.runs) for group in groups[i])
    return len({group.algorithm for group in groups[i]}), near, paper, runs


def _size_notes(problem: Problem) -> list[str]:
    """A note if runs of one problem have W of different sizes."""
    sizes = {
        run.weights.clients: run.path
        for group in problem.groups
        for run in group.runs
        if run.weights is not None
    }
    if len(sizes) < 2:
        return []
    found = ", ".join(f"{path} has {count}" for count, path in sorted(sizes.items()))
    return [
        f"runs of {problem.label} differ in their number of clients with the same task settings "
        f"({found}); their means do not compare, so report them apart"
    ]
