"""The projection onto the simplex, against a solver that shares nothing with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from cobo_dist.maths.projections import box, simplex


def by_bisection(row_n: np.ndarray) -> np.ndarray:
    """Find the threshold theta with sum max(v - theta, 0) = 1 by halving an interval around it."""
    v_n = row_n - row_n.max()  # the answer does not see a shift; theta lies in [-1, 0]
    low, high = -1.0, 0.0
    for _ in range(200):
        theta = (low + high) / 2
        if np.maximum(v_n - theta, 0.0).sum() > 1.0:
            low = theta
        else:
            high = theta
    return np.maximum(v_n - theta, 0.0)


def project(row_n: np.ndarray) -> np.ndarray:
    return simplex(torch.from_numpy(np.asarray(row_n, dtype=np.float64)[None]))[0].numpy()


scale = st.sampled_from([1e-30, 1e-3, 1.0, 10.0, 1e30])
number = st.sampled_from([0.0, 0.25, 0.25, 1.0, -1.0]) | st.floats(-3, 3)


@settings(deadline=None, max_examples=300)
@given(st.lists(number, min_size=1, max_size=12), scale)
def test_it_is_the_projection(row: list[float], factor: float) -> None:
    """Ties, one element, huge and tiny numbers."""
    v_n = factor * np.array(row)
    w_n = project(v_n)
    np.testing.assert_allclose(w_n, by_bisection(v_n), rtol=0, atol=1e-12)
    assert (w_n >= 0).all()
    assert abs(w_n.sum() - 1.0) < 1e-14


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_nearest_point_that_a_general_solver_finds(seed: int) -> None:
    v_n = np.random.default_rng(seed).normal(size=6)
    found = minimize(
        lambda w: 0.5 * np.sum((w - v_n) ** 2),
        np.full(6, 1 / 6),
        jac=lambda w: w - v_n,
        bounds=[(0, None)] * 6,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-15},
    )
    assert found.success
    np.testing.assert_allclose(project(v_n), found.x, atol=1e-6)


def test_known_answers() -> None:
    assert project([7.0]).tolist() == [1.0]
    assert project([1e30, 1e30, -1e30]).tolist() == [0.5, 0.5, 0.0]
    assert project([1e30, 1.0]).tolist() == [1.0, 0.0]
    np.testing.assert_allclose(project([1e-30] * 4), [0.25] * 4, rtol=1e-15)
    np.testing.assert_allclose(project([0.2, 0.3, 0.5]), [0.2, 0.3, 0.5], rtol=1e-15)
    np.testing.assert_allclose(project([0.5, 0.5, 1.0]), [1 / 6, 1 / 6, 2 / 3], rtol=1e-15)


def test_entries_outside_are_zero_and_the_others_do_not_see_them() -> None:
    rows_kn = torch.randn(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outside_kn = torch.eye(7, dtype=torch.bool)
    w_kn = simplex(rows_kn, outside_kn)
    assert (w_kn.diagonal() == 0).all()
    for i in range(7):
        others = np.arange(7) != i
        np.testing.assert_allclose(w_kn[i].numpy()[others], project(rows_kn[i].numpy()[others]))
    # A client alone has no one to give weight to.
    assert simplex(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)).tolist() == [[0.0]]


def test_a_rows_bits_do_not_depend_on_its_company() -> None:
    rows_kn = torch.randn(33, 50, generator=torch.Generator().manual_seed(1))
    together = simplex(rows_kn)
    for k in range(33):
        assert torch.equal(simplex(rows_kn[k : k + 1])[0], together[k])


@pytest.mark.slow
def test_rows_sum_to_one_after_ten_thousand_updates_in_float32() -> None:
    rng = torch.Generator().manual_seed(2)
    rows_kn = torch.full((5, 9), 1 / 9)
    for _ in range(10_000):
        rows_kn = simplex(rows_kn + 0.3 * torch.randn(5, 9, generator=rng)).float()
    assert (rows_kn.double().sum(dim=1) - 1.0).abs().max() < 1e-6
    assert (rows_kn >= 0).all()
    assert rows_kn.std() > 0.01, "they moved"


def test_the_box_clips_each_weight() -> None:
    assert box(torch.tensor([-0.5, 0.25, 7.0])).tolist() == [0.0, 0.25, 1.0]
