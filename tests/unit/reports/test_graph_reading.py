"""The graph of links: groups with known answers, agreement, other thresholds, stability, many clients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graphs import block_weights, graph, snapshots
from report_runs import write_run

from cobo_dist.errors import ConfigError
from cobo_dist.maths.graph import rand_of_labels
from cobo_dist.maths.true_graph import Truth
from cobo_dist.maths.weights import Weights
from cobo_dist.reports.grouping import group_runs
from cobo_dist.reports.reading import read_run
from cobo_dist.reports.reading.graph import graph_of, stability
from cobo_dist.reports.reading.seriation import single_linkage, strengths
from cobo_dist.reports.reading.weights import read_weights
from cobo_dist.reports.tables.groups import Entry, groups_table, members_table
from cobo_dist.storage.run_dir import RunDir
from cobo_dist.tracking.weight_snapshots import WeightSnapshots

CLUSTERS = [0, 1, 2, 0, 1, 2, 0, 1]


def test_blocks_are_exactly_the_groups() -> None:
    found = graph(block_weights(CLUSTERS, across=0.4), clusters=CLUSTERS)
    assert list(found.groups) == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert str(found.groups) == "3 groups: {0,3,6} {1,4,7} {2,5}"
    assert (found.adjusted_rand, found.link_f1) == (1.0, 1.0)
    assert found.means == pytest.approx((1.0, 0.4))
    np.testing.assert_allclose(
        found.mean_between(found.label_m), np.full((3, 3), 0.4) + 0.6 * np.eye(3), rtol=1e-6
    )


def test_a_threshold_decides_and_is_checked() -> None:
    weights = snapshots(block_weights(CLUSTERS, across=0.4))
    assert len(graph_of(weights, threshold=0.41).groups) == 3
    assert len(graph_of(weights, threshold=0.39).groups) == 1
    assert graph_of(weights).same_groups == (pytest.approx(0.4), 1.0)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"threshold is .*; give a number above 0"):
            graph_of(weights, threshold=wrong)


def test_where_rows_sum_to_1_a_link_is_more_than_an_equal_share() -> None:
    matrix = block_weights([0, 0, 1, 1], across=0.05, within=0.45)
    assert len(graph(matrix, share=0.25).groups) == 2
    assert len(graph(matrix).groups) == 4, "none is 0.5 or more"


def test_one_direction_is_enough_for_a_link() -> None:
    matrix = np.zeros((3, 3), dtype=np.float32)
    matrix[2, 0] = 0.9
    assert list(graph(matrix).groups) == [[0, 2], [1]]


def test_a_relabelled_truth_is_the_same_partition() -> None:
    renamed = [7, 3, 5, 7, 3, 5, 7, 3]
    assert graph(block_weights(CLUSTERS), clusters=renamed).adjusted_rand == 1.0
    assert rand_of_labels(CLUSTERS, renamed) == 1.0
    assert rand_of_labels(CLUSTERS, [0] * 8) == 0.0


def test_the_tree_puts_blocks_side_by_side_and_joins_them_at_their_weights() -> None:
    found = graph(block_weights(CLUSTERS, across=0.4))
    labels = np.asarray(CLUSTERS)[found.order]
    assert (np.diff(labels) != 0).sum() == 2
    _, joins = single_linkage(strengths(block_weights(CLUSTERS, across=0.4)))
    assert sorted(joins.round(6).tolist()) == [0.4] * 2 + [1.0] * 5


def test_neighbors_in_the_tree_are_linked_as_strongly_as_they_can_be() -> None:
    """A chain 0-1-2-3-4, shuffled: only the chain itself, or its reverse, has all links side by side."""
    place = np.array([3, 0, 4, 1, 2])
    near = np.abs(place[:, None] - place[None, :])
    order = graph(np.where(near == 1, 0.9, 0.9 / (1 + near)).astype(np.float32)).order
    assert place[order].tolist() in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0])


@pytest.mark.parametrize(
    ("matrix", "words", "empty"),
    [
        (np.zeros((4, 4)), "no groups: each of the 4 clients is alone", "is above 0"),
        (np.eye(4), "no groups: each of the 4 clients is alone", "is above 0"),
        (np.ones((4, 4)), "1 group of all 4 clients", ""),
        (np.ones((1, 1)), "no groups: there is only one client", "needs two clients"),
        (np.full((3, 3), np.nan), "no groups: each of the 3 clients is alone", "is above 0"),
    ],
)
def test_graphs_without_structure(matrix: np.ndarray, words: str, empty: str) -> None:
    found = graph(matrix.astype(np.float32))
    assert str(found.groups) == words
    assert empty in found.empty
    assert bool(found.empty) == bool(empty)


def test_clients_that_are_not_in_the_run_are_in_no_group() -> None:
    absent = np.zeros((1, 8), dtype=bool)
    absent[0, 3] = True
    found = graph(block_weights(CLUSTERS), absent=absent, clusters=CLUSTERS)
    assert found.groups.labels.tolist() == [0, 1, 2, -1, 1, 2, 0, 1]
    assert found.members.tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert found.adjusted_rand == 1.0
    assert found.labels == ["0", "1", "2", "4", "5", "6", "7"]


def test_stability_counts_what_changed() -> None:
    """All linked, then two blocks of 2, then the same again, then other blocks."""
    first, other = block_weights([0, 0, 1, 1]), block_weights([0, 1, 0, 1])
    ones = np.ones((4, 4), dtype=np.float32)
    found = stability(snapshots(ones, first, first, other, clusters=[0, 0, 1, 1]))
    assert found["links_changed"] == {10: pytest.approx(8 / 12), 20: 0.0, 30: pytest.approx(8 / 12)}
    assert found["rand_previous"] == {10: 0.0, 20: 1.0, 30: pytest.approx(-0.5)}
    assert found["rand_truth"] == {0: 0.0, 10: 1.0, 20: 1.0, 30: pytest.approx(-0.5)}


def test_stability_looks_at_clients_that_are_in_the_run_at_both_snapshots() -> None:
    absent = np.array([[True, False, False], [False, False, False]])
    joined = snapshots(block_weights([0, 1, 1]), np.ones((3, 3), dtype=np.float32), absent=absent)
    found = stability(joined)
    assert found["links_changed"] == {10: 0.0}, "of 1 and 2; client 0 was not there before"
    assert stability(snapshots(np.ones((1, 1)), np.ones((1, 1)))) == {}


def test_many_clients_are_read_as_lists(tmp_path: Path) -> None:
    """900 clients in 3 clusters, all linked at first; client 5 has left, and one link goes one way only."""
    n = 900
    clusters = np.arange(n) % 3
    log = WeightSnapshots(RunDir(tmp_path), Truth.constant(clusters.tolist()), ())
    log.add(0, Weights(range(n), (0,) * n))
    last = Weights(range(n), clusters)
    last.put(np.array([7]), np.array([9]), np.array([0.8]))
    log.add(10, last)
    weights = read_weights(tmp_path / "W.npz", lambda _: 0.0)
    assert weights is not None
    assert weights.cells
    found = graph_of(weights, 10)
    assert sorted(map(len, found.groups)) == [300, 600], "the link 7-9 joins clusters 0 and 1"
    assert found.adjusted_rand == pytest.approx(rand_of_labels(clusters, found.label_m))
    assert graph_of(weights, 0).adjusted_rand == 0.0
    changed = stability(weights)["links_changed"][10]
    assert changed == pytest.approx((2 * n * n / 3 - 1) / (n * (n - 1)))


def test_tables_say_groups_in_words_and_rows(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    problems, _ = group_runs([run])
    assert run.weights is not None
    entry = Entry(problems[0].groups[0], run, graph_of(run.weights))
    table = groups_table([entry], "Groups found")
    assert table.rows == [
        ["CoBo", "1", "4 groups: {0,4} {1,5} {2,6} {3,7}", "1.00", "0.00", "1.00", "1.00"]
    ]
    assert "weights of at least 0.5" in table.notes[0]
    assert "Any threshold above 0 and up to 1 gives the same groups." in table.notes[0]
    rows = members_table(entry, "Members").rows
    assert rows[1] == ["1", "1,5", "1 (2 of 2)", "2", "1.00", "0.00"]


def test_clients_without_links_share_a_row(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    group = group_runs([run])[0][0].groups[0]
    found = graph(block_weights([0, 1, 2, 0, 3]), clusters=[0, 0, 1, 1, 1])
    rows = members_table(Entry(group, run, found), "Members").rows
    assert [row[:4] for row in rows] == [
        ["0", "0,3", "0 (1 of 2), 1 (1 of 3)", "2"],
        ["others", "1,2,4", "0 (1 of 2), 1 (2 of 3)", "3"],
    ]
