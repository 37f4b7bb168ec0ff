"""The links of W: their agreement with known clusters, and the clusters that they form."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components
from sklearn.metrics import adjusted_rand_score, f1_score

from cobo_dist.maths.graph import (
    adjusted_rand,
    cluster_match,
    component_labels,
    components,
    link_f1,
    link_threshold,
)
from cobo_dist.maths.weights import Weights


def held(w_nn: np.ndarray) -> Weights:
    return Weights.of_rows(range(len(w_nn)), w_nn.astype(np.float32))


def scores(w_nn: np.ndarray, truth: tuple[int, ...]) -> tuple[float, float, float]:
    weights = held(w_nn)
    return cluster_match(weights, truth), link_f1(weights, truth), adjusted_rand(weights, truth)


CLUSTERS = (0, 1, 2, 3, 0, 1, 2, 3)
SAME = np.equal.outer(CLUSTERS, CLUSTERS).astype(float)


def test_a_method_that_links_nobody_scores_0() -> None:
    """Of 28 pairs 24 are rightly not linked, so the link accuracy alone would say 85.7%."""
    accuracy, f1, rand = scores(np.eye(8), CLUSTERS)
    assert accuracy == pytest.approx(24 / 28)
    assert (f1, rand) == (0, 0)


@pytest.mark.parametrize(
    ("w_nn", "clusters", "expected"),
    [
        (SAME, CLUSTERS, (1, 1, 1)),
        # All linked: precision 4/28, recall 1.
        (np.ones((8, 8)), CLUSTERS, (4 / 28, 2 * (4 / 28) / (1 + 4 / 28), 0)),
        (np.ones((3, 3)), (0, 0, 0), (1, 1, 1)),
        (np.eye(3), (0, 1, 2), (1, 1, 1)),  # there is nothing to link
        (np.ones((3, 3)), (0, 1, 2), (0, 0, 0)),
        (np.ones((1, 1)), (0,), (1, 1, 1)),
    ],
    ids=["right", "all", "one_cluster", "singles", "singles_linked", "one_client"],
)
def test_scores_of_known_graphs(
    w_nn: np.ndarray, clusters: tuple[int, ...], expected: tuple[float, float, float]
) -> None:
    assert scores(w_nn, clusters) == pytest.approx(expected)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(n=st.integers(2, 9), level=st.sampled_from([0.0, 0.5, 1.0]), seed=st.integers(0, 10_000))
def test_scores_equal_those_of_the_matrix(n: int, level: float, seed: int) -> None:
    """From groups and stored entries of any kind, the same as from all n^2 weights."""
    rng = np.random.default_rng(seed)
    dense = rng.choice([0.0, 0.2, 0.5, 1.0], size=(n, n), p=[0.5, 0.2, 0.2, 0.1])
    dense = np.maximum(dense, dense.T)
    truth = rng.integers(0, 3, n)
    weights = Weights(range(n), rng.integers(0, 3, n), level)
    weights.put_rows(np.arange(n), dense.astype(np.float32))
    off, linked = ~np.eye(n, dtype=bool), dense >= 0.5
    same = truth[:, None] == truth[None, :]
    assert link_f1(weights, truth) == pytest.approx(
        f1_score(same[off], linked[off], zero_division=1.0)
    )
    _, labels = connected_components(linked & off, directed=False)
    assert adjusted_rand(weights, truth) == pytest.approx(adjusted_rand_score(truth, labels))
    np.testing.assert_array_equal(component_labels(weights), labels)
    assert components(weights) == labels.max() + 1


def test_a_link_in_either_direction_joins_two_clients() -> None:
    """On a simplex: 0 chooses 1 and 2 chooses 3, which share equally; a link must exceed 1/3."""
    w_nn = np.array([[0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]]) / 1.0
    w_nn[[1, 3]] = (1 - np.eye(4))[[1, 3]] / 3
    threshold = link_threshold(1 / 3)
    assert component_labels(held(w_nn), threshold).tolist() == [0, 0, 1, 1]
    # 2 of the 4 ordered pairs within clusters are linked, and none across.
    assert link_f1(held(w_nn), (0, 0, 1, 1), threshold) == pytest.approx(2 * 2 / (2 + 4))
    assert adjusted_rand(held(w_nn), (0, 0, 1, 1), threshold) == 1


def test_ten_thousand_clients_take_no_matrix() -> None:
    """W of 10,000 clients in 100 clusters, with a stray link and a cut: n x n bytes would be 100 MB."""
    n = 10_000
    truth = np.arange(n) % 100
    weights = Weights(range(n), truth, symmetric=True)
    one, two = np.array([0, 1]), np.array([1, 0])
    weights.put(one, two, np.ones(2, dtype=np.float32))  # joins clusters 0 and 1
    weights.put(np.array([2, 102]), np.array([102, 2]), np.zeros(2, dtype=np.float32))
    tracemalloc.start()
    f1, rand = link_f1(weights, truth), adjusted_rand(weights, truth)
    labels = component_labels(weights)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6
    assert labels.max() + 1 == 99
    assert f1 == pytest.approx(1 - 1 / (n * 99), abs=1e-5)
    assert rand == pytest.approx(0.99, abs=0.01)
    assert max(f1, rand) < 1
