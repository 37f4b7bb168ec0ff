"""One line for the first mistake in a config: the key, the value, the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from cobo_dist.callbacks.registry import CALLBACKS
from cobo_dist.config.schema import (
    all_keys,
    callback_keys,
    groups,
    groups_above,
    keys_of,
    owners_of,
)
from cobo_dist.plugins import broken_plugins
from cobo_dist.registry import UNKNOWN_VARIANT
from cobo_dist.yaml_text import core_value

MAX_SHOWN_CHARACTERS = 500
"""Longer values are cut in messages."""


def explain(error: ValidationError, given: Mapping[str, Any]) -> str:
    """Return one line for the first mistake, and how many more there are."""
    mistakes = error.errors(include_url=False)
    first = mistakes[0]
    path = _path(first)
    more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    return _message(path, first, given) + more


def place_of(error: ValidationError) -> str:
    """Return the dotted key that the first mistake is at; for an item of a list, that of the list."""
    mistake = error.errors(include_url=False)[0]
    path = _path(mistake)
    if mistake["type"] == UNKNOWN_VARIANT:
        path.append("name")
    return ".".join(path[:-1] if isinstance(mistake["loc"][-1], int) else path)


def _path(mistake: Any) -> list[str]:
    return [str(step) for step in mistake["loc"]]


def _message(path: Sequence[str], mistake: Any, given: Mapping[str, Any]) -> str:
    key, value, kind = ".".join(path), mistake.get("input"), mistake["type"]
    if kind == "extra_forbidden":
        return _unknown_key(path, value, given)
    if kind == "missing":
        return f"{key} must be given"
    if kind in (UNKNOWN_VARIANT, "literal_error"):
        names = _literals(mistake.get("ctx", {}))
        if kind == UNKNOWN_VARIANT:
            names = list(CALLBACKS if path[0] == "callbacks" else groups()[key].names)
        if kind == UNKNOWN_VARIANT:
            key, value = f"{key}.name", value.get("name") if isinstance(value, dict) else value
        near = difflib.get_close_matches(str(value).lower(), names, n=1)
        hint = f"; did you mean {near[0]}?" if near else broken_plugins()
        return f"{key}={_show(value)} is none of {', '.join(names)}{hint}"
    if kind in ("model_attributes_type", "model_type", "dict_type"):
        if path[0] == "callbacks":
            return f"{key}={_show(value)} must be a group of keys, for example {{name: early_stopping}}"
        return must_be_group(key, value)
    hint = _remedy(kind, key, value, given)
    return f"{key}={_show(value)} is refused: {_lower(mistake['msg'])}{hint}"


def _remedy(kind: str, key: str, value: object, given: Mapping[str, Any]) -> str:
    """Return what to write instead of a value of the wrong type; empty if that is not clear."""
    plain = core_value(value) if isinstance(value, str) else None
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f"; write {int(value)}"
    numbers = {"int_type": (int,), "float_type": (int, float)}.get(kind, ())
    if type(plain) in numbers:
        return "; write it without quotes"
    section, name = key.partition(".")[0], _name_in(given, key)
    if kind in ("tuple_type", "too_short") and (name or not isinstance(value, dict)):
        keys = keys_of(groups()[section].section(name), f"{section}.") if name else all_keys()
        field = next((field for known, field in keys if known == key), None)
        example = field.default if field else None
        if isinstance(example, tuple) and example:
            return f", for example {key}=[{', '.join(map(str, example))}]"
        if name and field and field.description and kind == "tuple_type":
            return f": {field.description}"
    return ""


def _name_in(given: Mapping[str, Any], key: str) -> str:
    """Return the name that a key's section has; empty where its keys do not depend on a name."""
    section = key.partition(".")[0]
    name = given[section].get("name") if isinstance(given.get(section), dict) else None
    return str(name) if section in groups() and name in groups()[section].names else ""


def _literals(context: Mapping[str, Any]) -> list[str]:
    return re.findall(r"'([^']*)'", str(context.get("expected", "")))


def _lower(message: str) -> str:
    message = message.removeprefix("Value error, ").replace("Input should", "it must")
    message = re.sub(r"^\w+ should have at least 1 item.*", "it must not be empty", message)
    message = message.replace("valid tuple", "list").replace("a valid boolean", "true or false")
    return message[:1].lower() + message[1:]


def _show(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= MAX_SHOWN_CHARACTERS else f"{shown[:MAX_SHOWN_CHARACTERS]}..."


def is_group(key: str) -> bool:
    """Return whether other keys stand below a key."""
    return any(known.startswith(f"{key}.") for known, _ in all_keys())


def must_be_group(key: str, value: object) -> str:
    """Return the message for a value where a section is needed."""
    inside = [known for known, _ in all_keys() if known.startswith(f"{key}.")]
    if not inside:  # an item of a list
        return f"{key}={_show(value)} must be a group of keys"
    first = f"{key}.name" if f"{key}.name" in inside else inside[0]
    names = groups()[key].names if key in groups() else ()
    name = value if isinstance(value, str) and value in names else "..."
    return f"{key}={_show(value)} must be a group of keys, for example {first}={name}"


def _unknown_key(path: Sequence[str], value: object, given: Mapping[str, Any]) -> str:
    while isinstance(value, dict) and value:  # the first key in a group says more
        path, value = [*path, next(iter(value))], next(iter(value.values()))
    key = ".".join(path)
    if "<<" in path:
        return f"{key}: there are no merge keys in YAML 1.2; write the keys themselves"
    section, known_keys = path[0], list(dict.fromkeys(known for known, _ in all_keys()))
    if section == "callbacks":
        known_keys = [f"callbacks.{path[1]}.{_last(k)}" for k in _keys_of_callback(path, given)]
    if any("." in step for step in path) and (key in known_keys or is_group(key)):
        nested = ": {".join(key.split("."))
        return f"{key} is written as one key; write {nested}: ...{'}' * key.count('.')}"
    for group in groups_above(key):
        owners, name = owners_of(group, key.removeprefix(f"{group}.")), name_at(given, group)
        if owners and name not in owners:
            return (
                f"{key} is no key of {group}.name={name}; it belongs to "
                f"{', '.join(owners)}: drop it or set {group}.name={owners[0]}"
            )
    return f"{key[:MAX_SHOWN_CHARACTERS]} is not a known key; {_nearest(key, known_keys, given)}"


def name_at(given: Mapping[str, Any], group: str) -> str:
    """Return the name that a section or a group in it has; empty where it has none."""
    found: Any = given
    for step in (*group.split("."), "name"):
        found = found.get(step) if isinstance(found, Mapping) else None
    return found if isinstance(found, str) else ""


def _keys_of_callback(path: Sequence[str], given: Mapping[str, Any]) -> list[str]:
    """Return the keys of the callback that a path leads into: `callbacks.0.patience`."""
    name = given["callbacks"][int(path[1])]["name"]
    return [key for key, _ in callback_keys(name)]


def _nearest(key: str, known_keys: Sequence[str], given: Mapping[str, Any]) -> str:
    """Return a hint at the known key that was probably meant."""
    scores = {
        known: (_likeness(key, known), _likeness(_last(key), _last(known))) for known in known_keys
    }
    near = [known for known, (whole, last) in scores.items() if whole >= 0.5 and last >= 0.6]
    # The last step may be right, and the section wrong.
    near = near or [known for known in known_keys if _last(known) == _last(key)]
    if not near:
        return "--help all lists the keys"
    best = max(near, key=lambda known: sum(scores[known]))
    section, _, rest = best.partition(".")
    owners = owners_of(section, rest) if section in groups() else []
    group = given.get(section)
    if owners and isinstance(group, dict) and group.get("name") not in owners:
        return f"did you mean {best}, a key of {section}.name={owners[0]}?"
    return f"did you mean {best}?"


def _likeness(one: str, other: str) -> float:
    """Return how alike two words are, from 0 to 1."""
    matcher = difflib.SequenceMatcher(None, one.lower(), other)
    return matcher.ratio() if matcher.real_quick_ratio() >= 0.5 else 0.0


def _last(key: str) -> str:
    return key.rpartition(".")[2]
