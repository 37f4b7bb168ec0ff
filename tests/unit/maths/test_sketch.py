"""Sketches: against numbers added one by one, on average exact, and as far off as the formula says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dense_cobo import count_sketch

from cobo_dist.maths import seeds
from cobo_dist.maths import sketch as sketches
from cobo_dist.maths.sketch import Sketch


def rows(m: int, d: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(m, d)))


@pytest.mark.parametrize("at_once", [1, 1 << 20])
@pytest.mark.parametrize("k", [1, 3, 64, 100])
def test_a_sketch_is_signed_sums(monkeypatch: pytest.MonkeyPatch, k: int, at_once: int) -> None:
    """Whole rows at once, or some columns of a row at a time."""
    monkeypatch.setattr(sketches, "numbers_at_once", lambda device: at_once)
    g_md, first, second = rows(3, 7000), np.array([0, 0, 4]), np.array([1, 2, 5])
    found = Sketch(k, seed=0, t=6).of_pairs(g_md, first, second)
    for row_d, found_k, i, j in zip(g_md, found, first, second, strict=True):
        expected = count_sketch(row_d.numpy(), k, seeds.key(0, "sketch", 6, int(i), int(j)))
        np.testing.assert_allclose(found_k, expected, atol=1e-11)


def test_inner_products_are_right_on_average_and_vary_as_they_should() -> None:
    k, rounds = 64, 2000
    a, b = rows(2, 512)
    b = b + a  # cosine about 0.7
    exact, size = float(a @ b), float(a.norm() * b.norm())
    sketched = []
    for t in range(rounds):
        s_a, s_b = Sketch(k, seed=1, t=t).of_rows(torch.stack([a, b]))
        sketched.append(float(s_a @ s_b))
    expected = size * np.sqrt((1 + (exact / size) ** 2) / k)
    assert np.std(sketched) == pytest.approx(expected, rel=0.15)
    assert np.mean(sketched) == pytest.approx(exact, abs=4 * expected / np.sqrt(rounds))


def test_a_sketch_of_a_sum_is_the_sum_of_sketches() -> None:
    a, b = rows(2, 300)
    of_a, of_b, of_sum = Sketch(32, seed=0, t=0).of_rows(torch.stack([a, b, a + b]))
    torch.testing.assert_close(of_a + of_b, of_sum)


def test_pairs_and_rounds_have_signs_of_their_own() -> None:
    same = torch.ones(2, 640, dtype=torch.float64)
    one, other = Sketch(64, seed=0, t=0).of_pairs(same, np.array([0, 0]), np.array([1, 2]))
    later, _ = Sketch(64, seed=0, t=1).of_pairs(same, np.array([0, 0]), np.array([1, 2]))
    assert not torch.equal(one, other)
    assert not torch.equal(one, later)


def test_a_clip_bounds_norms_and_noise_belongs_to_each_owner() -> None:
    g_md = torch.cat([100.0 * rows(1, 5000), 1e-3 * rows(1, 5000)])
    here, there = np.array([3, 5]), np.array([4, 0])
    plain = Sketch(4096, seed=0, t=0, clip=2.0).of_pairs(g_md, here, there)
    assert float(plain[0].norm()) == pytest.approx(2.0)
    torch.testing.assert_close(
        plain[1], Sketch(4096, seed=0, t=0).of_pairs(g_md, here, there)[1], rtol=0, atol=0
    )
    noised = Sketch(4096, seed=0, t=0, clip=2.0, noise=3.0)
    moved = noised.of_pairs(g_md, here, there) - plain
    assert float(moved.std()) == pytest.approx(6.0, rel=0.05)
    both = noised.of_pairs(g_md[:1].expand(2, -1), np.array([3, 4]), np.array([4, 3]))
    assert abs(float(torch.corrcoef(both - plain[:1])[0, 1])) < 0.06, "noises of their own"


def test_a_row_that_is_no_longer_than_a_sketch_stays_as_it_is() -> None:
    g_md = rows(2, 8)
    assert Sketch(8, seed=0, t=0).of_rows(g_md) is g_md
    assert Sketch(100, seed=0, t=0).columns(8) == 8
