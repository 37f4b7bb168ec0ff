"""Groups runs that differ only in their seed, and names the groups by what tells them apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cobo_dist.reports.reading import METRICS, Run
from cobo_dist.reports.series import Series

ORDER = (
    "local",
    "fedavg",
    "finetuned_fedavg",
    "ditto",
    "ifca",
    "federated_clustering",
    "validation_based",
    "cobo",
    "oracle",
)
"""Order of the methods in tables and figures, as in the paper; others follow by name."""

# Where a run lies, how it is resumed and what it logs to change none of its numbers.
_NO_SETTING = (
    *("run.seed", "run.dir", "run.overwrite", "run.resume", "run.checkpoint_every", "data.root"),
    "log.",
)


@dataclass(frozen=True, eq=False)  # compared by identity: the runs hold arrays
class Group:
    """The seeds of one method with one set of settings, in order of their seeds.

    `settings` tells it from the other groups of its algorithm, as in `rho=0.1`; empty where there
    is no other. `variant` counts those groups from 0.
    """

    task: str
    algorithm: str
    settings: str
    variant: int
    runs: tuple[Run, ...]

    @property
    def label(self) -> str:
        """`cobo`, or `cobo (rho=0.1)` beside another cobo."""
        return f"{self.algorithm} ({self.settings})" if self.settings else self.algorithm

    @property
    def scored(self) -> tuple[Run, ...]:
        """The runs whose final values count: the finished ones, or all where none has finished."""
        return tuple(run for run in self.runs if run.summary is not None) or self.runs


def group_runs(runs: Iterable[Run]) -> tuple[dict[str, list[Group]], list[str]]:
    """Sort runs into groups by task, and say which runs were left out as repetitions.

    Returns `{task: groups in the order of tables}` and the notes.
    """
    notes: list[str] = []
    members: dict[tuple[tuple[str, str], ...], dict[int, Run]] = {}
    for run in runs:
        settings = settings_of(run)
        seeds = members.setdefault(tuple(sorted((k, repr(v)) for k, v in settings.items())), {})
        twin = seeds.get(run.seed)
        if twin is None:
            seeds[run.seed] = run
            continue
        # Two runs of one seed are one sample, not two: counting both would shrink the ± falsely.
        better = twin.summary is None and run.summary is not None
        keep, drop = (run, twin) if better else (twin, run)
        seeds[run.seed] = keep
        notes.append(f"{drop.path} repeats the settings and seed of {keep.path}; it is left out")
    families: dict[tuple[str, str], list[list[Run]]] = {}
    for seeds in members.values():
        ordered = [seeds[seed] for seed in sorted(seeds)]
        families.setdefault((ordered[0].task, ordered[0].algorithm), []).append(ordered)
    tasks: dict[str, list[Group]] = {}
    for (task, algorithm), family in sorted(families.items(), key=lambda item: _rank(*item[0])):
        tasks.setdefault(task, []).extend(_name_family(task, algorithm, family))
    return tasks, notes


def settings_of(run: Run) -> dict[str, object]:
    """The config of a run without its seed, its folder, and what changes none of its numbers."""
    return {
        key: value
        for key, value in run.config.items()
        if key not in _NO_SETTING and not key.startswith(_NO_SETTING[-1])
    }


def task_metric(groups: Sequence[Group]) -> str:
    """What the task is judged by: accuracy, perplexity, or loss where there is neither."""
    for metric in METRICS:
        for run in (run for group in groups for run in group.runs):
            logged = any(name == metric for _, name in run.evals)
            if logged or (run.summary is not None and metric in run.summary.final):
                return metric
    return "loss"


def task_split(groups: Sequence[Group]) -> str:
    """`test`, or `validation` where no run of the task was tested: splits are never mixed."""
    splits = {split for group in groups for run in group.runs for split, _ in run.evals}
    return "validation" if "validation" in splits and "test" not in splits else "test"


def mean_over_clients(run: Run, split: str, metric: str) -> Series:
    """The metric of the average client by round: as logged, else averaged from the clients."""
    clients = run.evals.get((split, metric), {})
    if None in clients:
        return clients[None]
    columns: dict[int, list[float]] = {}
    for series in clients.values():
        for number, value in series.items():
            columns.setdefault(number, []).append(value)
    return {number: sum(values) / len(values) for number, values in sorted(columns.items())}


def _rank(task: str, algorithm: str) -> tuple[str, int, str]:
    place = ORDER.index(algorithm) if algorithm in ORDER else len(ORDER)
    return task, place, algorithm


def _name_family(task: str, algorithm: str, family: list[list[Run]]) -> list[Group]:
    configs = [settings_of(runs[0]) for runs in family]
    keys = sorted(set().union(*configs))
    differ = [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]
    short = {key: _short(key, keys) for key in differ}
    named = [
        (", ".join(f"{short[key]}={_show(config.get(key))}" for key in differ), runs)
        for config, runs in zip(configs, family, strict=True)
    ]
    return [
        Group(task, algorithm, settings, variant, tuple(runs))
        for variant, (settings, runs) in enumerate(named)
    ]


def _short(key: str, keys: Sequence[str]) -> str:
    """`algorithm.rho` -> `rho`, unless another key of the config ends the same way."""
    leaf = key.rsplit(".", 1)[-1]
    if sum(other.rsplit(".", 1)[-1] == leaf for other in keys) == 1:
        return leaf
    return key.removeprefix("algorithm.")


def _show(value: object) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
