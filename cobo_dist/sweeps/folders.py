"""What a sweep finds in the folder of one run: nothing, the finished run, one to repeat or to resume."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cobo_dist.config import Config, load_config
from cobo_dist.config.differences import STORAGE_KEYS, differences
from cobo_dist.errors import ConfigError
from cobo_dist.storage.files import MAX_CONFIG_BYTES, MAX_METRICS_BYTES, open_file, read_file
from cobo_dist.storage.reading import SchemaError, is_finished, read_record, read_row
from cobo_dist.storage.schema import (
    CHECKPOINTS_DIR,
    CONFIG_FILE,
    METRICS,
    METRICS_FILE,
    SUMMARY_FILE,
    EvalRow,
    Summary,
)
from cobo_dist.sweeps.grid import show

State = Literal["new", "again", "resume", "done"]
_MAX_ROW_BYTES = 1 << 20
"""More than a row of an evaluation has; a longer row is read in pieces, and none of them counts."""


@dataclass(frozen=True)
class Result:
    """The last results of a finished run, means over its clients: `scores[split, metric]`."""

    scores: Mapping[tuple[str, str], float]
    seconds: float


def look(folder: Path, wanted: Config) -> State:
    """Return what to do about the folder: `new` and `again` run, `resume` continues, `done` is skipped.

    Raises:
        ConfigError: it holds a finished run of other settings, or one that cannot be compared.
    """
    if not (folder / METRICS_FILE).exists():
        return "new"
    if not is_finished(folder):
        return "resume" if _can_resume(folder, wanted) else "again"
    remedy = f"give another --out, or remove {folder}"
    try:
        found = _config_of(folder)
    except ConfigError as refusal:
        raise ConfigError(
            f"{folder} holds a finished run whose settings cannot be compared: {refusal}; {remedy}"
        ) from None
    if different := different_keys(found, wanted):
        key, (old, new) = next(iter(different.items()))
        more = f" and {len(different) - 1} more keys" if len(different) > 1 else ""
        raise ConfigError(
            f"{folder} holds a finished run with {key}={show(old)}{more}, but this sweep wants "
            f"{key}={show(new)}; {remedy}"
        )
    return "done"


def _can_resume(folder: Path, wanted: Config) -> bool:
    """Return whether an unfinished run with the wanted settings has left a checkpoint."""
    if not any((folder / CHECKPOINTS_DIR).glob("round-*[0-9]")):
        return False
    try:
        return not different_keys(_config_of(folder), wanted)
    except ConfigError:
        return False


def _config_of(folder: Path) -> Config:
    path = folder / CONFIG_FILE
    try:
        read_file(path, MAX_CONFIG_BYTES)  # a pipe or a link is not opened as a config
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    return load_config(str(path), [])


def different_keys(found: Config, wanted: Config) -> dict[str, tuple[object, object]]:
    """Return `key: (found, wanted)` for the keys that may change a number."""
    # A run writes down the engine that `auto` chose.
    engine = {"run.engine"} if wanted.run.engine == "auto" else set()
    return differences(found.flat(), wanted.flat(), STORAGE_KEYS | engine)


def read_result(folder: Path) -> Result:
    """Return the last results of a finished run.

    Raises:
        ConfigError: a file of the folder is missing or malformed.
    """
    scores = {}
    try:
        summary = read_record(folder / SUMMARY_FILE, Summary)
        with open_file(folder / METRICS_FILE, limit=MAX_METRICS_BYTES) as file:
            # A sparse file may be one line of many gigabytes.
            while line := file.readline(_MAX_ROW_BYTES):
                # Most rows are of rounds and single clients: only those of means are parsed.
                row = read_row(line) if b"null" in line and b"eval" in line else None
                if not isinstance(row, EvalRow) or row.model != "personal":
                    continue
                if row.client is None and row.round == summary.rounds:
                    for metric in METRICS:
                        if metric in row.model_fields_set:
                            value = getattr(row, metric)
                            scores[row.split, metric] = math.nan if value is None else float(value)
    except OSError as error:
        raise ConfigError(f"{error.filename or folder} cannot be read: {error.strerror}") from None
    except SchemaError as error:
        raise ConfigError(
            f"{folder} holds a run whose figures are malformed ({error}); remove it to repeat it"
        ) from None
    return Result(scores, summary.seconds)
