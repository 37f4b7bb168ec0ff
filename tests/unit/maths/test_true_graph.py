"""The right graph: its rows, its order, and the correlation of W with it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cobo_dist.maths import true_graph
from cobo_dist.maths.true_graph import TrueGraph, graph_correlation
from cobo_dist.maths.weights import Weights


def near(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.asarray(1.0 - np.abs(one - other))


def of_rows(w_nn: np.ndarray) -> Weights:
    return Weights.of_rows(range(len(w_nn)), w_nn)


def test_a_product_of_graphs_is_that_of_their_weights() -> None:
    line, clusters = TrueGraph.of([0.0, 0.5, 1.0], near), TrueGraph.of([0, 0, 1])
    both = line & clusters
    assert both.rows([1, 0]).tolist() == [[0.5, 1.0, 0.0], [1.0, 0.5, 0.0]]
    assert clusters.are_clusters
    assert (clusters & clusters).are_clusters
    assert not both.are_clusters


def test_a_reordered_graph_has_an_order_that_puts_it_back() -> None:
    line = TrueGraph.of(np.linspace(0, 1, 7), near)
    mixed = line.reordered([3, 1, 6, 0, 5, 2, 4])
    every = mixed.rows(range(7))
    assert every[0, 1] == line.rows([3])[0, 1]
    assert np.array_equal(every[np.ix_(mixed.order, mixed.order)], line.rows(range(7)))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(3, 9), st.integers(0, 10**6), st.integers(1, 30))
def test_the_correlation_is_that_of_all_pairs(n: int, seed: int, piece: int) -> None:
    """Whatever the pieces in which rows are visited; the diagonal does not count."""
    rng = np.random.default_rng(seed)
    w_nn, graph = rng.random((n, n)), TrueGraph.of(rng.random(n), near)
    off = ~np.eye(n, dtype=bool)
    expected = np.corrcoef(w_nn[off], graph.rows(range(n))[off])[0, 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(true_graph, "_MAX_DENSE", piece)
        assert graph_correlation(of_rows(w_nn), graph) == pytest.approx(expected, abs=1e-6)


def test_a_perfect_w_has_correlation_1_and_a_constant_one_has_none() -> None:
    graph = TrueGraph.of(np.linspace(0, 1, 6), near)
    assert graph_correlation(of_rows(graph.rows(range(6))), graph) == pytest.approx(1.0)
    assert graph_correlation(of_rows(1.0 - graph.rows(range(6))), graph) == pytest.approx(-1.0)
    for w_nn in (np.ones((6, 6)), np.full((6, 6), 1 / 6), np.zeros((6, 6))):
        assert graph_correlation(of_rows(w_nn), graph) is None
    assert graph_correlation(of_rows(np.ones((1, 1))), TrueGraph.of([0])) is None


def test_many_clients_need_no_matrix() -> None:
    """20,000 clients: a row takes what a row needs."""
    n = 20_000
    graph = TrueGraph.of(np.arange(n) / n, near) & TrueGraph.of(np.arange(n) % 3)
    row = graph.rows([0])
    assert row.shape == (1, n)
    assert row[0, 3] == pytest.approx(1 - 3 / n)
    w = Weights(range(n), np.arange(n) % 3, symmetric=True)
    clusters = TrueGraph.of(np.arange(n) % 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(true_graph, "_MAX_ROWS", 20)
        assert graph_correlation(w, clusters) == pytest.approx(1.0)
