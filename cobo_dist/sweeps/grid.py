"""From axes to runs: every combination once, validated and with a unique name."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cobo_dist.config import Config, groups, load_config, owners_of, variant_names
from cobo_dist.errors import ConfigError
from cobo_dist.sweeps.axes import SEED, Axis

WITH_VALIDATION = "run.eval_splits=[validation,test]"
MAX_METHOD_CHARACTERS = 80
MAX_NAME_CHARACTERS = 120  # logs/<name>.log must fit into the 255 bytes of most file systems
HASH_CHARACTERS = 8


@dataclass(frozen=True)
class Run:
    """One training of the sweep.

    `method` is the task and the algorithm, the values of `problem`, and the config file where two files
    share these. `varied` holds the choice axes that this method has, `problem` the axes of the problem:
    key -> value in the resolved config.
    """

    name: str
    method: str
    file: str | None
    arguments: tuple[str, ...]
    config: Config
    varied: Mapping[str, object]
    problem: Mapping[str, object] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.config.run.seed


def expand(files: Sequence[str], axes: Sequence[Axis]) -> list[Run]:
    """Return all runs: files outermost, then the axes as given, seeds innermost.

    A key that only other variants of its section have is left out of a combination, and what is
    then equal is run once. Where a setting is to be chosen, validation data are evaluated too.

    Raises:
        ConfigError: a config that training would refuse, or a key that no combination has.
    """
    axes = sorted(axes, key=lambda axis: axis.key == SEED)  # stable: the others keep their order
    combinations = list(_combinations(files, axes))
    unused = {axis.key for axis in axes} - {key for _, kept in combinations for key in kept}
    if unused:  # loading the config says to which variant the key belongs
        combinations = list(_combinations(files, axes, unused))
    choices = {axis.key for axis in axes if axis.is_choice}
    problems = {axis.key for axis in axes if axis.is_problem}
    runs: dict[str, Run] = {}
    values: dict[
        tuple[str | None, str], dict[str, str]
    ] = {}  # of the first of equal runs of a file
    for file, kept in combinations:
        arguments = tuple(f"{key}={value}" for key, value in kept.items())
        config = _load(file, arguments, several=len(files) > 1)
        if choices and (extended := _with_validation(file, arguments, config)):
            arguments, config = (*arguments, WITH_VALIDATION), extended
        varied, problem = (
            {key: _look_up(config, key) for key in kept if key in some}
            for some in (choices, problems)
        )
        identity = _identity(config)
        _refuse_same_values(values.setdefault((file, identity), kept), kept)
        runs.setdefault(identity, Run("", "", file, arguments, config, varied, problem))
    return _with_names(list(runs.values()), files)


def _refuse_same_values(first: Mapping[str, str], second: Mapping[str, str]) -> None:
    """Refuse two settings of the same keys that give the same run, such as two spellings of a value."""
    for key in first:
        if first.keys() == second.keys() and first[key] != second[key]:
            raise ConfigError(
                f"{key}={first[key]} and {key}={second[key]} are the same; give every value once"
            )


def _load(file: str | None, arguments: Sequence[str], several: bool) -> Config:
    try:
        return load_config(file, arguments)
    except ConfigError as refusal:
        unclear = several and str(file) not in str(refusal)
        raise ConfigError(f"--config {file}: {refusal}" if unclear else str(refusal)) from None


Combination = tuple[str | None, dict[str, str]]


def _combinations(
    files: Sequence[str], axes: Sequence[Axis], keep: Collection[str] = ()
) -> Iterator[Combination]:
    """Every combination, without the keys (except those to keep) that only other variants have."""
    sources: Sequence[str | None] = files or [None]
    for file, values in itertools.product(
        sources, itertools.product(*(axis.values for axis in axes))
    ):
        settings = dict(zip((axis.key for axis in axes), values, strict=True))
        typed = {
            group: settings[f"{group}.name"] for group in groups() if f"{group}.name" in settings
        }
        names = _names(file, typed, settings.get("plugins"))
        yield (
            file,
            {
                key: value
                for key, value in settings.items()
                if key in keep or not _is_foreign(key, names)
            },
        )


def _names(file: str | None, typed: Mapping[str, str], plugins: str | None) -> Mapping[str, str]:
    """Return the variant of each section, with the plug-ins loaded that `_is_foreign` must know."""
    try:
        return variant_names(file, typed, plugins)
    except ConfigError:
        return {}  # loading the config says what is wrong


def _is_foreign(key: str, names: Mapping[str, str]) -> bool:
    """Whether the key exists, but only in other variants of its section, or of a group in it."""
    for group, variant in groups().items():
        if key.startswith(f"{group}.") and names.get(group) in variant.names:
            owners = owners_of(group, key.removeprefix(f"{group}."))
            if owners and names[group] not in owners:
                return True
    return False


def _with_validation(file: str | None, arguments: Sequence[str], config: Config) -> Config | None:
    """The config with validation data evaluated too, unless its splits were given or it has none."""
    without = getattr(config.task, "validation_fraction", None) == 0
    if without or "eval_splits" in config.run.model_fields_set:
        return None
    try:
        return load_config(file, [*arguments, WITH_VALIDATION])
    except ConfigError:
        return None  # the config without it is fine, so it is the task that has no such data


def _look_up(config: Config, key: str) -> object:
    value: Any = config.model_dump(mode="json", by_alias=True)
    for step in key.split("."):
        value = value[step]
    return value


def _identity(config: Config) -> str:
    return config.to_yaml(exclude={"run": {"dir", "overwrite", "resume"}})


# -- names -------------------------------------------------------------------------------------------


def _with_names(runs: Sequence[Run], files: Sequence[str]) -> list[Run]:
    """Name the runs: task-algorithm, what varies, seed; safe for file systems and unique."""
    short = short_keys({key for run in runs for key in (*run.problem, *run.varied)})
    methods = _methods(runs, short, _file_labels(files))
    names = [
        _shorten("-".join([method, *_parts(run.varied, short), f"s{run.seed}"]), run)
        for method, run in zip(methods, runs, strict=True)
    ]
    # Some file systems take Name and name for the same.
    common = Counter(name.lower() for name in names)
    return [
        replace(
            run,
            method=method,
            name=f"{name}-{_digest_of(run)}" if common[name.lower()] > 1 else name,
        )
        for run, method, name in zip(runs, methods, names, strict=True)
    ]


def _methods(runs: Sequence[Run], short: Mapping[str, str], files: Mapping[str, str]) -> list[str]:
    """Return the method of each run, another one for each problem: runs of one are compared."""
    labels = ["-".join([_method(run), *_parts(run.problem, short)]) for run in runs]
    homes: dict[str, set[str | None]] = {}
    problems: dict[str, set[str]] = {}
    for run, label in zip(runs, labels, strict=True):
        homes.setdefault(label, set()).add(run.file)
        problems.setdefault(label.lower(), set()).add(repr(dict(run.problem)))
    methods = []
    for run, label in zip(runs, labels, strict=True):
        method = f"{label}-{files[run.file]}" if run.file and len(homes[label]) > 1 else label
        unclear = len(problems[label.lower()]) > 1  # values that only other signs tell apart
        if unclear or len(method) > MAX_METHOD_CHARACTERS:
            digest = _digest([_method(run), run.file, dict(run.problem)])
            method = f"{method[: MAX_METHOD_CHARACTERS - HASH_CHARACTERS - 1]}-{digest}"
        methods.append(method)
    return methods


def _method(run: Run) -> str:
    return f"{run.config.task.name}-{run.config.algorithm.name}"


def _file_labels(files: Sequence[str]) -> dict[str, str]:
    """A short name for each config file: its stem, or its whole path where stems are the same."""
    stems = Counter(_safe(Path(file).stem) for file in files)
    return {
        file: _safe(Path(file).stem)
        if stems[_safe(Path(file).stem)] == 1
        else _safe(str(Path(file).with_suffix("")))
        for file in files
    }


def short_keys(keys: set[str]) -> dict[str, str]:
    """`optimizer.lr` -> `lr`, `algorithm.sampling.name` -> `sampling`, as long as that is clear."""
    short = {key: _last(key) for key in keys}
    common = Counter(short.values())
    return {key: key if common[name] > 1 else name for key, name in short.items()}


def _last(key: str) -> str:
    *above, last = key.split(".")
    return above[-1] if last == "name" and above else last


def _parts(varied: Mapping[str, object], short: Mapping[str, str]) -> list[str]:
    return [
        f"{_safe(short[key])}{'' if is_number(value) else '='}{_safe(show(value))}"
        for key, value in varied.items()
    ]


def is_number(value: object) -> bool:
    """Whether values of this kind have an order, and so an edge."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def show(value: object) -> str:
    """A resolved value in few letters, without losing a digit: 0.1, true, [64, 64]."""
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=+-]+", "_", text).strip("_.")


def _shorten(name: str, run: Run) -> str:
    if len(name) <= MAX_NAME_CHARACTERS:
        return name
    return f"{name[: MAX_NAME_CHARACTERS - HASH_CHARACTERS - 1]}-{_digest_of(run)}"


def _digest_of(run: Run) -> str:
    """A name for what varies that does not depend on what else is in the sweep."""
    return _digest([_method(run), run.file, run.seed, {**run.problem, **run.varied}])


def _digest(content: object) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_CHARACTERS]
