"""What clients show in place of models, such as their predictions, and how far these are apart.

Shapes: c clients on this rank, k others, s numbers of a signature.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cobo_dist.lazy import Tensor


class Signatures(Protocol):
    """Some numbers of each client of this rank, which others may see."""

    @property
    def rows_cs(self) -> Tensor:
        """The signatures, to be sent."""

    def distances(self, others_ks: Tensor) -> NDArray[np.float64]:
        """Return how far this rank's clients are from others [c, k]; 0: alike."""
