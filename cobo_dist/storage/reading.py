"""Reads files of the schema; the only module that knows the names that earlier versions used.

Format 1 called the totals of traffic `ledger`, the state of the run logger `book`, its health checks
`watch`, the manifest's digest `seal`, and wrote `optimiser`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from cobo_dist.storage import schema
from cobo_dist.storage.files import read_file
from cobo_dist.storage.schema import FORMAT, Record, Row, Status

Content = dict[str, Any]
AnyRecord = TypeVar("AnyRecord", bound=Record)
Value = TypeVar("Value")

_ROW: TypeAdapter[Row] = TypeAdapter(Annotated[Row, Field(discriminator="event")])


class SchemaError(ValueError):
    """Content that does not follow the schema; the message is one line without the file's name."""


class NotJson(SchemaError):
    """Content that is not even JSON, such as the last line of a run that was killed."""


def read_row(line: bytes | str) -> Row | None:
    """Return one line of metrics.jsonl; None for an event that this version does not know.

    Raises:
        SchemaError: it is not JSON, a key is missing, or a value has another type.

    >>> read_row('{"event": "round", "round": 3, "loss": 0.5}').loss
    0.5
    """
    try:
        row = _ROW.validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        kind = first["type"]
        if kind == "union_tag_invalid":  # an old name, or a new one
            old = json.loads(line)
            new = upgrade_row(old)
            return None if new == old else read_row(json.dumps(new))
        if kind != "json_invalid" and not first["loc"]:
            raise SchemaError("it is not an object with an `event`") from None
        # The first name of each place is the event.
        raise (NotJson if kind == "json_invalid" else SchemaError)(explain(error, 1)) from None
    if isinstance(row, schema.StartRow):
        check_format(row.format)
    return row


def read_record(path: Path, kind: type[AnyRecord]) -> AnyRecord:
    """Return a JSON file as an object of the schema.

    Raises:
        OSError: it cannot be read.
        SchemaError: it is not JSON, a key is missing, or a value has another type.
    """
    return parse_record(read_file(path), kind)


def parse_record(content: bytes, kind: type[AnyRecord]) -> AnyRecord:
    """Return the content of a JSON file as an object of the schema.

    Raises:
        SchemaError: as `read_record`.
    """
    try:
        record = kind.model_validate_json(content)
    except ValidationError as error:
        raise SchemaError(explain(error)) from None
    check_format(getattr(record, "format", FORMAT))
    return record


def read_status(folder: Path) -> Status | None:
    """Return a run folder's status.json; None where there is none that can be read."""
    try:
        return read_record(folder / schema.STATUS_FILE, Status)
    except (OSError, SchemaError):
        return None


def is_finished(folder: Path) -> bool:
    """Return whether the run in the folder ended well and left its summary."""
    status = read_status(folder)
    return bool(status and status.exit_code == 0) and (folder / schema.SUMMARY_FILE).exists()


def check_format(version: int) -> None:
    """Check that this version can read a format.

    Raises:
        SchemaError: a later version wrote it.
    """
    if version > FORMAT:
        raise SchemaError(
            f"it has format {version}, and this version reads up to {FORMAT}; update cobo_dist"
        )


def explain(error: ValidationError, within: int = 0) -> str:
    """Return what is wrong with an object of a file, in one line.

    `within` is the number of names that each place in the error begins with and that are no keys.
    """
    problems: dict[str, str] = {}
    for one in error.errors():
        place, says = one["loc"][within:], f"{one['input']!r}: {one['msg']}"
        if one["type"] == "json_invalid":
            says = f"not JSON ({one['ctx']['error']})"
        elif one["type"] == "missing":
            says = "None, but it must be there"
        elif place[-1:] in (("int",), ("float",)):  # of a number, which may be either
            place, says = place[:-1], f"{one['input']!r}, which is no number"
        problems[".".join(map(str, place)) or "it"] = says
    return " ".join("; ".join(f"{name} is {says}" for name, says in problems.items()).split())


# -- earlier versions --------------------------------------------------------------------------------

_FILES_1 = {schema.LOGGER_FILE: "book.json", schema.LOGGER_ARRAYS_FILE: "book.safetensors"}


def upgrade_row(row: Content) -> Content:
    """Return a row of metrics.jsonl in the present format. A resumed run has rows of both."""
    return row | {"event": "traffic"} if row.get("event") == "ledger" else row


def file_on_disk(name: str, version: int) -> str:
    """Return the name that a checkpoint of that version gave to a file."""
    return _FILES_1.get(name, name) if version == 1 else name


def upgrade_manifest(content: Content) -> Content:
    """Return a manifest with the present keys."""
    if content.get("format") == 1 and "seal" in content:
        content["sha256"] = content.pop("seal")
    return content


def upgrade_logger(content: Content, version: int) -> Content:
    """Return the state of the run logger with the present keys."""
    if version == 1:
        content["progress"], content["health"] = content.pop("now"), content.pop("watch")
        content["health"]["warnings"] = [
            {"round": r, "kind": kind, "message": message}
            for r, kind, message in content["health"].pop("concerns")
        ]
    return content


def upgrade_client(tensors: Mapping[str, Value], version: int) -> dict[str, Value]:
    """Return what is in a client's file by its present names."""
    old = "optimiser." if version == 1 else "optimizer."
    return {
        "optimizer." + name.removeprefix(old) if name.startswith(old) else name: value
        for name, value in tensors.items()
    }
