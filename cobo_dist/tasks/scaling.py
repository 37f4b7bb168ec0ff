"""Inputs and targets as models take them: numbers of mean 0 and standard deviation 1, or as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobo_dist.tasks.columns import Columns

_ROWS_AT_ONCE = 65_536


def standardized(
    x: NDArray[Any] | Columns, rows: Sequence[NDArray[np.int64]], dtype: np.dtype[Any]
) -> tuple[NDArray[Any], list[float], list[float]]:
    """Return scale * x + offset of `dtype`, and scale and offset of each feature [N, ...].

    Over the given rows together, each feature then has mean 0 and standard deviation 1, or 0 if it is
    constant.
    """
    own = np.zeros(len(x), dtype=bool)
    for some in rows:
        own[some] = True
    scaled = np.empty((len(x), int(np.prod(x.shape[1:]))), dtype=dtype)
    scales, offsets = [], []
    for first, part in _parts(x):
        if isinstance(x, Columns):  # a copy of one column is soon made, and its sums are faster
            mean, std = (one(part[own], axis=0) for one in (np.mean, np.std))
        else:
            mean = part.mean(axis=0, dtype=np.float64, where=own[:, None])
            std = part.std(axis=0, dtype=np.float64, where=own[:, None])
        # A constant feature becomes 0; the sum of its mean rounds, so its deviation may not be exactly 0.
        scale = 1.0 / np.where(std > 1e-12 * np.abs(mean), std, 1.0)
        offset = -mean * scale
        scales += scale.tolist()
        offsets += offset.tolist()
        for at in range(0, len(part), _ROWS_AT_ONCE):  # or else two more copies of the data
            block = part[at : at + _ROWS_AT_ONCE] * scale + offset
            scaled[at : at + len(block), first : first + part.shape[1]] = block
    return scaled.reshape(x.shape), scales, offsets


def as_they_are(x: NDArray[Any] | Columns, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the numbers in `dtype`."""
    if not isinstance(x, Columns):
        return x.astype(dtype, copy=False)
    numbers = np.empty(x.shape, dtype=dtype)
    for column, part in _parts(x):
        numbers[:, column] = part[:, 0]
    return numbers


def _parts(x: NDArray[Any] | Columns) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the features [N, k] that are in memory at once, and the number of the first."""
    if isinstance(x, Columns):
        for number, column in enumerate(x):
            yield number, column[:, None]
    else:
        yield 0, x.reshape(len(x), -1)
