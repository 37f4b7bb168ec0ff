"""Fixtures and markers that all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from launching import environment, mpirun
from pool import MpiPool, RankPool

MARKS_OF_FIXTURES = {"mpi_pool": pytest.mark.mpi, "cluster": pytest.mark.slurm}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use ranks under mpirun or the virtual SLURM cluster."""
    for item in items:
        used = set(getattr(item, "fixturenames", ()))
        params = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if any(isinstance(one, str) and one == "mpi" for one in params):
            used.add("mpi_pool")
        for fixture in used & MARKS_OF_FIXTURES.keys():
            item.add_marker(MARKS_OF_FIXTURES[fixture])


@pytest.fixture(scope="session")
def gloo_pool() -> Iterator[RankPool]:
    """Four ranks that communicate by gloo, started once."""
    ranks = RankPool(4)
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def mpi_pool() -> Iterator[RankPool]:
    """Four ranks under mpirun that communicate by MPI, started once; skips if there is no mpirun."""
    ranks = MpiPool(mpirun(4), environment())
    yield ranks
    ranks.close()


@pytest.fixture
def pool(gloo_pool: RankPool) -> RankPool:
    """Four ranks; test files that compare transports replace this fixture."""
    return gloo_pool
