"""Subspaces of rows, and the angles between them.

Shapes: B rows of F numbers, p vectors of a group of rows, q vectors of a basis.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Angle = Literal["smallest", "mean"]


def principal_basis(rows_bf: Floats, groups_b: NDArray[np.int64], vectors: int) -> Floats:
    """Return an orthonormal basis [F, q] of the principal directions of all groups of rows.

    Of each group these are its `vectors` leading singular vectors, or as many as it has.

    >>> rows = np.array([[2.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    >>> np.abs(principal_basis(rows, np.array([0, 0, 1]), vectors=1)).round(6).tolist()
    [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]
    """
    directions = [
        _leading(rows_bf[groups_b == group].T, vectors) for group in np.unique(groups_b).tolist()
    ]
    if not directions:
        return np.zeros((rows_bf.shape[1], 0))
    return _leading(np.concatenate(directions, axis=1), rows_bf.shape[1])


def angle_between(basis_fq: Floats, other_fr: Floats, angle: Angle) -> float:
    """Return the smallest or the mean principal angle of two subspaces with orthonormal bases, in degrees.

    It is 90 where one has no dimension.

    >>> diagonal = np.array([[1.0], [1.0]]) / np.sqrt(2.0)
    >>> round(angle_between(np.eye(2)[:, :1], diagonal, "mean"), 6)
    45.0
    """
    if not (basis_fq.shape[1] and other_fr.shape[1]):
        return 90.0
    cosines = np.linalg.svd(basis_fq.T @ other_fr, compute_uv=False)
    angles = np.degrees(np.arccos(np.clip(cosines, 0.0, 1.0)))  # from the smallest on
    return float(angles[0] if angle == "smallest" else angles.mean())


def _leading(columns_fb: Floats, most: int) -> Floats:
    """Return at most so many leading left singular vectors, those of singular values above rounding."""
    vectors, sizes, _ = np.linalg.svd(columns_fb, full_matrices=False)
    rank = int(np.sum(sizes > sizes[:1].sum() * max(columns_fb.shape) * np.finfo(np.float64).eps))
    found: Floats = vectors[:, : min(most, rank)]
    return found
