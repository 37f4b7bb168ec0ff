"""Reads small tables that a user writes: CSV with a header, or a list of groups in YAML or JSON."""

from __future__ import annotations

import csv
import os
import re
import stat
from collections.abc import Sequence
from typing import Any, NamedTuple

from cobo_dist.errors import ConfigError
from cobo_dist.yaml_text import YamlError, read_yaml

MAX_FILE_BYTES = 1 << 26
_WHOLE_NUMBER = re.compile(r"[-+]?[0-9]{1,18}")


class TableRow(NamedTuple):
    """One row: where it is, for messages, and its value in each column."""

    place: str
    values: dict[str, Any]


def read_table(file: str, key: str, columns: Sequence[str]) -> list[TableRow]:
    """Return the rows of a table with these columns, in any order. Numbers are not checked yet.

    `key`: the key of the config that names the file.

    Raises:
        ConfigError: the file cannot be read, or has other columns; one line that names the place.
    """
    where = f"{key}={file}"
    text = _read_text(file, where)
    if file.lower().endswith((".yaml", ".yml", ".json")):
        return _of_yaml(text, where, columns)
    return _of_csv(text, where, columns)


def whole_number(row: TableRow, column: str, least: int = 0) -> int:
    """Return the whole number in a column.

    Raises:
        ConfigError: it is empty, no whole number, or less than `least`.
    """
    given = row.values[column]
    text = "" if given is None else str(given).strip()
    if isinstance(given, bool) or not _WHOLE_NUMBER.fullmatch(text):
        what = f"is {text!r}, not a whole number" if text else "is empty"
        raise ConfigError(f"{row.place}: {column} {what}; write a whole number from {least}")
    if (number := int(text)) < least:
        raise ConfigError(f"{row.place}: {column} is {number}; write a whole number from {least}")
    return number


def _read_text(file: str, where: str) -> str:
    try:
        # Without O_NONBLOCK a named pipe blocks until someone writes into it.
        handle = os.open(os.path.expanduser(file), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise ConfigError(f"{where} is no regular file; save the table as a file")
            content = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{where} does not exist; give the path of a CSV or YAML file") from None
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{where} has more than {MAX_FILE_BYTES:,} bytes; give a smaller table")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{where} cannot be read: not UTF-8 text") from None


def _of_csv(text: str, where: str, columns: Sequence[str]) -> list[TableRow]:
    reader, header = csv.reader(text.splitlines(), strict=True), list[str]()
    rows = []
    try:
        for cells in reader:
            line = [cell.strip() for cell in cells]
            if not any(line):
                continue
            if not header:
                header = line
                _check_columns(header, f"{where}, line {reader.line_num}", columns)
                continue
            place = f"{where}, line {reader.line_num}"
            if len(line) != len(header):
                raise ConfigError(
                    f"{place}: {len(line)} cells, and the header has {len(header)}; write "
                    f"{','.join(header)}"
                )
            rows.append(TableRow(place, dict(zip(header, line, strict=True))))
    except csv.Error as error:
        raise ConfigError(f"{where}, line {reader.line_num} is not CSV: {error}") from None
    if not header:
        raise ConfigError(f"{where} is empty; its first line is {','.join(columns)}")
    return rows


def _of_yaml(text: str, where: str, columns: Sequence[str]) -> list[TableRow]:
    try:
        given = read_yaml(text)
    except YamlError as error:
        line = f", line {error.line}" if error.line else ""
        raise ConfigError(f"{where}{line} is not valid YAML: {error.problem}") from None
    example = f"{{{', '.join(f'{column}: ...' for column in columns)}}}"
    if not isinstance(given, list):
        kind = "nothing" if given is None else f"a {type(given).__name__}"
        raise ConfigError(f"{where} holds {kind}; it must hold a list of {example}")
    rows = []
    for number, one in enumerate(given, start=1):
        place = f"{where}, entry {number}"
        if not isinstance(one, dict):
            raise ConfigError(f"{place} is {one!r:.50}; write {example}")
        _check_columns(list(one), place, columns)
        rows.append(TableRow(place, one))
    return rows


def _check_columns(given: list[str], place: str, columns: Sequence[str]) -> None:
    if sorted(given) != sorted(columns):
        raise ConfigError(
            f"{place}: the columns are {', '.join(given)[:200]}, and must be {', '.join(columns)}"
        )
