"""YAML 1.2: text in, plain values out.

PyYAML reads YAML 1.1, where `no` is false, `010` is 8 and `1:30` is 90. Here the core schema of YAML 1.2
holds: only `true` and `false` are booleans, integers are decimal unless they begin with 0x or 0o, and there
are no dates, no merge keys and no equal keys. PyYAML still does the parsing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml

MAX_VALUES = 50_000
"""Keys and values of a text, with every alias written out: what is read in a few seconds."""
MAX_DEPTH = 20
"""Groups and lists inside each other. A config needs four."""
MAX_NUMBER_CHARACTERS = 1000
"""Longer digits stay text: Python prints no integer of more than 4300 digits."""

_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_BOOLEANS = {
    text: value
    for value, word in ((True, "true"), (False, "false"))
    for text in (word, word.capitalize(), word.upper())
}
_DECIMAL = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL_FLOAT = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_TAG_PREFIX = "tag:yaml.org,2002:"
_UNTAGGED = "untagged"

IsText = Callable[[str], bool]
"""Whether the value of a dotted key is text, so that it is taken as written: `010`, `on`, `null`."""


class YamlError(ValueError):
    """Text that is not read: what is wrong with it, and on which line."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem if line is None else f"line {line}: {problem}")
        self.problem, self.line = problem, line


class RepeatedKey(YamlError):
    """A key is given twice; `without_lines` says so for a text of which nobody counts the lines."""

    def __init__(self, key: str, first: int, second: int) -> None:
        lines = f"line {first}" if first == second else f"lines {first} and {second}"
        super().__init__(f"{key} is given twice, on {lines}; keep one", second)
        self.without_lines = f"{key} is given twice; keep one"


def core_value(text: str) -> Any:
    """Return what a scalar without quotes means in the core schema.

    >>> [core_value(text) for text in ("010", "0x10", "1e3", "true", "no", "1:30", "~")]
    [10, 16, 1000.0, True, 'no', '1:30', None]
    """
    if text in _NULL:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if len(text) > MAX_NUMBER_CHARACTERS:
        return text
    for pattern, base in ((_DECIMAL, 10), (_OCTAL, 8), (_HEXADECIMAL, 16)):
        if pattern.fullmatch(text):
            return int(text, base)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _SPECIAL_FLOAT.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def read_yaml(
    text: str,
    is_text: IsText = lambda key: False,
    at: str = "",
    whole: bool = False,
    lines: dict[str, int] | None = None,
) -> Any:
    """Return the value of a YAML text; with `whole`, nothing may follow it, not even a comment.

    `at` is the dotted key that it belongs to. `lines` receives the line of every dotted key.

    >>> read_yaml("run: {dir: 0123, seed: 0123}", lambda key: key == "run.dir")
    {'run': {'dir': '0123', 'seed': 123}}

    Raises:
        YamlError: it is no YAML, has a key twice, contains itself, or is too large.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(f"{error.reason}: {chr(error.character)!a}", line) from None
    except YamlError:
        raise
    except RecursionError:
        raise YamlError(_TOO_DEEP) from None
    # PyYAML raises errors other than its own, for example for the escape "\UFFFFFFFF".
    except (yaml.YAMLError, ValueError, OverflowError, LookupError, AttributeError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or f"{type(error).__name__}: {error}"
        raise YamlError(problem, mark.line + 1 if mark else None) from None
    if node is None:
        return None
    if whole and (rest := text[node.end_mark.index :].strip()):
        raise YamlError(f"{rest[:40]!r} follows the value; remove it, or quote the value")
    return _Builder(is_text, {} if lines is None else lines).value(node, at)


_TOO_MANY = f"it has more than {MAX_VALUES:,} keys and values, with aliases written out; shorten it"
_TOO_DEEP = f"groups or lists stand inside each other more than {MAX_DEPTH} deep; remove some"


class _Loader(yaml.SafeLoader):
    """Composes nodes without resolving plain scalars, so that their text is kept as written."""

    composed = 0

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        """Return the tag of a node that is written without one."""
        if kind is yaml.ScalarNode:
            return _UNTAGGED
        return f"{_TAG_PREFIX}{'seq' if kind is yaml.SequenceNode else 'map'}"

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node; too many end the reading early, because PyYAML is slow."""
        self.composed += 1
        if self.composed > MAX_VALUES:
            raise YamlError(_TOO_MANY, self.line + 1)
        return super().compose_node(parent, index)


class _Builder:
    """Makes values of composed nodes. An alias gives a copy, so the number of values is bounded."""

    def __init__(self, is_text: IsText, lines: dict[str, int]) -> None:
        self.is_text, self.lines = is_text, lines
        self.left = MAX_VALUES
        self.open: list[yaml.Node] = []  # the groups and lists around a value

    def value(self, node: yaml.Node, at: str) -> Any:
        """Return the value of a node that belongs to the dotted key `at`."""
        line = node.start_mark.line + 1
        self.left -= 1
        if self.left < 0:
            raise YamlError(_TOO_MANY, line)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, at)
        if node.tag not in (f"{_TAG_PREFIX}map", f"{_TAG_PREFIX}seq"):
            raise _unknown_tag(node)
        if any(node is one for one in self.open):
            raise YamlError("an alias inside its own anchor contains itself; remove it", line)
        if len(self.open) >= MAX_DEPTH:
            raise YamlError(_TOO_DEEP, line)
        self.open.append(node)
        made: Any
        if isinstance(node, yaml.SequenceNode):
            made = [self.value(item, at) for item in node.value]
        else:
            made = self._group(node, at)
        self.open.pop()
        return made

    def _group(self, node: yaml.Node, at: str) -> dict[str, Any]:
        made: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise YamlError("a key is a group or a list; a key must be a word", line)
            key = key_node.value
            full = f"{at}.{key}" if at else key
            if key in made:
                raise RepeatedKey(full, first[key], line)
            first[key] = self.lines[full] = line
            self.left -= 1
            made[key] = self.value(value_node, full)
        return made

    def _scalar(self, node: yaml.ScalarNode, at: str) -> Any:
        if node.tag not in (_UNTAGGED, f"{_TAG_PREFIX}str"):
            raise _unknown_tag(node)
        plain = node.style is None and node.tag == _UNTAGGED
        return core_value(node.value) if plain and not self.is_text(at) else node.value


def _unknown_tag(node: yaml.Node) -> YamlError:
    tag = node.tag.replace(_TAG_PREFIX, "!!")
    return YamlError(f"the tag {tag} is not read; remove it", node.start_mark.line + 1)


class Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as something else."""


for _pattern, _tag in ((_FLOAT, "float"), (_SPECIAL_FLOAT, "float"), (_OCTAL, "int")):
    Dumper.add_implicit_resolver(
        f"{_TAG_PREFIX}{_tag}", re.compile(rf"(?:{_pattern.pattern})\Z"), list("-+0123456789.")
    )
