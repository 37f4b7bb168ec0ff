"""The capped coupling: symmetric, doubly stochastic, stable, and the mean where W is a block of ones."""

from __future__ import annotations

import numpy as np
import pytest

from cobo_dist.maths import coupling
from cobo_dist.maths.weights import Weights


def coupled(w_nn: np.ndarray, pull: float) -> np.ndarray:
    """The matrix of a round's coupling: x = matrix @ y."""
    n = len(w_nn)
    weights = Weights.of_rows(np.arange(n), w_nn, symmetric=True)
    b, keep_c, scale = coupling.capped(weights, coupling.degrees(weights), pull)
    assert b.symmetric
    return np.diag(keep_c) + scale * b.dense()


def some_weights(n: int, seed: int = 0) -> np.ndarray:
    w = np.random.default_rng(seed).uniform(size=(n, n)) ** 3
    w[w < 0.1] = 0.0
    return (w + w.T) / 2


@pytest.mark.parametrize("pull", [1e-3, 0.2, 1e9])
def test_means_are_kept_and_nothing_overshoots(pull: float) -> None:
    matrix = coupled(some_weights(9), pull)
    np.testing.assert_allclose(matrix.sum(axis=0), 1.0, atol=1e-14)
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-14)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-15)
    assert np.linalg.eigvalsh(matrix).min() > -1.0 + 1e-3


def test_a_small_pull_is_the_explicit_step() -> None:
    w, pull = some_weights(6), 1e-4
    np.fill_diagonal(w, 0.0)
    explicit = np.eye(6) - pull * (np.diag(w.sum(axis=1)) - w)
    np.testing.assert_allclose(coupled(w, pull), explicit, atol=1e-14)


@pytest.mark.parametrize("sizes", [(49, 49), (3, 3, 3), (5,), (2, 3, 1)])
def test_a_block_of_ones_becomes_its_mean(sizes: tuple[int, ...]) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    w = (groups[:, None] == groups).astype(np.float64)
    matrix = coupled(w, 1e6)
    np.testing.assert_allclose(matrix, w / w.sum(axis=1, keepdims=True), atol=1e-15)


def test_groups_of_one_level_stay_compressed() -> None:
    weights = Weights(np.arange(1000), np.zeros(1000, dtype=int), symmetric=True)
    b, keep_c, scale = coupling.capped(weights, np.full(1000, 999.0), 1.0)
    assert b.stored == 0
    assert scale == 1e-3
    np.testing.assert_array_equal(keep_c, 0.0)
