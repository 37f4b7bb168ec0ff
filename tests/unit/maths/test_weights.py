"""Compressed rows of W have the same numbers as dense rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cobo_dist.comm.client_traffic import count_links
from cobo_dist.maths.blocks import blocks_of
from cobo_dist.maths.weights import Weights, join

LEVELS = (0.0, 0.25, 1.0)
VALUES = (0.0, 0.25, 0.5, 1.0)


@st.composite
def moves(
    draw: st.DrawFn,
) -> tuple[list[int], np.ndarray, float, list[dict[tuple[int, int], float]]]:
    n = draw(st.integers(1, 7))
    ids = sorted(draw(st.sets(st.integers(0, n - 1), min_size=1)))
    groups = np.array(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    places = st.tuples(st.integers(0, len(ids) - 1), st.integers(0, n - 1))
    change = st.dictionaries(places, st.sampled_from(VALUES), max_size=12)
    return ids, groups, draw(st.sampled_from(LEVELS)), draw(st.lists(change, max_size=6))


def dense_rows(ids: list[int], groups: np.ndarray, level: float) -> np.ndarray:
    return np.where(groups[ids, None] == groups[None, :], level, 0.0).astype(np.float32)


@settings(deadline=None, max_examples=200)
@given(moves(), st.lists(st.booleans(), min_size=7, max_size=7))
def test_among_clients_that_take_part_the_weights_of_others_are_0(
    case: tuple, drawn: list[bool]
) -> None:
    ids, groups, level, changes = case
    weights, part_n = Weights(ids, groups, level), np.array(drawn[: len(groups)])
    for change in changes:
        rows, columns = np.array(list(change), dtype=np.int64).reshape(-1, 2).T
        weights.put(rows, columns, np.array(list(change.values()), dtype=np.float32))
    kept = weights.dense() * part_n
    for all_receive in (True, False):
        among = weights.among(part_n, all_receive=all_receive)
        expected = kept if all_receive else kept * part_n[ids][:, None]
        np.testing.assert_array_equal(among.dense(), expected)
        np.testing.assert_allclose(among.sums(), expected.sum(axis=1, dtype=np.float64))
        np.testing.assert_array_equal(blocks_of(among, [np.arange(len(groups))])[0].dense, expected)
        own = expected[np.arange(len(ids)), ids]
        assert count_links(among) == np.count_nonzero(expected) - np.count_nonzero(own)
    np.testing.assert_array_equal(weights.dense() * part_n, kept, "the weights themselves stay")


@settings(deadline=None, max_examples=200)
@given(moves())
def test_compressed_rows_equal_the_dense_matrix(case: tuple) -> None:
    ids, groups, level, changes = case
    weights, dense = Weights(ids, groups, level), dense_rows(ids, groups, level)
    for change in changes:
        places = list(change)
        rows = np.array([row for row, _ in places], dtype=np.int64)
        columns = np.array([column for _, column in places], dtype=np.int64)
        values = np.array([change[place] for place in places], dtype=np.float32)
        weights.put(rows, columns, values)
        dense[rows, columns] = values
        np.testing.assert_array_equal(weights.dense(), dense)
        np.testing.assert_array_equal(weights.at(rows, columns), values)
        np.testing.assert_allclose(weights.sums(), dense.sum(axis=1, dtype=np.float64))
        differing = (dense != dense_rows(ids, groups, level)).sum(axis=1)
        assert weights.stored == np.minimum(differing, (dense != 0).sum(axis=1)).sum()
        again = Weights(ids, groups, level)
        again.put_rows(np.arange(len(ids)), dense)
        for one, other in zip(again.entries(), weights.entries(), strict=True):
            np.testing.assert_array_equal(one, other, "the entries depend on the weights alone")
        np.testing.assert_array_equal(again.ungrouped_c, weights.ungrouped_c)
    other = weights.copy()
    some = np.arange(len(ids))[::2]
    other.put_rows(some, np.full((len(some), len(groups)), 0.5, dtype=np.float32))
    np.testing.assert_array_equal(weights.dense(), dense)
    dense[some] = 0.5
    np.testing.assert_array_equal(other.dense(), dense)
    np.testing.assert_array_equal(Weights.of_rows(ids, dense).dense(), dense)
    copy = weights.with_arrays(weights.ids_c, weights.arrays())
    np.testing.assert_array_equal(copy.dense(), weights.dense())


def test_changes_are_known_by_column() -> None:
    weights = Weights(range(3), (0,) * 4)
    before, columns = weights.version, np.arange(4)
    weights.put(np.array([0, 2]), np.array([1, 3]), np.array([1.0, 0.5]))
    changed = [weights.changed_since(before, columns[[k]]) for k in range(4)]
    assert changed == [False, False, False, True], "w_01 was 1 before"
    assert not weights.changed_since(weights.version, columns)
    weights.put(np.array([2]), np.array([3]), np.array([0.5]))
    assert not weights.changed_since(before + 1, columns), "nothing new"


@pytest.mark.parametrize("owners", [(0, 0, 1, 1, 1), (1, 0, 2, 0, 1)])
def test_ranks_rows_join(owners: tuple[int, ...]) -> None:
    dense = np.random.default_rng(4).choice([0, 1, 0.5], (5, 5)).astype(np.float32)
    parts = []
    for rank in sorted(set(owners)):
        ids = np.flatnonzero(np.array(owners) == rank)
        parts.append(Weights(ids, (0,) * 5))
        parts[-1].put_rows(np.arange(len(ids)), dense[ids])
    np.testing.assert_array_equal(join(parts).dense(), dense)


@pytest.mark.parametrize("symmetric", [False, True])
def test_all_that_is_made_from_weights_is_as_symmetric_as_they_are(symmetric: bool) -> None:
    every = np.arange(3)
    grouped = Weights(every, (0,) * 3, symmetric=symmetric)
    listed = Weights.of_rows(every, np.eye(3, dtype=np.float32), symmetric)
    for weights in (grouped, listed):
        weights.put(np.array([0]), np.array([1]), np.array([0.5]))
        weights.put_rows(every[:1], np.ones((1, 3), dtype=np.float32))
        made = (
            weights,
            weights.copy(),
            weights.with_arrays(every, weights.arrays()),
            join([weights]),
        )
        assert [one.symmetric for one in made] == [symmetric] * 4
    assert not Weights(every, (0,) * 3).symmetric, "directed unless said otherwise"
    assert not Weights.of_rows(every, np.eye(3)).symmetric


def test_the_bytes_of_ones_grow_with_clients_and_changes_alone() -> None:
    n = 10_000
    weights = Weights(range(5_000), np.zeros(n))
    few = weights.nbytes
    assert few == 16 * n + 25 * 5_000
    rows = np.arange(5_000)
    for column in range(5):
        weights.put(rows, np.full(5_000, column), np.full(5_000, 0.5))
    assert weights.nbytes == few + 25_000 * 12
    np.testing.assert_allclose(weights.sums(), n - 2.5)


def test_a_row_of_mostly_zeros_stores_its_other_weights() -> None:
    weights = Weights(range(4), np.zeros(4))
    rows, columns = np.nonzero(~np.eye(4, dtype=bool))
    weights.put(rows, columns, np.zeros(12))
    assert weights.stored == 4
    assert weights.ungrouped_c.all()
    np.testing.assert_array_equal(weights.dense(), np.eye(4))
