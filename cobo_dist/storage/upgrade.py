"""Reads what earlier versions wrote: the only module that knows their names.

Format 1 called the traffic totals `ledger`, the state of the run logger `book`, its health checks `watch`,
the manifest's digest `seal`, and wrote `optimiser`. Files keep their old names on disk until they are
written again, so a manifest stays valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from cobo_dist.storage import schema

Content = dict[str, Any]
T = TypeVar("T")

_FILES_1 = {schema.LOGGER: "book.json", schema.LOGGER_ARRAYS: "book.safetensors"}


def upgrade_row(row: Content) -> Content:
    """Return a row of metrics.jsonl in the present format. A resumed run has rows of both."""
    return row | {"event": "traffic"} if row.get("event") == "ledger" else row


def upgrade_manifest(content: Content) -> Content:
    """Return a checkpoint's manifest with the present keys; its `files` are named as on disk."""
    if content.get("format") == 1 and "seal" in content:
        content = dict(content)
        content["sha256"] = content.pop("seal")
    return content


def file_on_disk(name: str, version: int) -> str:
    """Return the name that a checkpoint of that version gave to a file."""
    return _FILES_1.get(name, name) if version == 1 else name


def upgrade_logger(content: Content, version: int) -> Content:
    """Return the state of the run logger in the present format."""
    if version > 1:
        return content
    health = dict(content["watch"])
    health["warnings"] = health.pop("concerns")
    kept = {key: value for key, value in content.items() if key not in ("now", "watch")}
    return kept | {"progress": content["now"], "health": health}


def upgrade_client(tensors: Mapping[str, T], version: int) -> dict[str, T]:
    """Return the tensors in a client's file by their present names."""
    if version > 1:
        return dict(tensors)
    new = "optimizer."
    return {
        new + name.removeprefix("optimiser.") if name.startswith("optimiser.") else name: held
        for name, held in tensors.items()
    }
