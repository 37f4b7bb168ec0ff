"""One line for the first mistake in a config: the key, the value, the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from cobo_dist.config.schema import VARIANTS, Config, all_keys, owners_of


def explain(error: ValidationError, given: Mapping[str, Any]) -> str:
    """Return one line for the first mistake, and how many more there are."""
    mistakes = error.errors(include_url=False)
    first = mistakes[0]
    path = [str(step) for step in first["loc"]]
    # pydantic puts a variant's name into the path: algorithm.cobo.rho means algorithm.rho.
    if len(path) > 1 and path[0] in VARIANTS and path[1] in VARIANTS[path[0]]:
        del path[1]
    more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    return _message(path, first, given) + more


def _message(path: list[str], mistake: Any, given: Mapping[str, Any]) -> str:
    key, value, kind = ".".join(path), mistake.get("input"), mistake["type"]
    if kind == "extra_forbidden":
        while isinstance(value, dict) and value and path[0] not in Config.model_fields:
            path, value = [*path, str(next(iter(value)))], next(iter(value.values()))
        return _unknown_key(path, given)
    if kind in ("union_tag_invalid", "literal_error"):
        names = list(VARIANTS[key]) if kind == "union_tag_invalid" else _literals(mistake["ctx"])
        if kind == "union_tag_invalid":
            key, value = f"{key}.name", value.get("name") if isinstance(value, dict) else value
        near = difflib.get_close_matches(str(value), names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{key}={value!r} is none of {', '.join(names)}{hint}"
    if kind in ("model_attributes_type", "model_type", "dict_type"):
        return must_be_group(key, value)
    return f"{key}={value!r} is refused: {_lower(mistake['msg'])}"


def _literals(context: Mapping[str, Any]) -> list[str]:
    return re.findall(r"'([^']*)'", str(context.get("expected", "")))


def _lower(message: str) -> str:
    message = message.removeprefix("Value error, ").replace("Input should", "it must")
    return message[:1].lower() + message[1:]


def must_be_group(key: str, value: object) -> str:
    """Return the message for a value where a section is needed."""
    inside = [known for known, _ in all_keys() if known.startswith(f"{key}.")]
    example = f", for example {inside[0]}=..." if inside else ""
    return f"{key}={value!r} must be a group of keys{example}"


def _unknown_key(path: list[str], given: Mapping[str, Any]) -> str:
    key = ".".join(path)
    section = path[0]
    owners = owners_of(section, ".".join(path[1:])) if section in VARIANTS else []
    if owners:
        return (
            f"{key} is no key of {section}.name={given[section]['name']}; it belongs to "
            f"{', '.join(owners)}: drop it or set {section}.name={owners[0]}"
        )
    known_keys = [known for known, _ in all_keys()]
    near = difflib.get_close_matches(key, known_keys, n=1, cutoff=0.5)
    if not near:  # the last step may be right, and the section wrong
        near = [known for known in known_keys if known.split(".")[-1] == path[-1]][:1]
    hint = f"did you mean {near[0]}?" if near else "see --help for all keys"
    return f"{key} is not a known key; {hint}"
