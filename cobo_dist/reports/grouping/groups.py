"""Groups runs that differ only in their seed, and names the groups by the settings that differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from cobo_dist.reports.grouping.settings import (
    Settings,
    differing,
    identity,
    settings_of,
    short_keys,
    show_settings,
    sort_key,
)
from cobo_dist.reports.reading import Run
from cobo_dist.storage.schema import Method

SAMPLING = "algorithm.sampling.name"
STRATEGIES = {
    "constant": "Constant (O(1/n))",
    "time": "Time-dependent (O(1/t))",
    "mixed": "Mixed",
    "all": "No sampling (all pairs)",
}
"""The sampling strategies in the order and the words of the paper's Table 1."""

_PROBLEM = "task."


@dataclass(frozen=True, eq=False)  # compared by identity: the runs hold arrays
class Group:
    """The seeds of one method with one set of settings on one problem, in order of their seeds.

    `settings` (short key -> value) are those that differ from other groups of the same algorithm, so they
    are empty for a single group. `variant` numbers the `variants` groups of an algorithm from 0.
    """

    algorithm: str
    runs: tuple[Run, ...]
    settings: Settings
    variant: int = 0
    variants: int = 1

    @property
    def label(self) -> str:
        """The name in CSV files: `cobo`, or `cobo (rho=0.1)` beside another cobo."""
        return _label(self.algorithm, self.settings)

    @property
    def title(self) -> str:
        """The name in figures and in the paper's tables: `CoBo`, or `CoBo (rho=0.1)`."""
        return _label(self.method_title, self.settings)

    @property
    def method_title(self) -> str:
        """The method's name in figures and tables, without settings: `CoBo`."""
        return self.method.title or self.algorithm

    @property
    def method(self) -> Method:
        """What reports know of the algorithm."""
        return self.runs[0].method

    @property
    def place(self) -> tuple[int, str]:
        """The method's place in tables and legends: the paper's Table 2, then others by name."""
        return self.method.place, self.algorithm

    @property
    def scored(self) -> tuple[Run, ...]:
        """The runs whose final values count: the finished ones, or all where none has finished."""
        return tuple(run for run in self.runs if run.summary is not None) or self.runs

    @property
    def lengths(self) -> tuple[int, ...]:
        """The numbers of rounds done by the runs whose final values count, ascending."""
        return tuple(sorted({run.last_round for run in self.scored}))

    @property
    def method_settings(self) -> dict[str, object]:
        """All settings of the group but the problem's."""
        return {k: v for k, v in settings_of(self.runs[0]).items() if not k.startswith(_PROBLEM)}

    @property
    def problem_settings(self) -> dict[str, object]:
        """The settings of the problem that the group was trained on."""
        return {k: v for k, v in settings_of(self.runs[0]).items() if k.startswith(_PROBLEM)}


def join_seeds(runs: Iterable[Run]) -> tuple[list[Group], list[str]]:
    """Join runs that differ only in their seed.

    Returns the groups, unnamed and in no order, and notes on runs that are left out as repetitions.
    """
    notes: list[str] = []
    members: dict[object, dict[int, Run]] = {}
    for run in runs:
        seeds = members.setdefault(identity(settings_of(run)), {})
        twin = seeds.get(run.seed)
        if twin is None:
            seeds[run.seed] = run
            continue
        # Two runs of one seed are one sample: counting both would make the deviation too small.
        better = twin.summary is None and run.summary is not None
        keep, drop = (run, twin) if better else (twin, run)
        seeds[run.seed] = keep
        notes.append(f"{drop.path} repeats the settings and seed of {keep.path}; it is left out")
    ordered = [tuple(seeds[seed] for seed in sorted(seeds)) for seeds in members.values()]
    return [Group(runs_[0].algorithm, runs_, {}) for runs_ in ordered], notes


def name_groups(groups: Iterable[Group]) -> list[Group]:
    """Give each group of a task the settings in which it differs from others of its algorithm.

    Settings of the problem do not count: one method on two problems has one name. Returns the groups in
    the order of tables: by method, then by their settings.
    """
    families = by_algorithm(groups)
    ordered = sorted(families, key=lambda algorithm: families[algorithm][0].place)
    return [named for algorithm in ordered for named in _name_family(families[algorithm])]


def length_note(groups: Iterable[Group]) -> str | None:
    """Return a warning if finished runs of some groups have different numbers of rounds, else None.

    Unfinished runs do not count: tables mark each of them.
    """
    found: dict[int, list[str]] = {}
    for group in groups:
        for rounds in {run.summary.rounds for run in group.runs if run.summary is not None}:
            found.setdefault(rounds, []).append(group.title)
    if len(found) < 2:
        return None
    parts = "; ".join(f"{rounds}: {', '.join(found[rounds])}" for rounds in sorted(found))
    return (
        f"these runs differ in their number of rounds ({parts}): values compare only between equal "
        "numbers; set run.rounds alike"
    )


def by_algorithm(groups: Iterable[Group]) -> dict[str, list[Group]]:
    """Return the groups of each algorithm, in the order of their first groups."""
    families: dict[str, list[Group]] = {}
    for group in groups:
        families.setdefault(group.algorithm, []).append(group)
    return families


def _name_family(family: Sequence[Group]) -> list[Group]:
    configs = {identity(group.method_settings): group.method_settings for group in family}
    differ = differing(list(configs.values()))
    short = short_keys(differ, set().union(*(settings_of(group.runs[0]) for group in family)))
    order = sorted(
        configs, key=lambda one: sort_key(_sort_value(configs[one], key) for key in differ)
    )
    named = []
    for group in family:
        own = group.method_settings
        settings = {short[key]: own.get(key) for key in differ}
        variant = order.index(identity(own))
        named.append(replace(group, settings=settings, variant=variant, variants=len(order)))
    return sorted(named, key=lambda group: group.variant)


def _sort_value(settings: Settings, key: str) -> object:
    """A value to sort by: of a sampling strategy its place in the paper's order."""
    value = settings.get(key)
    known = list(STRATEGIES)
    return known.index(value) if key == SAMPLING and value in known else value


def _label(name: str, settings: Settings) -> str:
    return f"{name} ({show_settings(settings)})" if settings else name
