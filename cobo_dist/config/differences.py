"""Which keys differ between two configs, and whether that makes another run."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from cobo_dist.config.schema import Config
from cobo_dist.settings import Section, flatten

Flat = Mapping[str, Any]
"""A config with dotted keys."""

STORAGE_KEYS = frozenset((
    "plugins",
    "run.dir", "run.overwrite", "run.resume", "run.checkpoint_every", "run.keep_checkpoints",
    "run.checkpoint_writing", "run.on_failed_checkpoint", "data.root",
))  # fmt: skip
"""Keys that, like all of `log`, change no number of a run."""

RESUME_KEYS = STORAGE_KEYS | {
    "run.rounds", "run.eval_every", "run.eval_splits", "run.log_weights_every", "run.device",
    "run.threads", "run.engine", "data.file", "data.text_dir", "data.eval_batch_size",
    "data.eval_examples", "task.file", "task.source.file", "task.source.folder",
    "task.partition.file", "comm.backend", "comm.timeout", "comm.connect_timeout", "comm.check",
    "comm.placement", "comm.placement_every", "comm.max_lag", "callbacks", "membership.file",
    "participation.trace",
}  # fmt: skip
"""Keys that may also change when a run is resumed: they do not change what it learns. Whether the data
behind a new path are the same is checked by their fingerprint."""


def differences(old: Flat, new: Flat, ignored: Collection[str]) -> dict[str, tuple[Any, Any]]:
    """Return `key: (old, new)` for the keys that differ, without those of `ignored` and of `log`."""
    return {
        key: (old.get(key, "unset"), new.get(key, "unset"))
        for key in [*new, *(key for key in old if key not in new)]
        if old.get(key) != new.get(key) and key not in ignored and not key.startswith("log.")
    }


def resume_differences(config: Config, old: Mapping[str, Any]) -> list[str]:
    """Return why a run of `config` cannot continue one of the nested config `old`: `key old -> new`."""
    before, now = complete(old), config.flat()
    found = [
        f"{key} {was} -> {new}" for key, (was, new) in differences(before, now, RESUME_KEYS).items()
    ]
    if before.get("run.rounds") != config.run.rounds:
        changed = f"run.rounds {before.get('run.rounds')} -> {config.run.rounds}"
        sections = (getattr(config, name) for name in Config.model_fields)
        needs = [why for one in sections if isinstance(one, Section) for why in one.needs_rounds]
        found += [f"{changed}, and {why}" for why in needs]
    return found


def complete(old: Mapping[str, Any]) -> Flat:
    """Return an earlier config, flat; a key that its version did not have gets its default."""
    known = copy.deepcopy(dict(old))
    for _ in range(2):
        try:
            return {**flatten(old), **Config.model_validate(known).flat()}
        except ValidationError as error:
            # Keys that this version does not have stay in the result, as differences.
            for one in error.errors():
                if one["type"] == "extra_forbidden":
                    _remove(known, one["loc"])
    return flatten(old)


def _remove(nested: Any, location: Sequence[int | str]) -> None:
    """Remove a key of nested dictionaries; names of variants in its location are no keys."""
    *path, key = location
    for step in path:
        nested = nested.get(step, nested)
    nested.pop(key, None)
