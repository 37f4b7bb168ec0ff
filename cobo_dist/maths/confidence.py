"""How far the mean over a few seeds may be from the expected value."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def half_width(std: npt.ArrayLike, count: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return half the width of the 95% confidence interval of a mean, by Student's t.

    `std` is the sample standard deviation of `count` values n: t(0.975, n - 1) std / sqrt(n). The shapes
    of both are broadcast. A single value says nothing about its spread: NaN.

    >>> half_width([1.0, 1.0, 1.0], [1, 2, 3]).round(3).tolist()
    [nan, 8.985, 2.484]
    """
    from scipy.special import stdtrit

    counts: Any = np.asarray(count, dtype=np.float64)
    known = counts > 1
    quantile = np.where(known, stdtrit(np.where(known, counts - 1, 1.0), 0.975), np.nan)
    return np.asarray(quantile * np.asarray(std) / np.sqrt(counts), dtype=np.float64)
