"""The same run on 1, 2, 3 and 4 ranks, and against the reference: parity, not "it ran"."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dense_cobo import dense_cobo
from pool import RankPool
from problems import models, rows, train, train_and_weights, write_quadratic

from cobo_dist.maths import seeds
from cobo_dist.maths.sampling import draw_pairs

ROUNDS = 40
RANKS = (1, 2, 3, 4)


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_quadratic(tmp_path_factory.mktemp("problem") / "problem.npz")


def quadratic(
    pool: RankPool, problem: Path, folder: Path, ranks: int, *more: str
) -> tuple[Path, np.ndarray]:
    """Train; return the run folder and W, in full precision, from all ranks."""
    rows_of_w = pool.run(
        ranks,
        train_and_weights,
        [
            "task.name=quadratic",
            f"task.file={problem}",
            f"run.dir={folder}",
            "run.dtype=float64",
            f"run.rounds={ROUNDS}",
            "algorithm.rho=0.3",
            "algorithm.gamma=0.05",
            *more,
        ],
    )
    return folder, np.concatenate(rows_of_w)


def expected(
    problem: Path, pairs: list[list[tuple[int, int]]], **more: object
) -> tuple[np.ndarray, ...]:
    """The models and W of the reference."""
    return dense_cobo(problem, pairs, rho=0.3, gamma=0.05, eta=0.1, **more)


def stacked(folder: Path) -> np.ndarray:
    return np.stack(list(models(folder).values()))


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize(
    ("alignment", "engine"), [("inner", "one_by_one"), ("cosine", "vectorised")]
)
def test_all_pairs_equal_the_reference(
    pool: RankPool, problem: Path, tmp_path: Path, ranks: int, alignment: str, engine: str
) -> None:
    folder, w_run = quadratic(
        pool, problem, tmp_path / "run", ranks,
        "algorithm.sampling.name=all", f"algorithm.alignment={alignment}", f"run.engine={engine}",
    )  # fmt: skip
    every = [(i, j) for i in range(7) for j in range(i + 1, 7)]
    x, w = expected(problem, [every] * ROUNDS, cosine=alignment == "cosine")
    np.testing.assert_allclose(stacked(folder), x, rtol=0, atol=1e-10)
    np.testing.assert_allclose(w_run, w, rtol=0, atol=1e-10)
    np.testing.assert_allclose(np.load(folder / "W.npz")["weights"][-1], w, rtol=0, atol=1e-10)
    assert 0.0 < w.mean() < 1.0, "a problem in which W changes"


@pytest.mark.parametrize("ranks", [1, 3])
def test_models_first_uses_the_weights_of_the_round_before(
    pool: RankPool, problem: Path, tmp_path: Path, ranks: int
) -> None:
    folder, w_run = quadratic(
        pool, problem, tmp_path / "run", ranks,
        "algorithm.sampling.name=all", "algorithm.order=models_first",
    )  # fmt: skip
    every = [(i, j) for i in range(7) for j in range(i + 1, 7)]
    x, w = expected(problem, [every] * ROUNDS, models_first=True)
    np.testing.assert_allclose(stacked(folder), x, rtol=0, atol=1e-10)
    np.testing.assert_allclose(w_run, w, rtol=0, atol=1e-10)
    assert np.abs(x - expected(problem, [every] * ROUNDS)[0]).max() > 1e-6, "the order matters here"


def test_consensus_and_gradient_norm_of_every_round_are_those_of_the_reference(
    pool: RankPool, problem: Path, tmp_path: Path
) -> None:
    folder, _ = quadratic(pool, problem, tmp_path / "run", 2, "algorithm.sampling.name=all")
    arrays = np.load(problem)
    every = [(i, j) for i in range(7) for j in range(i + 1, 7)]
    for row in rows(folder, "round")[:25]:
        x, _ = expected(problem, [every] * row["round"])
        within = [
            np.sum((x[i] - x[j]) ** 2) for i, j in every if i % 3 == j % 3
        ]  # clusters by construction
        assert row["consensus_distance"] == pytest.approx(np.mean(within), rel=1e-9)
        gradients = arrays["curvature"][:, None] * (x - arrays["centers"])
        assert row["gradient_norm"] == pytest.approx(
            np.mean(np.sum(gradients**2, axis=1)), rel=1e-9
        )


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("strategy", ["constant", "time", "mixed"])
def test_sampled_pairs_equal_the_reference(
    pool: RankPool, problem: Path, tmp_path: Path, ranks: int, strategy: str
) -> None:
    folder, w_run = quadratic(
        pool, problem, tmp_path / "run", ranks,
        f"algorithm.sampling.name={strategy}", "algorithm.sampling.rate=2",
        "algorithm.sampling.switch_fraction=0.5", "algorithm.start=zeros",
    )  # fmt: skip
    pairs = []
    for t in range(ROUNDS):
        early = strategy == "constant" or (strategy == "mixed" and t < ROUNDS / 2)
        probability = min(1.0, 2 / 7 if early else 2 / (t + 1))
        drawn = draw_pairs(seeds.key(0, "pairs", t), 7, probability)
        pairs.append([tuple(pair) for pair in drawn.tolist()])
    x, w = expected(problem, pairs, w_0=0.0)
    np.testing.assert_allclose(stacked(folder), x, rtol=0, atol=1e-10)
    np.testing.assert_allclose(w_run, w, rtol=0, atol=1e-10)
    np.testing.assert_allclose(np.load(folder / "W.npz")["weights"][-1], w, rtol=0, atol=1e-10)
    assert [row["pairs"] for row in rows(folder, "round")] == [len(drawn) for drawn in pairs]


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_deterministic_is_bitwise_the_same_on_any_number_of_ranks(
    pool: RankPool, problem: Path, tmp_path: Path, noise: float
) -> None:
    runs = [
        quadratic(
            pool, problem, tmp_path / f"run{ranks}", ranks,
            "comm.deterministic=true", f"task.noise={noise}", "algorithm.sampling.rate=3",
        )
        for ranks in RANKS
    ]  # fmt: skip
    for folder, weights in runs[1:]:
        assert stacked(folder).tobytes() == stacked(runs[0][0]).tobytes()
        assert weights.tobytes() == runs[0][1].tobytes()


@pytest.mark.parametrize(
    ("algorithm", "task"),
    [*((name, "digits") for name in ("cobo", "fedavg", "oracle", "local")), ("cobo", "regression")],
)
def test_examples_deterministic_is_bitwise_the_same(
    pool: RankPool, tmp_path: Path, algorithm: str, task: str
) -> None:
    """Real batches, float32, BatchNorm, momentum, unequal shares (3 ranks for 8 clients)."""
    found = []
    for ranks in RANKS:
        folder = tmp_path / f"run{ranks}"
        arguments = [
            "comm.deterministic=true", "run.rounds=15", f"run.dir={folder}", "run.eval_every=0",
            f"task.name={task}", f"algorithm.name={algorithm}", "model.norm=batch",
            "optimizer.momentum=0.9",
            "optimizer.name=ema_momentum",
        ]  # fmt: skip
        pool.run(ranks, train, arguments)
        found.append(models(folder))
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, value in other.items():
            assert value.tobytes() == found[0][name].tobytes(), name


def test_noisy_runs_draw_the_same_on_every_number_of_ranks(
    pool: RankPool, problem: Path, tmp_path: Path
) -> None:
    """Same pairs, same noise: the models agree up to the rounding of sums."""
    runs = [
        quadratic(pool, problem, tmp_path / f"run{ranks}", ranks, "task.noise=0.5")[0]
        for ranks in RANKS
    ]
    for other in runs[1:]:
        np.testing.assert_allclose(stacked(other), stacked(runs[0]), rtol=0, atol=1e-10)
        drawn = [[row["pairs"] for row in rows(run, "round")] for run in (runs[0], other)]
        assert drawn[0] == drawn[1]
    noiseless, _ = quadratic(pool, problem, tmp_path / "noiseless", 1)
    assert np.abs(stacked(noiseless) - stacked(runs[0])).max() > 1e-3, "the noise does something"
