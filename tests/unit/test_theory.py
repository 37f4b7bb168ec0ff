"""benchmarks/theory.py: its problems and quantities, a run beside the product, and a tiny one of all."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import theory
import torch
from benchmark_scripts import run_script
from problems import QUIET
from theory_runs import example_2, measured_m_squared, run, trace, two_kinds

import cobo_dist


@pytest.mark.parametrize("m_squared", [0.0, 0.2, 0.8, 2.9])
@pytest.mark.parametrize("rotated", [True, False])
def test_the_two_kinds_differ_as_asked(m_squared: float, rotated: bool) -> None:
    if m_squared > 1 and not rotated:
        pytest.skip("curvatures above 0 along the same axes have M below 1")
    problem = two_kinds(m_squared, rotated)
    assert measured_m_squared(problem) == pytest.approx(m_squared, abs=1e-12)
    assert problem.smoothness == pytest.approx(1.0)


def test_gradients_are_opposed_somewhere_only_past_1() -> None:
    """4 <g_i, g_j> = ||g_i + g_j||^2 - ||g_i - g_j||^2, which M^2 below 1 keeps above 0."""
    for m_squared, opposed in ((0.9, False), (1.2, True)):
        one, other = two_kinds(m_squared, rotated=True).hessians_ndd[:2]
        products = torch.linalg.eigvalsh(one @ other + other @ one)
        assert bool(products.min() < 0) == opposed


def test_the_quantities_are_those_of_theorem_1() -> None:
    problem = example_2(2, 3, d=4)
    x_tnd = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = trace(problem, x_tnd, np.eye(6))
    pairs = [(i, j) for i in range(6) for j in range(i) if i // 3 == j // 3]
    distances = [float((x_tnd[1, i] - x_tnd[1, j]).square().sum()) for i, j in pairs]
    assert found.consensus_t[1] == pytest.approx(np.mean(distances))
    norms = [
        float((problem.hessians_ndd[i] @ (x_tnd[1, i] - problem.centers_nd[i])).square().sum())
        for i in range(6)
    ]
    assert found.gradient_t[1] == pytest.approx(np.mean(norms))
    assert (found.within, found.across) == (0.0, 0.0)


@pytest.mark.parametrize("capped", [False, True])
def test_a_run_is_one_of_the_product(tmp_path: Path, capped: bool) -> None:
    """Without noise and with W as it starts, no draw matters: consensus distance and gradient norm agree."""
    problem = example_2(2, 3, d=4)
    np.savez(
        tmp_path / "problem.npz", centers=problem.centers_nd, start=problem.start_d,
        curvature=problem.hessians_ndd[:, 0, 0],
    )  # fmt: skip
    found = run(problem, rho=0.5, eta=0.1, rounds=8, gamma=0.0, capped=capped)
    product = cobo_dist.fit(
        None,
        [
            *QUIET, "task.name=quadratic", f"task.file={tmp_path / 'problem.npz'}", "run.dtype=float64",
            "run.rounds=8", "algorithm.rho=0.5", "algorithm.gamma=0", "optimizer.lr=0.1",
            f"algorithm.coupling={'capped' if capped else 'explicit'}", f"run.dir={tmp_path / 'run'}",
        ],
    )  # fmt: skip
    rounds = product.rounds
    np.testing.assert_allclose(rounds["consensus_distance"], found.consensus_t, rtol=1e-9)
    np.testing.assert_allclose(rounds["gradient_norm"], found.gradient_t, rtol=1e-9)


def test_the_condition_and_the_explicit_step_meet_at_that_curvature() -> None:
    eta, n, c = 0.2, 80, 6
    curvature = theory.greatest_curvature(eta, n, c)
    least_rho = math.sqrt(3) * curvature / c
    assert eta * (curvature + least_rho * n) == pytest.approx(2.0)


def test_it_runs_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--rounds", "3", "--seeds", "1", "--figures", str(tmp_path)]
    run_script(monkeypatch, theory, *given)
    printed = capsys.readouterr().out
    assert "| paper/cross_device_cobo.yaml | 80 | 6 | 0.01 | 0.5 | 0.4 |" in printed
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        f"theory_{name}.png" for name in ("coupling", "m", "rate", "rho")
    ]
