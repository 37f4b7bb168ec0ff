"""Columns of names, and columns of numbers that are read one at a time.

Shapes: N examples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAX_SPAN = 1 << 24
"""Between the least and the greatest of whole numbers that are counted, which needs no sorting."""


@dataclass(frozen=True)
class Coded:
    """A column of names: each once, in ascending order, and the number of each example's name [N].

    Millions of rows with few names so need no text each.
    """

    codes: NDArray[np.integer[Any]]
    names: Sequence[str]

    @classmethod
    def of(cls, values: NDArray[Any] | Coded) -> Coded:
        """Return a column of whole numbers or text in this form."""
        if isinstance(values, Coded):
            return values
        own, numbers = numbered(values)
        return cls(numbers, [str(one) for one in own])

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: slice) -> Coded:
        return Coded(self.codes[rows], self.names)


def numbered(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the different values, ascending, and for each of the values [N] which it is.

    >>> own, numbers = numbered(np.array([7, 3, 7]))
    >>> own.tolist(), numbers.tolist()
    ([3, 7], [1, 0, 1])
    """
    if values.dtype.kind in "iu" and len(values):
        low, span = int(values.min()), int(values.max()) - int(values.min())
        if span < min(_MAX_SPAN, 8 * len(values)):
            offsets = (values - values.dtype.type(low)).astype(f"u{values.dtype.itemsize}")
            present = np.bincount(offsets.astype(np.int64)) > 0
            own = np.flatnonzero(present).astype(values.dtype) + values.dtype.type(low)
            if low == 0 and present.all() and values.dtype == np.int64 and values.flags.writeable:
                return own, values
            return own, (np.cumsum(present) - 1)[offsets]
    own, numbers = np.unique(values, return_inverse=True)
    return own, numbers.reshape(-1).astype(np.int64)


class Columns(ABC):
    """Inputs of N examples as columns of numbers, too many to have them all twice in memory."""

    shape: tuple[int, int]  # [N, columns]
    names: Sequence[str] = ()  # of the columns, if they have some

    @abstractmethod
    def __iter__(self) -> Iterator[NDArray[np.float64]]:
        """Yield each column [N].

        Raises:
            ConfigError: it has text, NaN or infinities.
        """

    def __len__(self) -> int:
        return self.shape[0]
