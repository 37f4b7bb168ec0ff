"""Principal directions and angles, against SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import orth, subspace_angles

from cobo_dist.maths.subspaces import angle_between, principal_basis


def spanned(rows: np.ndarray, vectors: int) -> np.ndarray:
    """The leading right singular vectors of rows, [F, p]."""
    return np.linalg.svd(rows, full_matrices=False)[2][:vectors].T


@pytest.mark.parametrize("vectors", [1, 3, 50])
def test_a_basis_spans_the_leading_directions_of_each_group(vectors: int) -> None:
    rng = np.random.default_rng(0)
    rows, groups = rng.normal(size=(40, 12)), np.repeat([7, 2], [25, 15])
    found = principal_basis(rows, groups, vectors)
    parts = np.concatenate([spanned(rows[groups == g], vectors) for g in (2, 7)], axis=1)
    np.testing.assert_allclose(found.T @ found, np.eye(found.shape[1]), atol=1e-12)
    assert found.shape[1] == min(12, parts.shape[1])
    np.testing.assert_allclose(subspace_angles(found, parts), 0, atol=1e-7)


def test_dependent_rows_have_as_many_directions_as_they_span() -> None:
    rows = np.outer([1.0, 2.0, 3.0], [1.0, 0.0, 1.0])
    assert principal_basis(rows, np.array([0, 1, 1]), 2).shape == (3, 1)
    assert principal_basis(np.zeros((2, 3)), np.zeros(2, dtype=np.int64), 2).shape == (3, 0)
    assert principal_basis(np.zeros((0, 3)), np.zeros(0, dtype=np.int64), 2).shape == (3, 0)


def test_angles_are_scipys() -> None:
    rng = np.random.default_rng(1)
    one, other = orth(rng.normal(size=(9, 3))), orth(rng.normal(size=(9, 4)))
    angles = np.degrees(subspace_angles(one, other))
    assert angle_between(one, other, "smallest") == pytest.approx(angles.min(), abs=1e-9)
    assert angle_between(one, other, "mean") == pytest.approx(angles.mean(), abs=1e-9)
    assert angle_between(one, one, "mean") == pytest.approx(0, abs=1e-5)
    assert angle_between(one, one[:, :0], "smallest") == 90.0
