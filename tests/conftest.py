"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pool import RankPool


@pytest.fixture(scope="session")
def pool() -> Iterator[RankPool]:
    """Four ranks, started once."""
    ranks = RankPool(4)
    yield ranks
    ranks.close()
