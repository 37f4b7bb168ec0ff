"""Numbers brought to mean 0 and standard deviation 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ROWS_AT_ONCE = 65_536


def standardized(
    x: NDArray[Any], rows: Sequence[NDArray[np.int64]], dtype: np.dtype[Any]
) -> tuple[NDArray[Any], list[float], list[float]]:
    """Return scale * x + offset of `dtype`, and scale and offset of each feature [N, ...].

    Over the given rows together, each feature then has mean 0 and standard deviation 1, or 0 if it is
    constant.
    """
    flat = x.reshape(len(x), -1)
    own = np.zeros((len(x), 1), dtype=bool)
    own[np.concatenate(rows)] = True
    mean = flat.mean(axis=0, dtype=np.float64, where=own)
    std = flat.std(axis=0, dtype=np.float64, where=own)
    # A constant feature becomes 0; the sum of its mean rounds, so its deviation may not be exactly 0.
    scale = 1.0 / np.where(std > 1e-12 * np.abs(mean), std, 1.0)
    offset = -mean * scale
    scaled = np.empty(flat.shape, dtype=dtype)
    for first in range(0, len(flat), _ROWS_AT_ONCE):  # or else two more copies of the data
        part = slice(first, first + _ROWS_AT_ONCE)
        scaled[part] = flat[part] * scale + offset
    return scaled.reshape(x.shape), scale.tolist(), offset.tolist()
