"""CoBo on a simplex: equal to the dense variant, bitwise the same on any ranks, rows stay on the simplex."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dense_cobo import dense_cobo
from pool import RankPool
from problems import models, rows, train_and_weights, write_quadratic

from cobo_dist.maths import seeds
from cobo_dist.maths.sampling import draw_pairs

N, ROUNDS = 7, 30
EVERY = [(i, j) for i in range(N) for j in range(i + 1, N)]


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_quadratic(tmp_path_factory.mktemp("problem") / "problem.npz", N)


def trained(
    pool: RankPool, problem: Path, folder: Path, ranks: int, *more: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the final models [n, d] and W [n, n] of a run on the simplex."""
    arguments = [
        "task.name=quadratic", f"task.file={problem}", "run.dtype=float64", f"run.rounds={ROUNDS}",
        f"run.dir={folder}", "algorithm.domain=simplex", "algorithm.rho=0.9",
        "algorithm.gamma=0.05", *more,
    ]  # fmt: skip
    rows_of_w = pool.run(ranks, train_and_weights, arguments)
    return np.stack(list(models(folder).values())), np.concatenate(rows_of_w)


def expected(
    problem: Path, pairs: list[list[tuple[int, int]]], own: str, **more: object
) -> tuple[np.ndarray, np.ndarray]:
    """The models and W of CoBo on a simplex in one array."""
    return dense_cobo(problem, pairs, rho=0.9, gamma=0.05, eta=0.1, simplex=own, **more)


def on_the_simplex(w_nn: np.ndarray, own: str) -> None:
    assert (w_nn >= 0).all()
    np.testing.assert_allclose(w_nn.sum(axis=1), 1.0, atol=1e-12)
    assert own == "included" or (w_nn.diagonal() == 0).all()


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("own", ["excluded", "included"])
def test_all_pairs_equal_the_dense_cobo(
    pool: RankPool, problem: Path, tmp_path: Path, ranks: int, own: str
) -> None:
    folder = tmp_path / "run"
    x_run, w_run = trained(
        pool, problem, folder, ranks,
        "algorithm.sampling.name=all", f"algorithm.own_weight={own}",
    )  # fmt: skip
    x, w = expected(problem, [EVERY] * ROUNDS, own)
    np.testing.assert_allclose(x_run, x, rtol=0, atol=1e-10)
    np.testing.assert_allclose(w_run, w, rtol=0, atol=1e-10)
    on_the_simplex(w_run, own)
    assert np.abs(w - w.T).max() > 0.01, "a problem in which W is not symmetric"
    first, *_, last = np.load(folder / "W.npz")["weights"]
    uniform = (1 - np.eye(N)) / (N - 1) if own == "excluded" else np.full((N, N), 1 / N)
    np.testing.assert_allclose(first, uniform, atol=1e-7)
    np.testing.assert_allclose(last, w, atol=1e-6)
    # The coordinator updates its statistics of W every round: the last ones are those of W.
    off, row = ~np.eye(N, dtype=bool), rows(folder, "round")[-1]
    assert row["weights_at_0"] == (w[off] <= 1e-12).mean()


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("order", ["weights_first", "models_first"])
def test_sampled_pairs_equal_the_dense_cobo(
    pool: RankPool, problem: Path, tmp_path: Path, ranks: int, order: str
) -> None:
    x_run, w_run = trained(
        pool, problem, tmp_path / "run", ranks,
        "algorithm.sampling.rate=2", f"algorithm.order={order}",
    )  # fmt: skip
    pairs = [
        [tuple(pair) for pair in draw_pairs(seeds.key(0, "pairs", t), N, 2 / N).tolist()]
        for t in range(ROUNDS)
    ]
    assert any(0 < len(drawn) < len(EVERY) for drawn in pairs)
    x, w = expected(problem, pairs, "excluded", models_first=order == "models_first")
    np.testing.assert_allclose(x_run, x, rtol=0, atol=1e-10)
    np.testing.assert_allclose(w_run, w, rtol=0, atol=1e-10)


@pytest.mark.parametrize("penalty", ["scheduled", "fixed"])
def test_the_penalty_under_a_schedule(
    pool: RankPool, problem: Path, tmp_path: Path, penalty: str
) -> None:
    """Up to 0.1 in the first half, from 0.05 and down to 0.1/4: half a cosine each way."""
    x_run, w_run = trained(
        pool, problem, tmp_path / "run", 2,
        "algorithm.sampling.name=all", f"algorithm.penalty={penalty}",
        "optimizer.schedule=one_cycle", "optimizer.warmup=0.5", "optimizer.div_factor=2",
        "optimizer.final_div_factor=2",
    )  # fmt: skip
    top, last = ROUNDS / 2 - 1, ROUNDS - 1
    etas = [
        0.1 - 0.05 * (1 + np.cos(np.pi * t / top)) / 2
        if t <= top
        else 0.025 + 0.075 * (1 + np.cos(np.pi * (t - top) / (last - top))) / 2
        for t in range(ROUNDS)
    ]
    runs = {
        fixed: expected(problem, [EVERY] * ROUNDS, "excluded", etas=etas, fixed=fixed)
        for fixed in (False, True)
    }
    x, w = runs[penalty == "fixed"]
    np.testing.assert_allclose(x_run, x, rtol=0, atol=1e-10)
    np.testing.assert_allclose(w_run, w, rtol=0, atol=1e-10)
    assert np.abs(runs[True][0] - runs[False][0]).max() > 1e-3, "the two differ here"


@pytest.mark.parametrize("sampling", ["all", "constant"])
def test_digits_deterministic_is_bitwise_the_same(
    pool: RankPool, tmp_path: Path, sampling: str
) -> None:
    """Real batches, float32, AdamW with its schedule, unequal shares (3 ranks for 8 clients)."""
    found = []
    for ranks in (1, 2, 3):
        folder = tmp_path / f"run{ranks}"
        arguments = [
            "comm.deterministic=true", "run.rounds=12", f"run.dir={folder}", "run.eval_every=0",
            "algorithm.domain=simplex", f"algorithm.sampling.name={sampling}", "model.norm=batch",
            "algorithm.sampling.rate=1", "optimizer.name=adamw", "optimizer.lr=0.01",
            "optimizer.schedule=one_cycle", "algorithm.gamma=0.1",
        ]  # fmt: skip
        weights = np.concatenate(pool.run(ranks, train_and_weights, arguments))
        found.append(models(folder) | {"W": weights})
    assert np.abs(found[0]["W"].sum(axis=1, dtype=np.float64) - 1).max() < 1e-6
    assert found[0]["W"].max() > 2 / 7, "twice the equal share"
    for other in found[1:]:
        for name, value in found[0].items():
            assert value.tobytes() == other[name].tobytes(), name


def test_clients_of_a_cluster_end_up_with_each_others_weight(
    pool: RankPool, tmp_path: Path
) -> None:
    """Two clusters of three; no warning, and every link joins clients of one cluster."""
    path, folder = tmp_path / "problem.npz", tmp_path / "run"
    centers = np.eye(4)[[0, 0, 0, 1, 1, 1]] * 3
    np.savez(path, centers=centers, curvature=np.linspace(0.8, 1.2, 6), start=np.zeros(4))
    trained(pool, path, folder, 2, "algorithm.sampling.name=all", "task.noise=0.05")
    w_nn = np.load(folder / "W.npz")["weights"][-1]
    assert w_nn[:3, 3:].max() == w_nn[3:, :3].max() == 0.0
    assert rows(folder, "warning") == []
    assert [row["components"] for row in rows(folder, "round")][-1] == 2
