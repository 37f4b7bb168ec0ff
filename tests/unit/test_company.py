"""Selection by differences: a weight counts only among links, in the product as in the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cobo_dist.algorithms.cobo_difference import DifferenceSelection
from cobo_dist.reference import among_links

PAIRS = [(0, 1), (2, 3)]
CHAIN = [(0, 1), (1, 2), (2, 3), (3, 4)]
CLIQUE = [(i, j) for i in range(5) for j in range(i)]


def scores(n: int, linked: list[tuple[int, int]]) -> np.ndarray:
    """Scores of 2 for links and -1 for the others."""
    s_nn = np.full((n, n), -1.0)
    for i, j in linked:
        s_nn[i, j] = s_nn[j, i] = 2.0
    return s_nn


@pytest.mark.parametrize(
    ("n", "linked", "kept"),
    [
        (4, PAIRS, PAIRS),
        (5, CHAIN, []),
        (5, CLIQUE, CLIQUE),
        (5, CLIQUE[1:], CLIQUE[1:]),  # one link is missing
        (6, [*CLIQUE, (5, 0)], CLIQUE),  # one link to a stranger
        (3, [(0, 1), (1, 2)], []),
    ],
    ids=["pairs", "chain", "clique", "a link is missing", "a stranger", "three in a row"],
)
def test_links_that_stay(
    n: int, linked: list[tuple[int, int]], kept: list[tuple[int, int]]
) -> None:
    s_nn = scores(n, linked)
    expected = scores(n, kept) > 0
    assert np.array_equal(among_links(torch.from_numpy(s_nn)).numpy() * (s_nn > 0), expected)


def test_a_pair_that_is_not_yet_a_link_may_have_a_weight() -> None:
    s_nn = torch.tensor([[0.0, 0.3], [0.3, 0.0]])
    assert among_links(s_nn)[0, 1] == 1


class Alone:
    """One rank has all rows."""

    def all_gather(self, numbers: np.ndarray) -> np.ndarray:
        return numbers


def test_the_product_decides_as_the_reference() -> None:
    """Random graphs, from sparse to dense."""
    selection = object.__new__(DifferenceSelection)
    selection.exchange = Alone()  # type: ignore[assignment]
    rng, both = np.random.default_rng(0), set()
    for share in (0.1, 0.3, 0.6, 0.9):
        linked = [(i, j) for i in range(12) for j in range(i) if rng.random() < share]
        s_nn = scores(12, linked)
        found = selection._in_company(s_nn >= 0.5)
        expected = among_links(torch.from_numpy(s_nn)).numpy()
        off = ~np.eye(12, dtype=bool)
        assert np.array_equal(found[off], expected[off] > 0)
        both |= set(found[off].tolist())
    assert both == {True, False}
