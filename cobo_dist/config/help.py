"""The text of `train --help`: every key with its type, default and meaning."""

from __future__ import annotations

from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from cobo_dist.callbacks.callback import CallbackSection
from cobo_dist.callbacks.registry import CALLBACKS
from cobo_dist.config.schema import (
    QUICKSTART,
    VARIANTS,
    Config,
    callback_keys,
    callback_section,
    keys_of,
    section_of,
)


def describe_keys() -> str:
    """Return the text of `--help`: every key with type, default and one line of meaning."""
    lines = []
    for section, field in Config.model_fields.items():
        if not _kinds(section, field):
            lines += ["", *(f"  {line}" for line in _described(section, field))]
        for kind in _kinds(section, field):
            doc = _first_line(kind)
            name = kind.model_fields["name"].default if section in VARIANTS else ""
            title = f"{section}.name={name}: {doc}" if name else f"{section}: {doc}"
            default = " (default)" if name == QUICKSTART.get(section, ()) else ""
            lines.append(f"\n{title}{default}")
            for key, info in keys_of(kind, f"{section}."):
                if section in VARIANTS and key == f"{section}.name":
                    continue
                lines += [f"  {line}" for line in _described(key, info)]
    for name in CALLBACKS:
        lines.append(f"\na callback, name={name}: {_first_line(callback_section(name))}")
        for key, info in callback_keys(name):
            if key != "callbacks.name":
                lines += [f"  {line}" for line in _described(key.partition(".")[2], info)]
    return "\n".join(lines).strip()


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def _kinds(section: str, field: FieldInfo) -> list[Any]:
    """Return the classes of a section: one, or one for each of its names; none of a plain key."""
    if section in VARIANTS:
        return [section_of(section, name) for name in VARIANTS[section]]
    return [field.annotation] if hasattr(field.annotation, "model_fields") else []


def _described(key: str, field: FieldInfo) -> list[str]:
    head = f"{key}  ({_type_name(field.annotation)}, default {_default(field)})"
    return [head, f"    {field.description}"]


def _default(field: FieldInfo) -> str:
    value = field.default
    if value == "":
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)).replace("'", "") if isinstance(value, tuple) else str(value)


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) in (Annotated, Union):
        return _type_name(get_args(annotation)[0])
    options = get_args(annotation)
    if options and all(isinstance(option, str) for option in options):
        return "|".join(options)
    if get_origin(annotation) is tuple:
        return f"list of {_type_name(options[0])}"
    if isinstance(annotation, type) and issubclass(annotation, CallbackSection):
        return "callback"
    return {int: "int", float: "float", bool: "bool", str: "text"}.get(annotation, str(annotation))
