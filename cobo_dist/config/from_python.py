"""The config as Python code gives it: a path, nested dictionaries or a `Config`, and overrides."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from pydantic import BaseModel

from cobo_dist.config.checks import check_across
from cobo_dist.config.loading import (
    load_plugins_of,
    read_arguments,
    read_file,
    refuse_moved,
    resolve,
)
from cobo_dist.config.schema import Config, meant_key
from cobo_dist.errors import ConfigError
from cobo_dist.plugins import load_plugins
from cobo_dist.registry import variant_of

Given = str | os.PathLike[str] | Mapping[str, Any] | Config | None
Overrides = Sequence[str] | Mapping[str, Any]


def config_of(config: Given = None, overrides: Overrides = ()) -> Config:
    """Return the config of a YAML file's path, of nested dictionaries, or as it is; None: the quickstart.

    `overrides` win: `["run.rounds=500"]` as on the command line, or `{"run.rounds": 500}`.

    >>> config_of({"algorithm": {"name": "local"}}, {"run.rounds": 500}).run.rounds
    500

    Raises:
        ConfigError: anything wrong with either, in one line.
    """
    if isinstance(config, Config) and not overrides:
        load_plugins(config.plugins)
        check_across(config)
        return config
    above = _nested(overrides) if isinstance(overrides, Mapping) else _arguments(overrides)
    if isinstance(config, str | os.PathLike):
        path, lines = os.fspath(config), dict[str, int]()
        load_plugins_of(read_file(path, {}), above, beside=path)
        resolved = resolve(read_file(path, lines), above, f"--config {path}", lines)
        refuse_moved(path, above, resolved)
        return resolved
    if config is not None and not isinstance(config, Config | Mapping):
        raise ConfigError(
            f"config={config!r} has type {type(config).__name__}; give the path of a YAML file, nested "
            "dictionaries or a Config"
        )
    below = _plain({} if config is None else config)
    load_plugins_of(below, above)
    return resolve(below, above)


def _arguments(overrides: Sequence[str]) -> dict[str, Any]:
    if isinstance(overrides, str) or not all(isinstance(one, str) for one in overrides):
        raise ConfigError(
            f"overrides={overrides!r} is no list of texts; write ['run.rounds=500'] or "
            "{'run.rounds': 500}"
        )
    return read_arguments(overrides)


def _nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted keys as nested dictionaries."""
    tree: dict[str, Any] = {}
    for key, value in overrides.items():
        plain = _plain(value)
        *path, last = (meant_key(str(key)) if isinstance(plain, str) else str(key)).split(".")
        branch = tree
        for step in path:
            branch = branch.setdefault(step, {})
            if not isinstance(branch, dict):
                raise ConfigError(
                    f"overrides: {step} in {key} already has a value; drop one of the two"
                )
        held = branch.get(last)
        branch[last] = held | plain if isinstance(held, dict) and isinstance(plain, dict) else plain
    return tree


def _add_names(section: BaseModel, given: dict[str, Any]) -> None:
    """Add the names of a section and of those in it."""
    if "name" in type(section).model_fields:
        given["name"] = getattr(section, "name")  # noqa: B009
    for key, field in type(section).model_fields.items():
        if variant_of(field):
            _add_names(getattr(section, key), given.setdefault(key, {}))


def _plain(value: Any) -> Any:
    """Return a value as YAML would give it: dictionaries, lists, texts, numbers."""
    if isinstance(value, BaseModel):
        # Only what was set, since a few keys mean more than their default; names tell variants apart.
        given = value.model_dump(mode="json", by_alias=True, exclude_unset=True)
        _add_names(value, given)
        return given
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return str(value) if isinstance(value, PurePath) else value
