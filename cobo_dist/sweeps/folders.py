"""What lies in a run's folder: nothing, the wanted run, one to do again or to go on with, or another run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cobo_dist.config import Config, load_config
from cobo_dist.errors import ConfigError
from cobo_dist.sweeps.grid import show

METRICS = ("accuracy", "perplexity", "loss")
"""What a task may be judged by, the first that it has."""

State = Literal["new", "again", "resume", "done"]

# Where a run lies, how it is resumed and what it logs to change none of its numbers.
_CHANGES_NO_NUMBER = (
    *("run.dir", "run.overwrite", "run.resume", "run.checkpoint_every", "run.keep_checkpoints"),
    *("run.checkpoint_writing", "run.on_failed_checkpoint", "data.root"),
    "log.",
)


@dataclass(frozen=True)
class Result:
    """The last figures of a done run, means over its clients: `scores[split, metric]`."""

    scores: Mapping[tuple[str, str], float]
    seconds: float


def look(folder: Path, wanted: Config) -> State:
    """Return what to do about the folder: `new` and `again` run, `resume` goes on, `done` is skipped.

    Raises:
        ConfigError: it holds a finished run of other settings, or one that cannot be compared.
    """
    if not (folder / "metrics.jsonl").exists():
        return "new"
    if not is_finished(folder):
        return "resume" if _can_go_on(folder, wanted) else "again"
    remedy = f"give another --out, or remove {folder}"
    try:
        found = load_config(str(folder / "config.yaml"), [])
    except ConfigError as refusal:
        raise ConfigError(
            f"{folder} holds a finished run whose settings cannot be compared: {refusal}; {remedy}"
        ) from None
    differences = different_keys(found, wanted)
    if differences:
        key, (old, new) = next(iter(differences.items()))
        more = f" and {len(differences) - 1} more keys" if len(differences) > 1 else ""
        raise ConfigError(
            f"{folder} holds a finished run with {key}={show(old)}{more}, but this sweep wants "
            f"{key}={show(new)}; {remedy}"
        )
    return "done"


def _can_go_on(folder: Path, wanted: Config) -> bool:
    """Whether an unfinished run with the wanted settings has left a checkpoint."""
    if not any((folder / "checkpoints").glob("round-*[0-9]")):
        return False
    try:
        return not different_keys(load_config(str(folder / "config.yaml"), []), wanted)
    except ConfigError:
        return False


def is_finished(folder: Path) -> bool:
    """Whether the run in the folder ended well and left its summary."""
    return read_status(folder).get("status") == "done" and (folder / "summary.json").exists()


def read_status(folder: Path) -> Mapping[str, object]:
    """Return status.json, or nothing where there is none that can be read."""
    try:
        status = json.loads((folder / "status.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def different_keys(found: Config, wanted: Config) -> dict[str, tuple[object, object]]:
    """Return `key: (found, wanted)` for the keys that may change a number."""
    old, new = found.flat(), wanted.flat()
    return {
        key: (old.get(key), new.get(key))
        for key in [*new, *(key for key in old if key not in new)]
        if old.get(key) != new.get(key)
        and key not in _CHANGES_NO_NUMBER
        and not key.startswith(_CHANGES_NO_NUMBER[-1])
        # A run writes down the engine that `auto` came to.
        and not (key == "run.engine" and new.get(key) == "auto")
    }


# -- the figures of a done run -----------------------------------------------------------------------


def read_result(folder: Path) -> Result:
    """Return the last figures of a done run.

    Raises:
        ConfigError: a file of the folder is missing or malformed.
    """
    try:
        summary = json.loads((folder / "summary.json").read_bytes())
        rounds, seconds = int(summary["rounds"]), float(summary["seconds"])
        with (folder / "metrics.jsonl").open("rb") as lines:
            # Most lines are of rounds and single clients: only the means are worth parsing.
            rows = [json.loads(line) for line in lines if b"null" in line and b"eval" in line]
        scores = {
            (str(row["split"]), metric): math.nan if row[metric] is None else float(row[metric])
            for row in rows
            if _is_final_mean(row, rounds)
            for metric in METRICS
            if metric in row
        }
    except OSError as error:
        raise ConfigError(f"{error.filename or folder} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"{folder} holds a run whose figures are malformed ({reason}); remove it to repeat it"
        ) from None
    return Result(scores, seconds)


def _is_final_mean(row: Mapping[str, object], rounds: int) -> bool:
    """Whether a row is the mean over clients' own models after the last round."""
    wanted = {"event": "eval", "client": None, "round": rounds}
    own = row.get("model", "personal") == "personal"
    return own and all(row.get(key, "") == value for key, value in wanted.items())
