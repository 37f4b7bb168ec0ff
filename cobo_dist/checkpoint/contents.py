"""What the coordinator's files of a checkpoint must hold. Their digests say that they are as they were
written; only this says that a run can go on with them, whoever wrote them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load

from cobo_dist.storage import checkpoint_format as checkpoint
from cobo_dist.storage.checkpoint_format import Damaged, Manifest
from cobo_dist.tracking.progress import Now
from cobo_dist.tracking.weight_snapshots import is_state


class _Exact(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Metrics(_Exact):
    size: int = Field(ge=0)
    sha256: str


class _Watch(_Exact):
    concerns: list[tuple[int, str, str]]
    jumps: list[float]
    drawn: int
    first_loss: float
    losses: list[float]
    skipped: list[int]


class _Book(_Exact):
    metrics: _Metrics
    bytes: dict[str, int]
    seconds: float
    last_evaluation: list[dict[str, float]]
    now: Now
    watch: _Watch


def read_book(
    folder: Path, manifest: Manifest
) -> tuple[dict[str, Any], dict[str, NDArray[np.generic]]]:
    """Return what `Book.state` left.

    Raises:
        Damaged: a file of it is not as it was written, or holds something else.
    """
    path = folder / checkpoint.BOOK
    text = checkpoint.read(folder, manifest, checkpoint.BOOK)
    try:
        held = _Book.model_validate_json(text)
        content: dict[str, Any] = json.loads(text)
    except (ValidationError, ValueError, RecursionError):
        raise Damaged(f"{path} is not what a run writes") from None
    if len(held.last_evaluation) != manifest.clients:
        raise Damaged(f"{path} is of {len(held.last_evaluation)} clients, not {manifest.clients}")
    path = folder / checkpoint.BOOK_ARRAYS
    try:
        arrays = load(checkpoint.read(folder, manifest, checkpoint.BOOK_ARRAYS))
    except (SafetensorError, KeyError, TypeError, ValueError):
        raise Damaged(f"{path} is not what a run writes") from None
    if not is_state(arrays, manifest.clients):
        raise Damaged(f"{path} is not what a run of {manifest.clients} clients writes")
    return content, arrays


def read_config(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Return the config that a checkpoint was written with.

    Raises:
        Damaged: it is not as it was written, or holds something else.
    """
    try:
        content = yaml.safe_load(checkpoint.read(folder, manifest, checkpoint.CONFIG))
        if isinstance(content["run"]["engine"], str):
            return dict(content)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError):
        pass
    raise Damaged(f"{folder / checkpoint.CONFIG} is not what a run writes")
