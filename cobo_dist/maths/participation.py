"""Which clients take part in a round: drawn by every rank alike, without a message."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cobo_dist.maths import seeds


class Participation:
    """Which of n clients take part in each round: a pure function of (seed, "clients", t).

    >>> Participation(seed=0, clients=5, count=2)(7).tolist()
    [False, False, True, True, False]
    """

    def __init__(self, seed: int, clients: int, count: int) -> None:
        """Draw `count` of `clients` in each round."""
        self.seed, self.clients, self.count = seed, clients, count
        self.stands_for: int | None = None
        """The round whose draw is returned for any round; a dry run samples rounds so. None: each its own."""
        self._last: tuple[int, NDArray[np.bool_]] | None = None

    @property
    def is_partial(self) -> bool:
        """Whether some clients do not take part."""
        return self.count < self.clients

    def __call__(self, t: int) -> NDArray[np.bool_]:
        """Return whether each client takes part in round t, [n]: the same on every rank."""
        t = t if self.stands_for is None else self.stands_for
        if self._last is None or self._last[0] != t:
            part_n = np.ones(self.clients, dtype=bool)
            if self.is_partial:
                order = seeds.permutation(seeds.key(self.seed, "clients", t), self.clients)
                part_n[order[self.count :].numpy()] = False
            self._last = t, part_n
        return self._last[1]
