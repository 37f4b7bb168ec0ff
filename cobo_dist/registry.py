"""What a config names: algorithms, tasks, models, statistics, losses and metrics, each by kind and name.

Everything is registered by a decorator, what belongs to cobo_dist and what a plug-in adds:

    @register.algorithm("gossip")
    class Gossip(Algorithm): ...

A kind of classes with settings (an algorithm, a task, a model) has a config section for each name; its `name`
key is added here. A kind of functions (a statistic, a loss, a metric) has none.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType
from typing import Any, Literal, TypeVar

from pydantic import Field, GetCoreSchemaHandler, create_model
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from cobo_dist.errors import ConfigError
from cobo_dist.settings import Section

T = TypeVar("T")
_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,63}", re.IGNORECASE)
BUILT_IN = "cobo_dist"
"""The source of what belongs to this package."""


@dataclass(frozen=True)
class Entry:
    """What is registered under a name: the object, its config section if it has one, and where it is from.

    `source` is `cobo_dist`, a plug-in as the key `plugins` names it, or else the module. `code` and `line`
    are where it was registered.
    """

    name: str
    target: Any
    section: type[Section] | None
    source: str
    code: CodeType
    line: int


@dataclass
class Kind(Mapping[str, Entry]):
    """The registered things of one kind, by name.

    `expects`: what can be registered, in words. `check` returns why an object cannot be, or an empty text.
    `section_of` returns the config section of an object; None for a kind without settings. `place` returns
    an object's place among the others, which are in the order of their names where places are equal.
    """

    kind: str
    expects: str
    check: Callable[[Any], str] = field(default=lambda target: "")
    section_of: Callable[[Any], type[Section]] | None = None
    place: Callable[[Any], int] = field(default=lambda target: 0)
    entries: dict[str, Entry] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Entry:
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.entries, key=lambda name: (self.place(self[name].target), name)))

    def __len__(self) -> int:
        return len(self.entries)

    def __call__(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers its class or function under `name`.

        Raises:
            ConfigError: a name that a config cannot hold or that is taken, or an object of another kind.
        """
        caller = sys._getframe(1)
        code, line = caller.f_code, caller.f_lineno

        def add(target: T) -> T:
            self._add(name, target, code, line)
            return target

        return add

    def _add(self, name: str, target: Any, code: CodeType, line: int) -> None:
        what = f"register.{self.kind}({name!r})"
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"{what}: a name is a letter, then letters, digits, _, - or ., up to 64 in all"
            )
        if why := self.check(target):
            raise ConfigError(f"{what} takes {self.expects}: {why}")
        source = register.loading_from or _source_of(target)
        old = self.entries.get(name)
        if old is not None and old.source != source:
            raise ConfigError(
                f"{what} of {source}: {self.kind} {name} is registered already, by {old.source}; "
                "choose another name"
            )
        # A module that is reloaded, or a cell of a notebook that is run again, is compiled anew.
        if old is not None and old.code is code and old.line != line:
            raise ConfigError(
                f"{what} in line {line}: line {old.line} registers {self.kind} {name} already; choose "
                "another name"
            )
        section = self.section_of and _with_name(self.section_of(target), name)
        self.entries[name] = Entry(name, target, section, source, code, line)
        register.version += 1


class Register:
    """The decorators, one for each kind; `register.algorithm("name")`."""

    def __init__(self) -> None:
        self.kinds: dict[str, Kind] = {}
        self.version = (
            0  # grows with every change, so that what is computed from the names can be cached
        )
        self.loading_from = ""  # the plug-in that is being loaded

    def new_kind(self, kind: str, expects: str, **how: Any) -> Kind:
        """Add a kind; the package that uses it does so when it is imported."""
        self.kinds[kind] = Kind(kind, expects, **how)
        return self.kinds[kind]

    def __getattr__(self, kind: str) -> Kind:
        try:
            return self.__dict__["kinds"][kind]  # type: ignore[no-any-return]
        except KeyError:
            raise AttributeError(
                f"nothing of kind {kind!r} can be registered; there are {', '.join(self.kinds)}"
            ) from None

    @contextmanager
    def loading(self, source: str) -> Iterator[None]:
        """Note what is registered inside as the plug-in's; forget all of it where loading fails."""
        before, self.loading_from = self.loading_from, source
        try:
            yield
        except BaseException:
            self.forget(source)
            raise
        finally:
            self.loading_from = before

    def forget(self, source: str) -> None:
        """Remove what a plug-in registered."""
        for kind in self.kinds.values():
            for entry in [one for one in kind.entries.values() if one.source == source]:
                del kind.entries[entry.name]
        self.version += 1


register = Register()


def _source_of(target: Any) -> str:
    module = str(getattr(target, "__module__", "?"))
    return BUILT_IN if module.partition(".")[0] == BUILT_IN else module


def _with_name(section: type[Section], name: str) -> type[Section]:
    """Return a section whose key `name` can only be this name."""
    known = section.model_fields.get("name")
    if known is not None and known.default == name:
        return section
    named: Any = (Literal[name], name)
    return create_model(
        section.__name__,
        __base__=section,
        __module__=section.__module__,
        __doc__=section.__doc__,
        name=named,
    )


UNKNOWN_VARIANT = "unknown_variant"
"""The type of pydantic's error about a name that is not registered."""


@dataclass(frozen=True)
class Variant:
    """Marks a key whose own keys are those of the section that its `name` is registered with.

    `source: Annotated[SerializeAsAny[SourceSection], Variant("source", "npz")]`; `default` is the name
    where none is given. Help, hints and files treat such a key alike wherever it stands.
    """

    kind: str
    default: str

    @property
    def names(self) -> Kind:
        """What is registered."""
        return register.kinds[self.kind]

    def section(self, name: str) -> type[Section]:
        """Return the config section that belongs to a name."""
        section = self.names[name].section
        assert section is not None, f"register.{self.kind} takes sections"
        return section

    def field(self, description: str = "") -> Any:
        """Return the field of the key: its default, and what `--help` says of it."""
        return Field(default_factory=lambda: self.section(self.default)(), description=description)

    def validate(self, given: Any) -> Any:
        """Return the section that `given["name"]` belongs to, validated."""
        if not isinstance(given, dict):
            return given
        name = given.get("name", self.default)
        if not isinstance(name, str) or name not in self.names:
            raise PydanticCustomError(UNKNOWN_VARIANT, "not registered")
        return self.section(name).model_validate(given)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Let pydantic call `validate` before it checks the type."""
        return core_schema.no_info_before_validator_function(self.validate, handler(source))


def variant_of(field: FieldInfo) -> Variant | None:
    """Return the mark of a key with variants; None for any other."""
    return next((one for one in field.metadata if isinstance(one, Variant)), None)


def registered(kind: str, name: str) -> str:
    """Return a name that is registered; for `AfterValidator`, which makes a refusal of any other."""
    names = register.kinds[kind]
    if name not in names:
        expected = ", ".join(f"'{one}'" for one in names)
        raise PydanticCustomError("literal_error", "not registered", {"expected": expected})
    return name


def class_of(base: type) -> Callable[[Any], str]:
    """Return a check that an object is a class derived from `base`."""

    def check(target: Any) -> str:
        if not isinstance(target, type):
            return f"{target!r} is no class"
        if not issubclass(target, base):
            return f"{target.__name__} does not derive from it"
        return ""

    return check


def takes(target: Any, *arguments: Any, **named: Any) -> str:
    """Return why a function or class cannot be called with such arguments; empty if it can."""
    try:
        inspect.signature(target).bind(*arguments, **named)
    except TypeError as error:
        return f"{getattr(target, '__qualname__', target)}{inspect.signature(target)}: {error}"
    return ""


def function_of(*arguments: Any) -> Callable[[Any], str]:
    """Return a check that an object can be called with such arguments."""

    def check(target: Any) -> str:
        return takes(target, *arguments) if callable(target) else f"{target!r} cannot be called"

    return check
