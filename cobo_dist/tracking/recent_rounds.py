"""The numbers of recent rounds, kept for callbacks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class RecentRounds:
    """Finite numbers of rounds, from when they are logged until they are taken."""

    def __init__(self) -> None:
        self.wanted = False  # whether somebody takes them; otherwise nothing is kept
        self._numbers: dict[int, dict[str, float]] = {}

    def add(self, r: int, numbers: Mapping[str, Any]) -> None:
        """Add numbers of round r; what is no finite number is left out."""
        if self.wanted:
            self._numbers.setdefault(r, {}).update(
                (name, value)
                for name, value in numbers.items()
                if name != "round" and isinstance(value, (int, float)) and math.isfinite(value)
            )

    def take(self) -> list[tuple[int, dict[str, float]]]:
        """Return all rounds from 1 on since the last call, in order, each with its numbers."""
        numbers, self._numbers = self._numbers, {}
        return sorted((r, named) for r, named in numbers.items() if r)
