"""From `key=v1,v2` on the command line to the axes of a grid; every value stays as it was typed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cobo_dist.config import read_value
from cobo_dist.config.loading import QUOTED, key_of_argument
from cobo_dist.errors import ConfigError

SEED = "run.seed"
METHOD_KEYS = ("algorithm.name", "task.name")
"""Axes of methods and tasks: a sweep compares their values and never chooses among them."""
_TASK_SETTINGS = (
    "task.loss",
    "task.standardize",
)  # keys of a task that leave its examples as they are
_DATA_OF_PROBLEM = ("data.seed", "data.root", "data.file", "data.text_dir")

_ALIASES = {"seed": SEED}
_SET_BY_SWEEP = {
    "run.dir": "every run has its own folder under --out; give --out DIR instead",
    "run.overwrite": "finished runs are kept and others run again; to repeat a finished run, "
    "remove its folder or give another --out",
    "run.resume": "unfinished runs with a checkpoint go on by themselves; drop it",
}
_OPENING, _CLOSING = "[{", "]}"


@dataclass(frozen=True)
class Axis:
    """A key and its values as typed; an axis of one value is a setting of all runs.

    >>> read_axes(["optimizer.lr=0.1,0.2", "seed=0,1"])[0]
    Axis(key='optimizer.lr', values=('0.1', '0.2'))
    """

    key: str
    values: tuple[str, ...]

    @property
    def varies(self) -> bool:
        """Whether it has more than one value."""
        return len(self.values) > 1

    @property
    def is_problem(self) -> bool:
        """Whether its values are different problems, whose scores do not compare: sources, partitions."""
        of_task = self.key.startswith("task.") and self.key not in (*METHOD_KEYS, *_TASK_SETTINGS)
        return self.varies and (of_task or self.key in _DATA_OF_PROBLEM)

    @property
    def is_choice(self) -> bool:
        """Whether the sweep chooses its best value: not that of a seed, an algorithm or a problem."""
        known = self.key == SEED or self.key in METHOD_KEYS or self.is_problem
        return self.varies and not known


def read_axes(arguments: Sequence[str]) -> list[Axis]:
    """Return the axes of `key.path=v1,v2` arguments, in their order.

    Raises:
        ConfigError: not of that form, a key or value given twice, an empty value, or a key that the
            sweep sets itself.
    """
    axes: dict[str, Axis] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key or argument.startswith("-"):
            raise ConfigError(
                f"argument {argument!r} is not understood; write key.path=value or "
                "key.path=value,value, for example optimizer.lr=0.05,0.1, or see --help"
            )
        key = key_of_argument(_ALIASES.get(key, key), text)
        if key in _SET_BY_SWEEP:
            raise ConfigError(f"{argument} is not for a sweep: {_SET_BY_SWEEP[key]}")
        if key in axes:
            both = axes[key].values
            both += tuple(one for one in split_values(key, text) if not _find_same(key, one, both))
            raise ConfigError(f"{key} is given twice; write {key}={','.join(both)}")
        axes[key] = Axis(key, _read_values(key, text))
    return list(axes.values())


def _read_values(key: str, text: str) -> tuple[str, ...]:
    values = split_values(key, text)
    if len(values) == 1:
        return values
    if "" in values:
        raise ConfigError(f"{key}={text} has an empty value; remove a comma")
    for second, value in enumerate(values):
        if first := _find_same(key, value, values[:second]):
            same = value if first == value else f"{first} and {value}, the same,"
            raise ConfigError(f"{key}={text} has {same} twice; give every value once")
    return values


def _find_same(key: str, text: str, earlier: Sequence[str]) -> str:
    """Return the first of these values that means the same: 0.1, 0.10 and 1e-1 are one number."""
    value = read_value(key, text)
    for other in earlier:
        known = read_value(key, other)
        if known == value and isinstance(known, bool) == isinstance(value, bool):
            return other
    return ""


def split_values(key: str, text: str) -> tuple[str, ...]:
    """Split at the commas that stand outside brackets and quotes: `[64],[64,64]` is two values.

    As in YAML, a quote opens where a value may begin, so `it's` is a word.

    Raises:
        ConfigError: a bracket or quote that is not closed, where that leaves commas in doubt.
    """
    values, start, place = [], 0, 0
    depth, quote, may_begin = 0, "", True
    while place < len(text):
        letter = text[place]
        if letter in "'\"" and may_begin:
            quoted = QUOTED.match(text, place)
            if quoted is None:
                quote = letter
                break
            place, may_begin = quoted.end(), False
            continue
        if letter in _OPENING:
            depth += 1
        elif letter in _CLOSING:
            depth = max(depth - 1, 0)
        elif letter == "," and not depth:
            values.append(text[start:place].strip())
            start = place + 1
        may_begin = letter in ",[{:" or (may_begin and letter == " ")
        place += 1
    if (depth or quote) and "," in text:
        what = f"quote {quote}" if quote else "bracket"
        raise ConfigError(
            f"{key}={text} has a {what} that is not closed; close it or quote the value"
        )
    values.append(text[start:].strip())
    return tuple(values)
