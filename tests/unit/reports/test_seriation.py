"""Pictures of W where the true clusters are unknown: linked clients are next to each other."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_data import levels_of, weights_on
from report_runs import CLUSTERS, SAME, N, Report, blocks, write_run
from scipy.sparse.csgraph import connected_components

from cobo_dist.cli.report import main
from cobo_dist.maths.true_graph import Truth
from cobo_dist.maths.weights import Weights
from cobo_dist.reports.reading import read_run
from cobo_dist.reports.reading.seriation import seriate
from cobo_dist.reports.reading.sparse_weights import read_listed
from cobo_dist.storage.run_dir import RunDir
from cobo_dist.tracking.weight_snapshots import WeightSnapshots


def is_in_blocks(order: np.ndarray, labels: np.ndarray) -> bool:
    """Whether the clients of each label are next to each other."""
    return int((np.diff(labels[order]) != 0).sum()) == len(np.unique(labels)) - 1


def forget_clusters(run: Path) -> Path:
    """Make the true clusters of a fabricated run unknown."""
    with np.load(run / "W.npz") as stored:
        np.savez(run / "W.npz", rounds=stored["rounds"], weights=stored["weights"])
    return run


@settings(max_examples=150, deadline=None, derandomize=True)
@given(n=st.integers(1, 12), threshold=st.sampled_from([0.2, 0.5, 0.8]), seed=st.integers(0, 9999))
def test_components_are_blocks_at_any_threshold(n: int, threshold: float, seed: int) -> None:
    """W need not be symmetric, and may hold NaN, which links nobody."""
    rng = np.random.default_rng(seed)
    w_nn = (rng.random((n, n)) * (rng.random((n, n)) < 0.3)).astype(np.float32)
    w_nn[rng.random((n, n)) < 0.05] = np.nan
    order = seriate(w_nn)
    assert sorted(order.tolist()) == list(range(n))
    linked = (w_nn >= threshold) & ~np.eye(n, dtype=bool)
    _, labels = connected_components(linked, directed=False)
    assert is_in_blocks(order, labels)


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_equal_weights_keep_the_order_of_clients(level: float) -> None:
    """The diagonal does not count."""
    w_nn = np.full((6, 6), level, dtype=np.float32)
    np.fill_diagonal(w_nn, 1.0)
    assert seriate(w_nn).tolist() == list(range(6))


def test_figures_and_page_are_in_that_order_and_say_so(tmp_path: Path) -> None:
    """CoBo has found clusters that nobody told it: client i and i + 4 are neighbors in all pictures."""
    run = forget_clusters(write_run(tmp_path / "run"))
    weights = read_run(run).weights
    assert weights is not None
    order = weights.order
    assert is_in_blocks(order, CLUSTERS)
    assert order.tolist() != list(range(N))
    out = tmp_path / "out"
    assert main([str(run), "--out", str(out)]) == 0
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count("linked clients are next to each other (single linkage") >= 1
    (slider,) = weights_on(page)
    assert slider["clients"] == order.tolist()
    assert slider["orders"] == {
        "linked side by side": list(range(N)),
        "by number": np.argsort(order).tolist(),
    }
    last = levels_of(slider)[-1]
    np.testing.assert_array_equal(last, 254 * SAME[np.ix_(order, order)])
    # The CSV keeps the clients' own numbers.
    for row in Report(tmp_path, out, "").rows("weights.csv"):
        expected = blocks(int(row["round"]))[int(row["i"]), int(row["j"])]
        assert np.float32(row["weight"]) == expected


def test_known_clusters_decide_whatever_w_says(tmp_path: Path) -> None:
    weights = read_run(write_run(tmp_path / "run", "fedavg")).weights
    assert weights is not None
    assert weights.order.tolist() == np.argsort(CLUSTERS, kind="stable").tolist()


def test_many_clients_are_ordered_by_component_without_a_matrix(tmp_path: Path) -> None:
    """3,000 clients, 3 clusters that nobody told, client i in cluster i mod 3, and a client alone."""
    n = 3000
    groups = np.arange(n) % 3
    groups[7] = 3
    log = WeightSnapshots(RunDir(tmp_path), Truth.constant(None), ())
    log.add(0, Weights(range(n), (0,) * n))
    log.add(10, Weights(range(n), groups))
    tracemalloc.start()
    with np.load(tmp_path / "W.npz", allow_pickle=False) as stored:
        rounds, means, cells = read_listed(stored)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < n * n
    assert rounds.tolist() == [0, 10]
    mixed = [cell for cell in range(250) if len(set(groups[cells.of == cell])) > 1]
    assert len(mixed) <= 3, "only where one component ends and the next begins"
    assert cells.of[7] == cells.of.max(), "the smallest component comes last"
    inner = means[1][10, 10], means[1][10, -10]
    assert inner == (1.0, 0.0), "a cell is within one cluster"


def test_components_of_many_clients_are_those_above_an_equal_share(tmp_path: Path) -> None:
    """Where rows sum to 1, half of a row's weight is a link in a run of 1,000 clients, and 0.1% is none."""
    n = 1000
    partner = np.arange(n) ^ 1
    weights = Weights(range(n), range(n), 0.0)
    weights.put(np.arange(n), partner, np.full(n, 0.3, dtype=np.float32))
    log = WeightSnapshots(RunDir(tmp_path), Truth.constant(None), ())
    log.add(0, weights)
    with np.load(tmp_path / "W.npz", allow_pickle=False) as stored:
        _, _, cells = read_listed(stored, lambda clients: 1.0 / clients)
        _, _, boxes = read_listed(stored)
    assert is_in_blocks(np.argsort(cells.of, kind="stable"), np.arange(n) // 2)
    assert (np.diff(boxes.of) >= 0).all(), "0.3 is no link in a box, so nobody is linked"
