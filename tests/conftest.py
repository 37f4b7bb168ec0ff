"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from launching import environment, mpirun
from pool import MpiPool, RankPool


@pytest.fixture(scope="session")
def gloo_pool() -> Iterator[RankPool]:
    """Four ranks that talk by gloo, started once."""
    ranks = RankPool(4)
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def mpi_pool() -> Iterator[RankPool]:
    """Four ranks under mpirun that talk by MPI, started once; skips where there is no mpirun."""
    ranks = MpiPool(mpirun(4), environment())
    yield ranks
    ranks.close()


@pytest.fixture
def pool(gloo_pool: RankPool) -> RankPool:
    """Four ranks, whatever they talk by."""
    return gloo_pool
