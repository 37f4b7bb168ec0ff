"""Coordinates of clients: known answers, and the same whatever the order of the clients."""

from __future__ import annotations

import numpy as np
import pytest

from cobo_dist.maths.embedding import principal_components, spectral_embedding


def blocks(labels: np.ndarray, across: float = 0.0) -> np.ndarray:
    strength = np.where(labels[:, None] == labels[None, :], 1.0, across)
    np.fill_diagonal(strength, 0.0)
    return strength


def test_components_are_those_of_the_singular_values() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(9, 30)) * np.linspace(3.0, 0.1, 30)
    found, shares = principal_components(points @ points.T)
    u, s, _ = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(found), np.abs(u[:, :2] * s[:2]), atol=1e-8)
    np.testing.assert_allclose(shares, (s**2 / (s**2).sum())[:2])
    assert (found[np.abs(found).argmax(axis=0), [0, 1]] > 0).all()


def test_two_separated_clusters_are_separated_by_the_first_component() -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(10) % 2
    points = rng.normal(size=(10, 50)) + 20.0 * labels[:, None]
    found, shares = principal_components(points @ points.T)
    low, high = sorted([found[labels == 0, 0], found[labels == 1, 0]], key=np.mean)
    assert low.max() < 0 < high.min()
    assert shares[0] > 0.9


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_equal_vectors_have_no_components(offset: float) -> None:
    points = np.full((4, 3), offset) + 1e-9
    found, shares = principal_components(points @ points.T)
    assert not found.any()
    assert not shares.any()


@pytest.mark.parametrize("groups", [2, 3, 4, 7])
@pytest.mark.parametrize("across", [0.0, 0.01])
def test_groups_are_in_places_of_their_own(groups: int, across: float) -> None:
    """Any two eigenvectors of four blocks put some of them on top of each other."""
    labels = np.arange(4 * groups) % groups
    xy = spectral_embedding(blocks(labels, across), labels)
    xy = xy / np.abs(xy).max()
    centers = np.stack([xy[labels == k].mean(axis=0) for k in range(groups)])
    assert np.abs(xy - centers[labels]).max() < 1e-6
    distance = np.hypot(*(centers[:, None] - centers[None, :]).transpose(2, 0, 1))
    assert distance[~np.eye(groups, dtype=bool)].min() > 0.5


def test_the_order_of_clients_does_not_matter() -> None:
    labels = np.repeat([0, 1, 2, 3], [5, 3, 4, 2])
    rng = np.random.default_rng(2)
    strength = blocks(labels) * 0.9 + 0.1 * rng.random((14, 14))
    strength = (strength + strength.T) / 2
    np.fill_diagonal(strength, 0.0)
    order = rng.permutation(14)
    found = spectral_embedding(strength, labels)
    other = spectral_embedding(strength[np.ix_(order, order)], labels[order])
    np.testing.assert_allclose(other, found[order], atol=1e-9)
