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

    Raises:
        OverflowError: numbers whose square is infinite.
    """
    own: NDArray[np.bool_] = np.zeros(len(x), dtype=bool)
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
        if not np.isfinite(mean + std).all():
            number = first + int(np.argmin(np.isfinite(mean + std)))
            raise _too_large(x, number, "to be standardized")
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
    """Return the numbers in `dtype`.

    Raises:
        OverflowError: it cannot hold them.
    """
    numbers = np.empty((len(x), int(np.prod(x.shape[1:]))), dtype=dtype)
    for first, part in _parts(x):
        some = numbers[:, first : first + part.shape[1]]
        some[...] = part
        finite = np.isfinite(some)
        if not finite.all():
            raise _too_large(x, first + int(np.argmin(finite.all(axis=0))), f"for {dtype}")
    return numbers.reshape(x.shape)


def _too_large(x: NDArray[Any] | Columns, number: int, what: str) -> OverflowError:
    """Return an error that names a feature, and what to do."""
    if isinstance(x, Columns) and x.names:
        name = x.names[number]
        return OverflowError(
            f"column {name} has numbers too large {what}; divide them or set task.source.drop=[{name}]"
        )
    return OverflowError(f"number {number} of an example is too large {what}; divide or drop it")


def _parts(x: NDArray[Any] | Columns) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the features [N, k] that are in memory at once, and the number of the first."""
    if isinstance(x, Columns):
        for number, column in enumerate(x):
            yield number, column[:, None]
    else:
        yield 0, x.reshape(len(x), -1)
