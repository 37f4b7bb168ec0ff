"""Pairs are drawn with the right probability, in O(pairs), and alike everywhere."""

from __future__ import annotations

import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cobo_dist.maths import seeds
from cobo_dist.maths.sampling import STRATEGIES, draw_pairs, pair_probability, unrank_pairs


@settings(deadline=None)
@given(st.integers(2, 40))
def test_numbering_of_pairs_is_one_to_one(n: int) -> None:
    every = [[i, j] for i in range(n) for j in range(i + 1, n)]
    assert unrank_pairs(torch.arange(len(every)), n).tolist() == every


@pytest.mark.parametrize("n", [100_003, 1_000_000])
def test_numbering_is_right_at_the_borders_of_rows_of_a_million_clients(n: int) -> None:
    rows = torch.tensor([0, 1, n // 3, n // 2, n - 3, n - 2])
    starts = rows * (2 * n - 1 - rows) // 2
    assert unrank_pairs(starts, n).tolist() == [[int(i), int(i) + 1] for i in rows]
    before = unrank_pairs(starts[1:] - 1, n)
    assert before.tolist() == [[int(i) - 1, n - 1] for i in rows[1:]]


@settings(deadline=None)
@given(st.integers(0, 30), st.floats(0, 1), st.integers(0, 2**32))
def test_pairs_are_ordered_distinct_and_in_range(n: int, probability: float, name: int) -> None:
    pairs = draw_pairs(name, n, probability).tolist()
    assert pairs == sorted(pairs)
    assert len({tuple(pair) for pair in pairs}) == len(pairs)
    assert all(0 <= i < j < n for i, j in pairs)


@pytest.mark.parametrize("probability", [0.02, 0.125, 0.5, 0.9])
def test_every_pair_comes_up_with_its_probability(probability: float) -> None:
    n, rounds = 9, 4000
    counts = torch.zeros(n, n)
    for t in range(rounds):
        pairs = draw_pairs(seeds.key(1, "pairs", t), n, probability)
        counts[pairs[:, 0], pairs[:, 1]] += 1
    i, j = torch.triu_indices(n, n, offset=1)
    deviation = (counts[i, j] - rounds * probability).abs().max()
    assert float(deviation) < 4.5 * math.sqrt(rounds * probability * (1 - probability))


def test_pairs_of_one_round_are_independent() -> None:
    """The number of pairs has the binomial variance; neighbours in the numbering are uncorrelated."""
    n, p, rounds = 12, 0.3, 4000
    drawn = torch.zeros(rounds, 66)
    for t in range(rounds):
        pairs = draw_pairs(seeds.key(2, "pairs", t), n, p)
        drawn[t, (pairs[:, 0] * (2 * n - 1 - pairs[:, 0]) // 2 + pairs[:, 1] - pairs[:, 0] - 1)] = 1
    variance = float(drawn.sum(dim=1).var())
    assert abs(variance / (66 * p * (1 - p)) - 1) < 0.12
    correlations = torch.corrcoef(drawn.T)[torch.arange(65), torch.arange(1, 66)]
    assert float(correlations.abs().max()) < 0.075


def test_a_million_clients_cost_what_their_pairs_cost() -> None:
    n = 1_000_000
    draw_pairs(0, n, 1e-9)
    started = time.process_time()
    pairs = draw_pairs(seeds.key(0, "pairs", 0), n, 1.0 / n)
    assert abs(len(pairs) - n / 2) < 5 * math.sqrt(n / 2)
    # An n x n matrix of coins would take 4 TB; half a million pairs take well under these seconds.
    assert time.process_time() - started < 20


def test_strategies_are_table_1() -> None:
    n, rounds = 80, 20_000
    assert pair_probability("constant", 7, n, rounds) == 1 / 80
    assert pair_probability("constant", 7, n, rounds, rate=2) == 2 / 80
    assert pair_probability("time", 0, n, rounds) == 1.0
    assert pair_probability("time", 99, n, rounds, rate=3) == 0.03
    assert pair_probability("mixed", 39, n, rounds) == 1 / 80, "0.2% of 20,000 rounds is 40"
    assert pair_probability("mixed", 40, n, rounds) == 1 / 41
    assert pair_probability("all", 123, n, rounds) == 1.0
    assert pair_probability("published", 799, n, rounds) == 2 / 80
    assert pair_probability("published", 899, n, rounds, rate=0.5) == 0.5 / 30
    for strategy in STRATEGIES:
        assert pair_probability(strategy, 5, n, rounds, rate=0) == 0.0
        assert pair_probability(strategy, 0, n, rounds, rate=1e9) == 1.0
    with pytest.raises(ValueError, match="sometimes"):
        pair_probability("sometimes", 0, n, rounds)
