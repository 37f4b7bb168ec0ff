"""Clients as points in the plane: by what they are (principal components) or by their links (spectral).

Shapes: m clients, g groups.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_NEAR = 0.8
"""Eigenvalues of at least this part of the largest say about as much as it."""


def principal_components(gram_mm: NDArray[np.floating[Any]]) -> tuple[Floats, Floats]:
    """Return the first two principal components of m vectors from their inner products.

    Args:
        gram_mm: the inner products of the vectors minus a vector, whichever; it does not matter.

    Returns:
        the coordinates [m, 2], and the share of the variance that each of the two has [2]; the coordinate
        of an axis that is largest in size is positive. Zeros where the vectors are all equal.

    >>> points = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 2.0], [4.0, 2.0]])
    >>> coordinates, shares = principal_components(points @ points.T)
    >>> np.abs(coordinates).round(6).tolist()[0], shares.round(6).tolist()
    ([2.0, 1.0], [0.8, 0.2])
    """
    gram = np.asarray(gram_mm, dtype=np.float64)
    centered = gram - gram.mean(axis=0) - gram.mean(axis=1)[:, None] + gram.mean()
    values, vectors = np.linalg.eigh(centered)
    values = np.maximum(values[::-1], 0.0)
    two = np.zeros((len(gram), 2))
    count = min(2, len(gram))
    two[:, :count] = vectors[:, ::-1][:, :count] * np.sqrt(values[:count])
    total = values.sum()
    # Sums of products of nearly equal vectors are rounded, so equal vectors may differ a little here.
    if total <= 1e-12 * np.abs(np.diag(gram)).sum():
        return np.zeros_like(two), np.zeros(2)
    return _signed(two), np.pad(values[:2], (0, 2 - count)) / total


def spectral_embedding(strength_mm: Floats, label_m: NDArray[np.int64]) -> Floats:
    """Return the clients' coordinates in two eigenvectors of the normalized graph Laplacian, [m, 2].

    These are the second and third, after the constant one, times their eigenvalues of the normalized
    weights. A small weight, the mean of all, is added
    between any two clients: a graph of several parts has no unique eigenvectors otherwise. Where more than
    two eigenvalues are nearly as large as the second (as with more than three groups that are not linked),
    any two of their eigenvectors would lay some groups on top of each other. Then the plane in their
    span is taken that is nearest to having the groups `label_m` in a circle, in the order of their numbers.

    Args:
        strength_mm: weights of at least 0, symmetric, with some that differ. [m, m]
        label_m: the groups' numbers. [m]
    """
    m = len(strength_mm)
    near_mm = strength_mm + strength_mm.mean()
    root_m = np.sqrt(near_mm.sum(axis=1))
    values, vectors = np.linalg.eigh(near_mm / np.outer(root_m, root_m))
    values, vectors = values[::-1][1:], vectors[:, ::-1][:, 1:]
    count = max(2, int((values >= _NEAR * values[0]).sum())) if m > 2 else m - 1
    # As in a diffusion map; an eigenvector whose eigenvalue is not positive tells groups apart no more.
    plane = vectors[:, :2] * np.maximum(values[:2], 0.0)
    groups = len(np.unique(label_m))
    circular = groups > 2 and count > 2
    if circular:
        angle_m = 2.0 * np.pi * np.unique(label_m, return_inverse=True)[1].reshape(-1) / groups
        circle = np.stack([np.cos(angle_m), np.sin(angle_m)], axis=1) * root_m[:, None]
        span = vectors[:, :count]
        plane = span @ (span.T @ circle)
    two = np.zeros((m, 2))
    two[:, : plane.shape[1]] = plane / root_m[:, None]
    return two if circular else _signed(two)


def _signed(two: Floats) -> Floats:
    """Turn axes so that the first of the largest coordinates is positive: eigenvectors have no sign."""
    size = np.abs(two)
    first = (size >= size.max(axis=0) * (1.0 - 1e-9)).argmax(axis=0)
    return two * np.where(two[first, [0, 1]] < 0, -1.0, 1.0)
