"""Settings of runs: which of them count, how two runs differ, and how they read in names and tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cobo_dist.reports.reading import Run

Settings = Mapping[str, object]
"""Config keys and their values."""

# These say where a run lies, how it is resumed, what it measures, and how its work is laid on machines.
# They change its numbers by rounding at most. A preset is a name for keys that the config has beside it.
_IGNORED_KEYS = {
    "preset",
    *("run.seed", "run.dir", "run.overwrite", "run.resume", "run.checkpoint_every"),
    *("run.eval_every", "run.eval_splits", "run.log_weights_every"),
    *("run.device", "run.engine", "run.threads"),
    *("data.root", "data.eval_examples", "data.eval_batch_size"),
}
_IGNORED_SECTIONS = ("log.", "comm.")


def settings_of(run: Run) -> dict[str, object]:
    """Return the config of a run without its seed, its folder, and what changes none of its numbers."""
    return {
        key: value
        for key, value in run.config.items()
        if key not in _IGNORED_KEYS and not key.startswith(_IGNORED_SECTIONS)
    }


def identity(settings: Settings) -> tuple[tuple[str, str], ...]:
    """Return settings as a key of a dict: equal for equal settings."""
    return tuple(sorted((key, repr(value)) for key, value in settings.items()))


def differing(settings: Sequence[Settings]) -> list[str]:
    """Return the keys whose values are not the same in all of the settings."""
    keys = sorted(set().union(*settings))
    return [key for key in keys if len({repr(one.get(key)) for one in settings}) > 1]


def short_keys(keys: Iterable[str], config: Iterable[str]) -> dict[str, str]:
    """Map each key to its last part, unless another key of the config ends the same way.

    >>> short_keys(["algorithm.rho"], ["algorithm.rho", "algorithm.gamma"])
    {'algorithm.rho': 'rho'}
    >>> short_keys(["algorithm.sampling.name"], ["algorithm.sampling.name", "model.name"])
    {'algorithm.sampling.name': 'sampling.name'}
    """
    leaves = [key.rsplit(".", 1)[-1] for key in config]
    return {
        key: leaf
        if leaves.count(leaf := key.rsplit(".", 1)[-1]) <= 1
        else key.removeprefix("algorithm.")
        for key in keys
    }


def show_settings(settings: Settings) -> str:
    """Return settings as text.

    >>> show_settings({"rho": 0.10, "start": "zeros"})
    'rho=0.1, start=zeros'
    """
    return ", ".join(f"{key}={show_value(value)}" for key, value in settings.items())


def show_value(value: object) -> str:
    """Return one setting as text."""
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def sort_key(values: Iterable[object]) -> tuple[tuple[int, float, str], ...]:
    """Return a sorting key for settings: numbers by size, then text, then what is not set."""
    return tuple(
        (0, float(value), "")
        if isinstance(value, (int, float))
        else (1 + (value is None), 0.0, str(value))
        for value in values
    )


def rank(name: str, known: Iterable[str]) -> tuple[int, str]:
    """Return a sorting key: known names in their order, then all others by name."""
    names = list(known)
    return names.index(name) if name in names else len(names), name
