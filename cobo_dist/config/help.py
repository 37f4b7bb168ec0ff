"""The texts of `--help`: the sections of the config, one section or key, or all keys."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from cobo_dist.callbacks.callback import CallbackSection
from cobo_dist.callbacks.registry import CALLBACKS
from cobo_dist.config.schema import (
    CALLBACK,
    QUICKSTART,
    VARIANTS,
    Config,
    callback_keys,
    groups,
    keys_of,
    variants_in,
)
from cobo_dist.errors import ConfigError
from cobo_dist.registry import Variant
from cobo_dist.settings import Section

_WIDTH, _LINE = 110, 90  # columns of a text, and of a meaning that takes one line


@dataclass(frozen=True)
class _Part:
    """Keys that are described together: those of a section, of a variant, or of none."""

    topic: str  # `run` or `algorithm.cobo`
    title: str
    keys: list[tuple[str, FieldInfo]]

    def rows(self, only: str = "") -> list[tuple[str, str, str, str]]:
        """Return key, type, default and meaning of the keys, or of those that are `only` or below it."""
        return [
            (key, _type_name(field.annotation), _default(field), field.description or "")
            for key, field in self.keys
            if f"{key}.".startswith(f"{only}.") or not only
        ]

    def text(self, only: str = "") -> str:
        """Return the title and the keys, or those of them that are `only` or below it."""
        lines = [self.title]
        for key, kind, default, meaning in self.rows(only):
            lines.append(f"  {key}  ({kind}, {default})")
            lines += [f"      {meaning}"] if meaning else []
        return "\n".join(lines)


def describe_keys() -> str:
    """Return every key with type, default and one line of meaning."""
    return "\n\n".join(part.text() for part in _parts())


def describe_tables() -> list[tuple[str, str, list[tuple[str, str, str, str]]]]:
    """Return every section or variant: its topic (`algorithm.cobo`), title, and keys as `_Part.rows`."""
    return [(part.topic or "keys", part.title, part.rows()) for part in _parts()]


def describe_sections() -> str:
    """Return the sections of the config with one line each, or with the names that they can have."""
    lines, widest = [], max(map(len, Config.model_fields))
    for section, field in Config.model_fields.items():
        if section in VARIANTS:
            names = [
                f"{name} (default)" if name == QUICKSTART[section] else name
                for name in VARIANTS[section]
            ]
            meaning = f"{section}.name: {', '.join(names)}"
        elif hasattr(field.annotation, "model_fields"):
            meaning = _first_line(field.annotation)
        else:
            meaning = textwrap.shorten(field.description or "", _LINE, placeholder=" ...")
        head = f"  {section:<{widest}}  "
        lines += textwrap.wrap(
            meaning, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head),
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
    return "\n".join(lines)


def describe_topic(topic: str, why_lacking: str = "") -> str:
    """Return the keys of a section (`run`), a name in it (`algorithm.cobo`), a group, or one key.

    Of a section with several names, their titles. `algorithm.name=cobo` is `algorithm.cobo`.
    `why_lacking`: why plug-ins are not known, in place of a hint at another key.

    Raises:
        ConfigError: there is no such section or key.
    """
    parts = list(_parts())
    key, _, name = topic.partition("=")
    wanted = f"{key.removesuffix('.name')}.{name}" if key.endswith(".name") and name else key
    for part in parts:
        if part.topic == wanted:
            return part.text()
    group = key.removesuffix(".name")
    if group in groups():
        titles = [part.title for part in parts if part.topic.rpartition(".")[0] == group]
        hint = f"--help {group}.{groups()[group].default} lists the keys of one"
        return "\n".join([*titles, "", hint])
    found = [part.text(key) for part in parts if _has(part, key)]
    if found:
        return "\n\n".join(found)
    known = [
        *Config.model_fields,
        *(part.topic for part in parts),
        *(k for p in parts for k, _ in p.keys),
    ]
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}?" if near else "give one that --help lists, a key, or all"
    hint = why_lacking or hint
    raise ConfigError(f"--help {topic}: there is no such section or key; {hint}")


def _has(part: _Part, key: str) -> bool:
    return any(f"{known}.".startswith(f"{key}.") for known, _ in part.keys)


def _parts() -> Iterator[_Part]:
    """Yield the parts of the config: the keys of no section, then each section or variant."""
    plain = [
        (name, field)
        for name, field in Config.model_fields.items()
        if name not in VARIANTS and not hasattr(field.annotation, "model_fields")
    ]
    if plain:
        yield _Part("", "keys without a section:", plain)
    for section, field in Config.model_fields.items():
        if section in VARIANTS:
            nested: dict[str, Variant] = {}
            for name in VARIANTS[section]:
                inside = variants_in(VARIANTS[section][name].section or Section)
                nested |= {f"{section}.{key}": one for key, one in inside.items()}
            for group, variant in {section: groups()[section], **nested}.items():
                yield from _variant_parts(group, variant)
        elif hasattr(field.annotation, "model_fields"):
            whole: Any = field.annotation
            title = f"{section}: {_first_line(whole)}"
            yield _Part(section, title, list(keys_of(whole, f"{section}.")))
    for name in CALLBACKS:
        title = f"callbacks, name={name}: {_first_line(CALLBACK.section(name))}"
        keys = [one for one in callback_keys(name) if one[0] != "callbacks.name"]
        yield _Part(f"callbacks.{name}", title, keys)


def _variant_parts(group: str, variant: Variant) -> Iterator[_Part]:
    """Yield a part for each name that a section or a group in it can have."""
    for name in variant.names:
        kind = variant.section(name)
        default = " (default)" if name == variant.default else ""
        keys = [
            one for one in keys_of(kind, f"{group}.", inside=False) if one[0] != f"{group}.name"
        ]
        yield _Part(f"{group}.{name}", f"{group}.name={name}: {_first_line(kind)}{default}", keys)


def _first_line(kind: Any) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    try:
        value = field.get_default(call_default_factory=True)
    except (TypeError, ValueError):  # it is made from the other keys
        return "default computed"
    return f"default {_shown(value)}"


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if value == "":
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)).replace("'", "") if isinstance(value, tuple | list) else str(value)


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) in (Annotated, Union, UnionType):
        return _type_name(get_args(annotation)[0])
    options = get_args(annotation)
    if options and all(isinstance(option, str) for option in options):
        return "|".join(options)
    if get_origin(annotation) is tuple:
        return f"list of {_type_name(options[0])}"
    if isinstance(annotation, type) and issubclass(annotation, CallbackSection):
        return "callback"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return f"{{{', '.join(annotation.model_fields)}}}"
    return {int: "int", float: "float", bool: "bool", str: "text"}.get(annotation, str(annotation))
