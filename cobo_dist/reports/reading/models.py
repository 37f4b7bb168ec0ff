"""What a map of clients needs of their saved models: inner products, without all models in memory.

Shapes: m clients, d numbers of a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from cobo_dist.errors import ConfigError
from cobo_dist.formatting import human_bytes
from cobo_dist.storage.files import kind_of
from cobo_dist.storage.schema import MODELS_DIR, client_name

_IN_MEMORY = 1 << 24
"""Numbers of all models that are in memory at a time."""
_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
_ADAPTERS = "adapter_model.safetensors"  # in PEFT's folder of a model

Span = tuple[str, int, int]  # rows from .. to of a tensor


def read_gram(
    folder: Path, clients: Sequence[int], most: int | None = None
) -> tuple[list[int], npt.NDArray[np.float64]]:
    """Return which of some clients have a saved model, and their inner products around the mean, [m, m].

    What counts are the tensors of real numbers that all of them have in one shape: parameters, and
    statistics of normalization.

    Args:
        folder: the run folder.
        clients: the clients to look for.
        most: the most bytes that the models may have; None: any number.

    Raises:
        ConfigError: fewer than two have a model, the models have nothing in common or too many bytes, or a
            file cannot be read.
    """
    found = {client: path for client in clients if (path := _file(folder, client)) is not None}
    if len(found) < 2:
        raise ConfigError(
            f"{folder / MODELS_DIR} has models of {len(found)} of {len(clients)} clients, and a map needs "
            "two; a run saves them at its end"
        )
    paths = list(found.values())
    shapes = _common(paths)
    size = sum(int(np.prod(shape)) for shape in shapes.values())
    if not size:
        raise ConfigError(
            f"the models in {folder / MODELS_DIR} have no tensor of one shape in common"
        )
    nbytes = 4 * size * len(paths)
    if most is not None and nbytes > most:
        raise ConfigError(
            f"the models in {folder / MODELS_DIR} have {human_bytes(nbytes)}, and a report reads at most "
            f"{human_bytes(most)}; `cobo_dist.open_run(...).plot_map()` reads all"
        )
    gram = np.zeros((len(paths), len(paths)))
    for spans in _pieces(shapes, _IN_MEMORY // len(paths)):
        rows = np.stack([_read(path, spans) for path in paths])
        rows -= rows.mean(axis=0)
        gram += rows @ rows.T
    if not np.isfinite(gram).all():
        raise ConfigError(
            f"the models in {folder / MODELS_DIR} are not all finite: training diverged"
        )
    return list(found), gram


def _file(folder: Path, client: int) -> Path | None:
    """The file of a client's model: one file or, for adapters, one in a folder; None where there is none."""
    name = folder / MODELS_DIR / client_name(client)
    for path in (name.with_suffix(".safetensors"), name / _ADAPTERS):
        try:
            if not kind_of(path.lstat().st_mode):
                return path
        except OSError:
            continue
    return None


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from None


def _common(paths: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """The tensors of real numbers that all models have in one shape."""
    common: dict[str, tuple[int, ...]] = {}
    for place, path in enumerate(paths):
        with _opened(path) as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            own = {
                name: tuple(part.get_shape())
                for name, part in parts.items()
                if part.get_dtype() in _TYPES
            }
        common = {k: v for k, v in own.items() if not place or common.get(k) == v}
    return common


def _pieces(shapes: dict[str, tuple[int, ...]], most: int) -> Iterator[list[Span]]:
    """Cut the tensors into pieces of about `most` numbers, of rows of tensors."""
    piece: list[Span] = []
    free = most
    for name, shape in shapes.items():
        count, width = (shape[0], int(np.prod(shape[1:]))) if shape else (1, 1)
        start = 0
        while start < count:
            rows = min(count - start, max(1, free // max(1, width)))
            piece.append((name, start, start + rows))
            start += rows
            free -= rows * width
            if free <= 0:
                yield piece
                piece, free = [], most
    if piece:
        yield piece


def _read(path: Path, spans: Sequence[Span]) -> npt.NDArray[np.float64]:
    """Return a piece of a model as one row."""
    with _opened(path) as file:
        parts = [
            file.get_slice(name)[start:stop]
            if file.get_slice(name).get_shape()
            else file.get_tensor(name)
            for name, start, stop in spans
        ]
    return np.concatenate([np.asarray(part, dtype=np.float64).ravel() for part in parts])
