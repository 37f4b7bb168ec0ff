"""From a YAML file and `key.path=value` arguments to a checked `Config`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cobo_dist.config.messages import explain, must_be_group
from cobo_dist.config.schema import VARIANTS, Config, Loader, all_keys, check_across
from cobo_dist.errors import ConfigError


def load_config(file: str | None, arguments: Sequence[str]) -> Config:
    """Return the config of a YAML file (if any) and `key.path=value` arguments.

    >>> load_config(None, ["algorithm.rho=0.2", "run.rounds=500"]).run.rounds
    500

    Raises:
        ConfigError: anything wrong with either, in one line.
    """
    from_file = {} if file is None else _read_yaml(file)
    from_arguments = _read_arguments(arguments)
    for section in VARIANTS:
        _drop_other_variant(section, from_file, from_arguments)
    try:
        merged = _merge(from_file, from_arguments)
    except RecursionError:
        raise ConfigError("the config contains itself (a YAML alias inside its anchor)") from None
    _name_variants(merged)
    try:
        config = Config.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(explain(error, merged)) from None
    check_across(config)
    return config


def variant_names(file: str | None, names: Mapping[str, str]) -> dict[str, str]:
    """Return the variant that each section has with `{"algorithm": "local", ...}` typed over a YAML file.

    Nothing else is checked.

    Raises:
        ConfigError: the file cannot be read, or a section is no group of keys.
    """
    arguments = _read_arguments([f"{section}.name={name}" for section, name in names.items()])
    merged = _merge({} if file is None else _read_yaml(file), arguments)
    _name_variants(merged)
    groups = {section: merged[section] for section in VARIANTS}
    return {name: str(one["name"]) for name, one in groups.items() if isinstance(one, dict)}


def _name_variants(merged: dict[str, Any]) -> None:
    """Fill in names that are not given: the quickstart's, and for the paper's tasks the paper's models."""
    for section, default in (("task", "digits"), ("algorithm", "cobo"), ("model", "mlp")):
        if isinstance(given := merged.setdefault(section, {}), dict):
            task = merged["task"].get("name") if isinstance(merged["task"], dict) else None
            if section == "model" and task in ("cross_silo", "cross_device"):
                default = "resnet9"
            if section == "model" and task == "language":
                default = "gpt2"
            given.setdefault("name", default)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=Loader)
    # PyYAML raises errors other than its own where a tag does not fit its value: `!!bool x`.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise ConfigError(f"{where}{line} is not valid YAML: {problem}") from None


def _read_yaml(file: str) -> dict[str, Any]:
    path = Path(file)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"--config {path} does not exist; give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"--config {path} cannot be read: {reason}") from None
    content = _parse(text, f"--config {path}")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"--config {path} holds a {type(content).__name__}; it must hold sections such as "
            "`run:` and `algorithm:` with keys below them"
        )
    return content


def _read_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    """Return `key.path=value` arguments as nested dictionaries."""
    tree: dict[str, Any] = {}
    texts = {key for key, field in all_keys() if field.annotation is str}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key or argument.startswith("-"):
            raise ConfigError(
                f"argument {argument!r} is not understood; write key.path=value, for example "
                "run.rounds=500, or see --help"
            )
        branch = tree
        *path, last = key.split(".")
        for step in path:
            branch = branch.setdefault(step, {})
            if not isinstance(branch, dict):
                raise ConfigError(f"argument {argument!r}: {step} already has a value")
        value = _parse(text, f"argument {argument!r}") if text else ""
        # Text stays as typed: run.dir=0123 is no octal number, and run.dir=on no truth value.
        branch[last] = text if key in texts and not isinstance(value, str) else value
    return tree


def _drop_other_variant(section: str, below: dict[str, Any], above: dict[str, Any]) -> None:
    """Let `algorithm.name=local` on the command line win over a file written for cobo.

    Drop the keys of the file that only the old name has.
    """
    base, over = below.get(section), above.get(section)
    if not isinstance(base, dict) or not isinstance(over, dict) or "name" not in over:
        return
    name = over["name"]
    if not isinstance(name, str) or name not in VARIANTS[section] or name == base.get("name"):
        return
    kind = VARIANTS[section][name]
    known = {key for other in VARIANTS[section].values() for key in other.model_fields}
    for key in [key for key in base if key in known and key not in kind.model_fields]:
        del base[key]


def _merge(below: Mapping[str, Any], above: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Return the nested keys of both; `above` wins."""
    merged = dict(below)
    for key, value in above.items():
        held = merged.get(key)
        if isinstance(value, dict) and held is not None:
            if not isinstance(held, dict):
                raise ConfigError(must_be_group(f"{at}{key}", held))
            value = _merge(held, value, f"{at}{key}.")
        merged[key] = value
    return merged
