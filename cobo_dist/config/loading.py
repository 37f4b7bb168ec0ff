"""From a YAML file and `key.path=value` arguments to a checked `Config`."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cobo_dist.config.checks import check_across
from cobo_dist.config.merging import (
    drop_other_variant,
    merge,
    name_variants,
    spread_texts,
    with_preset,
)
from cobo_dist.config.messages import explain, name_at, place_of
from cobo_dist.config.schema import (
    Config,
    all_keys,
    groups,
    meant_key,
    text_keys,
)
from cobo_dist.errors import ConfigError
from cobo_dist.plugins import blaming_plugins, load_plugins
from cobo_dist.registry import register
from cobo_dist.settings import flatten
from cobo_dist.storage.schema import CHECKPOINTS_DIR
from cobo_dist.yaml_text import RepeatedKey, YamlError, core_value, read_yaml

MAX_FILE_BYTES = 1 << 18
"""Bytes of a config file. Those of this repository have at most some thousand."""
_YAML_SIGNS = ("[", "{", "'", '"', "&", "*", "!")
"""YAML reads a value that begins with one of these; any other is a number, a boolean or a word."""
QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
"""A text in quotes: '' is one quote inside single ones, and a backslash escapes inside double ones."""


def load_config(file: str | None, arguments: Sequence[str]) -> Config:
    """Return the config of a YAML file (if any) and `key.path=value` arguments.

    >>> load_config(None, ["algorithm.rho=0.2", "run.rounds=500"]).run.rounds
    500

    Raises:
        ConfigError: anything wrong with either, in one line.
    """
    load_plugins_for(file, arguments)
    lines: dict[
        str, int
    ] = {}  # how a value is read depends on its key, so the file is read once more
    below = {} if file is None else read_file(file, lines)
    above = read_arguments(arguments)
    config = resolve(below, above, f"--config {file}", lines)
    refuse_moved(file, above, config)
    return config


def refuse_moved(file: str | None, above: Mapping[str, Any], config: Config) -> None:
    """Check that the config of a run folder resumes that run: the folder may have been moved or copied.

    Raises:
        ConfigError: the file is in a folder with checkpoints, and its own run.dir is another one.
    """
    given = above.get("run")
    if file is None or config.run.resume != "auto" or (isinstance(given, dict) and "dir" in given):
        return
    folder = Path(file).parent
    if (folder / CHECKPOINTS_DIR).is_dir() and folder.resolve() != config.run_dir.resolve():
        raise ConfigError(
            f"--config {file} is of a run folder, and names run.dir={config.run_dir}, from which "
            f"run.resume=auto goes on; set run.dir={folder} if the folder was moved, or run.dir to the other "
            "one"
        )


def resolve(
    below: dict[str, Any],
    above: dict[str, Any],
    source: str = "",
    lines: dict[str, int] | None = None,
) -> Config:
    """Return the config of nested keys; `above` wins over `below`.

    `source`, and for a file the line of each dotted key in `lines`, say where a mistake in `below` is.

    Raises:
        ConfigError: anything wrong with either, in one line.
    """
    lines = {} if lines is None else lines
    lines |= {meant_key(key): lines[key] for key in lines if isinstance(below.get(key), str)}
    below, above = spread_texts(below), spread_texts(above)
    for key in flatten(above):  # where an argument is wrong, no line of the file is
        while key:
            lines.pop(key, None)
            key = key.rpartition(".")[0]
    for group in groups():
        drop_other_variant(group, below, above)
    merged = merge(*with_preset(below, above))
    name_variants(merged)
    try:
        with blaming_plugins():
            config = Config.model_validate(merged)
    except ValidationError as error:
        line = lines.get(place_of(error))
        where = f"{source}, line {line}: " if line else ""
        raise ConfigError(where + explain(error, merged)) from None
    with blaming_plugins():
        check_across(config)
    return config


def variant_names(
    file: str | None, names: Mapping[str, str], plugins: str | None = None
) -> dict[str, str]:
    """Return the variant that each section has with `{"algorithm": "local", ...}` typed over a YAML file.

    Groups in a section have variants too: `{"task.partition": "iid"}`. `plugins`: the value of that key,
    where it is typed; they stay loaded. Nothing else is checked.

    Raises:
        ConfigError: the file cannot be read, or a section is no group of keys.
    """
    load_plugins_for(file, [] if plugins is None else [f"plugins={plugins}"])
    arguments = read_arguments([f"{section}.name={name}" for section, name in names.items()])
    merged = merge({} if file is None else read_file(file, {}), arguments)
    name_variants(merged)
    return {group: name for group in groups() if (name := name_at(merged, group))}


def load_plugins_for(file: str | None, arguments: Sequence[str]) -> None:
    """Load the plug-ins that a YAML file and arguments name. No other argument needs to be right.

    Raises:
        ConfigError: the file cannot be read, or a plug-in cannot be loaded.
    """
    below = {} if file is None else read_file(file, {})
    load_plugins_of(below, _plugins_only(arguments), beside=file)


def load_plugins_of(*nested: Mapping[str, Any], beside: str | None = None) -> None:
    """Load the plug-ins that nested keys name, the last ones where several do; keys depend on them.

    `beside`: the file of the config, next to which a run folder has copies.
    """
    names = [one["plugins"] for one in nested if "plugins" in one][-1:] or [[]]
    given = [names[0]] if isinstance(names[0], str) else names[0]
    if isinstance(given, list) and all(isinstance(name, str) for name in given):
        load_plugins(given, None if beside is None else Path(beside).parent)


def _plugins_only(arguments: Sequence[str]) -> dict[str, Any]:
    return read_arguments([one for one in arguments if one.startswith("plugins=")])


def read_file(file: str, lines: dict[str, int]) -> dict[str, Any]:
    """Return the sections of a YAML file; `lines` receives the line of every dotted key."""
    where = f"--config {file}"
    try:
        # Without O_NONBLOCK a named pipe blocks until someone writes into it.
        with open(
            file, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)
        ) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise ConfigError(f"{where} is no regular file; save the config as a file")
            content = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{where} does not exist; give the path of a YAML file") from None
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(
            f"{where} has more than {MAX_FILE_BYTES:,} bytes; give the path of a config"
        )
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{where} cannot be read: not UTF-8 text") from None
    sections = _parse(text, where, lines=lines)
    if sections is None:
        return {}
    if not isinstance(sections, dict):
        raise ConfigError(
            f"{where} holds a {type(sections).__name__}; it must hold sections such as "
            "`run:` and `algorithm:` with keys below them"
        )
    return sections


def _parse(
    text: str, where: str, key: str = "", whole: bool = False, lines: dict[str, int] | None = None
) -> Any:
    try:
        return read_yaml(text, text_keys().__contains__, key, whole, lines)
    except RepeatedKey as error:  # YAML itself has no objection
        problem = error.without_lines if key else error.problem
        raise ConfigError(f"{where} cannot be read: {problem}") from None
    except YamlError as error:
        line = f", line {error.line}" if error.line and not key else ""
        raise ConfigError(f"{where}{line} is not valid YAML: {error.problem}") from None


def read_value(key: str, text: str) -> Any:
    """Return what `text` means in an argument `key=text`.

    A text key takes the text as it is; only quotes around all of it are removed. Other values are read
    as in a file, but `#` begins no comment.

    >>> read_value("run.dir", "runs/a #1"), read_value("run.seed", "010")
    ('runs/a #1', 10)

    Raises:
        ConfigError: a list or group that is not valid YAML.
    """
    if key in _plain_text_keys():
        return _unquoted(text)
    text = text.strip()
    if text.startswith(_YAML_SIGNS):
        return _parse(text, f"argument {f'{key}={text}'!r}", key, whole=True)
    return text if not text or key in text_keys() else core_value(text)


def key_of_argument(key: str, text: str) -> str:
    """Return the key that an argument `key=text` sets; a text may stand for a section."""
    return key if text.lstrip().startswith("{") else meant_key(key)


def as_argument(key: str, text: str) -> str:
    """Return the argument that sets a text key to a text: the inverse of `read_value`.

    >>> print(as_argument("run.dir", "runs/a #1"), as_argument("run.dir", '"a"'))
    run.dir=runs/a #1 run.dir='"a"'
    """
    quoted = "'" + text.replace("'", "''") + "'"
    return f"{key}={text if _unquoted(text) == text else quoted}"


def _plain_text_keys() -> frozenset[str]:
    """Return the keys that take any text: no list, and no choice among names."""
    return _plain_text_keys_of(register.version)


@cache
def _plain_text_keys_of(version: int) -> frozenset[str]:
    return frozenset(key for key, field in all_keys() if field.annotation is str)


def _unquoted(text: str) -> str:
    """Return a text without the quotes around it; text that is not quoted as a whole stays as it is."""
    if not QUOTED.fullmatch(text):
        return text
    if text[0] == "'":
        return text[1:-1].replace("''", "'")
    try:
        return str(read_yaml(text))
    except YamlError:
        return text


def read_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    """Return `key.path=value` arguments as nested dictionaries; the last of equal keys counts."""
    tree: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key or argument.startswith("-"):
            raise ConfigError(
                f"argument {argument!r} is not understood; write key.path=value, for example "
                "run.rounds=500, or see --help"
            )
        key = key_of_argument(key, text)
        branch = tree
        *path, last = key.split(".")
        for step in path:
            branch = branch.setdefault(step, {})
            if not isinstance(branch, dict):
                raise ConfigError(
                    f"argument {argument!r}: {step} already has a value; drop one of the two"
                )
        value, held = read_value(key, text), branch.get(last)
        if isinstance(held, dict) and isinstance(value, dict):
            value = merge(held, value, f"{key}.")
        branch[last] = value
    return tree
