"""Groups runs that differ only in their seed, and names the groups by what tells them apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from cobo_dist.reports.reading.run import Run

METHODS = {
    "local": "Local",
    "fedavg": "FedAvg",
    "finetuned_fedavg": "Fine-tuned FedAvg",
    "ditto": "Ditto",
    "ifca": "IFCA",
    "federated_clustering": "FC",
    "validation_based": "Validation based",
    "cobo": "CoBo",
    "oracle": "Oracle",
}
"""The methods under the paper's names, in the order of its Table 2; others follow by name."""

# Where a run lies, how it is resumed, what it measures, and how its work is laid on machines: these
# change its numbers by rounding at most.
_NO_SETTING = {
    *("run.seed", "run.dir", "run.overwrite", "run.resume", "run.checkpoint_every"),
    *("run.eval_every", "run.eval_splits", "run.log_weights_every"),
    *("run.device", "run.engine", "run.threads"),
    *("data.root", "data.eval_examples", "data.eval_batch_size"),
}
_NO_SECTIONS = ("log.", "comm.")
_PROBLEM = "task."
# Values that have an order of their own, the paper's.
_ORDERS = {"algorithm.sampling.name": ("constant", "time", "mixed", "all")}

Settings = Mapping[str, object]
"""Config keys and their values."""


@dataclass(frozen=True, eq=False)  # compared by identity: the runs hold arrays
class Group:
    """The seeds of one method with one set of settings on one problem, in order of their seeds.

    `settings` (short key -> value) tells it from the other groups of its algorithm; it is empty
    where there is no other. `variant` counts those `variants` from 0.
    """

    algorithm: str
    runs: tuple[Run, ...]
    settings: Settings
    variant: int = 0
    variants: int = 1

    @property
    def label(self) -> str:
        """`cobo`, or `cobo (rho=0.1)` beside another cobo: the name in CSV files."""
        return _label(self.algorithm, self.settings)

    @property
    def title(self) -> str:
        """`CoBo`, or `CoBo (rho=0.1)`: the name in figures and in the paper's tables."""
        return _label(METHODS.get(self.algorithm, self.algorithm), self.settings)

    @property
    def scored(self) -> tuple[Run, ...]:
        """The runs whose final values count: the finished ones, or all where none has finished."""
        return tuple(run for run in self.runs if run.summary is not None) or self.runs

    @property
    def method_settings(self) -> dict[str, object]:
        """All settings of the group but the problem's."""
        return {k: v for k, v in settings_of(self.runs[0]).items() if not k.startswith(_PROBLEM)}

    @property
    def problem_settings(self) -> dict[str, object]:
        """The settings of the problem that the group was trained on."""
        return {k: v for k, v in settings_of(self.runs[0]).items() if k.startswith(_PROBLEM)}


def settings_of(run: Run) -> dict[str, object]:
    """The config of a run without its seed, its folder, and what changes none of its numbers."""
    return {
        key: value
        for key, value in run.config.items()
        if key not in _NO_SETTING and not key.startswith(_NO_SECTIONS)
    }


def join_seeds(runs: Iterable[Run]) -> tuple[list[Group], list[str]]:
    """Join runs that differ only in their seed.

    Returns the groups, unnamed and in no order, and notes on runs left out as repetitions.
    """
    notes: list[str] = []
    members: dict[object, dict[int, Run]] = {}
    for run in runs:
        seeds = members.setdefault(identity(settings_of(run)), {})
        twin = seeds.get(run.seed)
        if twin is None:
            seeds[run.seed] = run
            continue
        # Two runs of one seed are one sample, not two: counting both would shrink the ± falsely.
        better = twin.summary is None and run.summary is not None
        keep, drop = (run, twin) if better else (twin, run)
        seeds[run.seed] = keep
        notes.append(f"{drop.path} repeats the settings and seed of {keep.path}; it is left out")
    groups = []
    for seeds in members.values():
        ordered = tuple(seeds[seed] for seed in sorted(seeds))
        groups.append(Group(ordered[0].algorithm, ordered, {}))
    return groups, notes


def name_groups(groups: Iterable[Group]) -> list[Group]:
    """Give each group of a task the settings that tell it from the others of its algorithm.

    Settings of the problem do not count: one method on two problems has one name. Returns the
    groups in the order of tables: by method, then by their settings.
    """
    families: dict[str, list[Group]] = {}
    for group in groups:
        families.setdefault(group.algorithm, []).append(group)
    ordered = sorted(families, key=_rank)
    return [named for algorithm in ordered for named in _name_family(families[algorithm])]


def identity(settings: Settings) -> tuple[tuple[str, str], ...]:
    """Settings as a key of a dict: equal for equal settings."""
    return tuple(sorted((key, repr(value)) for key, value in settings.items()))


def differing(settings: Sequence[Settings]) -> list[str]:
    """The keys whose values are not the same in all of the settings."""
    keys = sorted(set().union(*settings))
    return [key for key in keys if len({repr(one.get(key)) for one in settings}) > 1]


def short_keys(keys: Iterable[str], config: Iterable[str]) -> dict[str, str]:
    """`algorithm.rho` -> `rho`, unless another key of the config ends the same way."""
    leaves = [key.rsplit(".", 1)[-1] for key in config]
    return {
        key: leaf
        if leaves.count(leaf := key.rsplit(".", 1)[-1]) <= 1
        else key.removeprefix("algorithm.")
        for key in keys
    }


def show_settings(settings: Settings) -> str:
    """`rho=0.1, start=zeros`."""
    return ", ".join(f"{key}={show_value(value)}" for key, value in settings.items())


def show_value(value: object) -> str:
    """A setting as text."""
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def by_value(values: Iterable[object]) -> tuple[tuple[int, float, str], ...]:
    """A sorting key for settings: numbers by size, then text, then what is not set."""
    return tuple(
        (0, float(value), "")
        if isinstance(value, (int, float))
        else (1 + (value is None), 0.0, str(value))
        for value in values
    )


def _name_family(family: Sequence[Group]) -> list[Group]:
    configs = {identity(group.method_settings): group.method_settings for group in family}
    differ = differing(list(configs.values()))
    every = set().union(*(settings_of(group.runs[0]) for group in family))
    short = short_keys(differ, every)
    order = sorted(configs, key=lambda one: by_value(_placed(configs[one], key) for key in differ))
    named = []
    for group in family:
        mine = group.method_settings
        named.append(
            replace(
                group,
                settings={short[key]: mine.get(key) for key in differ},
                variant=order.index(identity(mine)),
                variants=len(order),
            )
        )
    return sorted(named, key=lambda group: group.variant)


def _placed(settings: Settings, key: str) -> object:
    """A value, or its place where such values have an order of their own."""
    value = settings.get(key)
    places = _ORDERS.get(key, ())
    return places.index(value) if value in places else value


def _label(name: str, settings: Settings) -> str:
    return f"{name} ({show_settings(settings)})" if settings else name


def _rank(algorithm: str) -> tuple[int, str]:
    names = list(METHODS)
    return names.index(algorithm) if algorithm in names else len(names), algorithm
