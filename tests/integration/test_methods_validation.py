"""Methods that try other clients' models or gradients on their own data, beside twins with one array."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from methods import DenseClients, check_method, trained, write_problem
from pool import RankPool
from problems import QUIET, models, rows, train_and_weights, write_quadratic

from cobo_dist.algorithms.peers import Score, score_each
from cobo_dist.cli.train import main
from cobo_dist.comm.session import Session
from cobo_dist.config import load_config
from cobo_dist.errors import ConfigError
from cobo_dist.maths import seeds

N, D, ETA = 7, 5, 0.2
EXAMPLES = np.array([3, 1, 4, 1, 5, 9, 2])
Dense = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven clients in three clusters, with unequal curvature."""
    return write_problem(tmp_path_factory.mktemp("problem"))


@pytest.fixture(scope="module")
def weighed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with unequal numbers of examples."""
    path = tmp_path_factory.mktemp("problem") / "problem.npz"
    return write_quadratic(path, N, D, examples=EXAMPLES)


def write_centers(path: Path, centers: list[list[float]], **more: np.ndarray) -> Path:
    """Write clients of curvature 1 that start at 0."""
    np.savez(
        path, centers=np.array(centers), curvature=np.ones(len(centers)), start=np.zeros(len(centers[0])),
        **more,
    )  # fmt: skip
    return path


def settings(name: str, rounds: int, *more: str) -> list[str]:
    return [f"algorithm.name={name}", f"run.rounds={rounds}", f"optimizer.lr={ETA}", *more]


def taking_part(t: int, count: int, n: int = N) -> list[int]:
    """Return who takes part, ascending."""
    return sorted(seeds.permutation(seeds.key(0, "clients", t), n).tolist()[:count])


# -- adaptive collaboration -----------------------------------------------------------------------------


def adaptive_collaboration(
    problem: Path, rounds: int, shares: str, counts: np.ndarray, part: int
) -> Dense:
    dense, w = DenseClients(problem, ETA), np.eye(N)
    for t in range(rounds):
        here, moved = taking_part(t, part), dense.x.copy()
        for i in here:
            g = [dense.gradient(j, dense.x[i]) for j in range(N)]
            own = g[i] @ g[i]
            row = np.zeros(N)
            for j in here:
                apart = (g[i] - g[j]) @ (g[i] - g[j])
                if apart < own:
                    row[j] = counts[j] * (1.0 if shares == "binary" else 1.0 - apart / own)
            w[i] = row / row.sum()
            moved[i] = dense.x[i] - ETA * sum(w[i, j] * g[j] for j in range(N))
        dense.x = moved
    return dense.x, w


@pytest.mark.parametrize(
    ("shares", "weighting", "part"),
    [("binary", "equal", 7), ("binary", "examples", 4), ("continuous", "equal", 7)],
)
def test_adaptive_collaboration(
    pool: RankPool, weighed: Path, tmp_path: Path, shares: str, weighting: str, part: int
) -> None:
    counts = EXAMPLES if weighting == "examples" else np.ones(N)
    expected = adaptive_collaboration(weighed, 8, shares, counts, part)
    assert 0 < np.count_nonzero(expected[1]) < N * N
    check_method(
        pool, weighed, tmp_path, expected,
        *settings("adaptive_collaboration", 8, f"algorithm.shares={shares}"),
        f"algorithm.weighting={weighting}", f"participation.count={part}",
    )  # fmt: skip


def test_adaptive_collaboration_of_opposite_clusters_is_oracle(
    pool: RankPool, tmp_path: Path
) -> None:
    """||g_i - g_j||^2 is 0 within a cluster and 4 ||g_i||^2 between the two."""
    signs = [1.0, -1.0, 1.0, -1.0, 1.0]
    problem = write_centers(tmp_path / "two.npz", [[s, 2.0 * s] for s in signs])
    x, w = trained(pool, problem, tmp_path / "run", 2, *settings("adaptive_collaboration", 5))
    oracle, same = trained(pool, problem, tmp_path / "oracle", 2, *settings("oracle", 5))
    np.testing.assert_allclose(x, oracle, atol=1e-12)
    np.testing.assert_allclose(w, same / same.sum(axis=1, keepdims=True), atol=1e-12)


def test_adaptive_collaboration_ends_near_the_optimum(pool: RankPool, tmp_path: Path) -> None:
    """Clients that are a little different help at first, and drop out when own gradients are short."""
    problem = write_centers(tmp_path / "near.npz", [[1.0], [1.2]])
    name = "adaptive_collaboration"
    _, early = trained(pool, problem, tmp_path / "early", 1, *settings(name, 1))
    x, late = trained(pool, problem, tmp_path / "late", 1, *settings(name, 60))
    assert early.tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert late.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    np.testing.assert_allclose(x, [[1.0], [1.2]], atol=1e-3)


# -- FedFomo ---------------------------------------------------------------------------------------------


def fomo_downloads(affinity_n: np.ndarray, i: int, t: int, here: list[int], m: int) -> list[int]:
    """Return i and the m others whose models it has, by epsilon-greedy choice."""
    drawn = seeds.permutation(seeds.key(0, "downloads", t, i), N).tolist()
    others = [k for k in drawn if k in here and k != i]
    u = seeds.uniforms(seeds.key(0, "exploration", t, i), m).numpy()
    random = int((u < max(0.0, 0.5 - 0.1 * t)).sum())
    best = sorted(others, key=lambda k: -affinity_n[k])[: m - random]
    return [i, *best, *[k for k in others if k not in best][:random]]


def fedfomo(problem: Path, rounds: int, part: int, steps: int, m: int) -> Dense:
    dense, w, affinity = DenseClients(problem, ETA), np.eye(N), np.zeros((N, N))
    for t in range(rounds):
        here, before = taking_part(t, part), dense.x.copy()
        trained_x = before.copy()
        for i in here:
            trained_x[i] = dense.local_work(i, before[i], steps)
        for i in here:
            row = np.zeros(N)
            for k in here if m >= N - 1 else fomo_downloads(affinity[i], i, t, here, m):
                gain = dense.loss(i, before[i]) - dense.loss(i, trained_x[k])
                row[k] = max(0.0, gain) / np.linalg.norm(trained_x[k] - before[i])
            w[i] = row / row.sum() if row.any() else row
            affinity[i] += w[i]
            dense.x[i] = before[i] + sum(w[i, k] * (trained_x[k] - before[i]) for k in range(N))
    return dense.x, w


@pytest.mark.parametrize(
    ("part", "steps", "downloads"), [(7, 1, 0), (4, 3, 0), (7, 2, 2), (5, 1, 3)]
)
def test_fedfomo(
    pool: RankPool, problem: Path, tmp_path: Path, part: int, steps: int, downloads: int
) -> None:
    expected = fedfomo(problem, 6, part, steps, downloads or N - 1)
    assert np.count_nonzero(expected[1] * (1 - np.eye(N))) > 0, "clients use models of others"
    check_method(
        pool, problem, tmp_path, expected,
        *settings("fedfomo", 6, f"participation.count={part}", f"local.steps={steps}"),
        f"algorithm.downloads={downloads}", "algorithm.exploration=0.5",
        "algorithm.exploration_decay=0.1",
    )  # fmt: skip


@pytest.mark.parametrize("downloads", [0, 1])
def test_fedfomo_keeps_its_own_model_where_nothing_helps(
    pool: RankPool, tmp_path: Path, downloads: int
) -> None:
    """Steps of others are orthogonal to what a client needs."""
    problem = write_centers(tmp_path / "apart.npz", np.eye(4).tolist(), clusters=np.arange(4))
    name = f"algorithm.downloads={downloads}"
    x, w = trained(pool, problem, tmp_path / "run", 2, *settings("fedfomo", 6, name))
    alone, _ = trained(pool, problem, tmp_path / "local", 1, *settings("local", 6))
    np.testing.assert_allclose(x, alone, atol=1e-14)
    np.testing.assert_array_equal(w, np.eye(4))


@pytest.mark.parametrize("lr", [50.0, 0.0])
def test_fedfomo_takes_back_local_work_that_does_not_help(
    pool: RankPool, problem: Path, tmp_path: Path, lr: float
) -> None:
    """A step that overshoots, and none at all: then all models are the same, at distance 0."""
    more = settings("fedfomo", 3, f"optimizer.lr={lr}")
    x, w = trained(pool, problem, tmp_path / "run", 2, *more)
    np.testing.assert_array_equal(x, np.tile(np.load(problem)["start"], (N, 1)))
    assert not w.any()


def test_fedfomo_takes_back_statistics_with_the_model(tmp_path: Path) -> None:
    """Without a step, no model helps; local work would leave BatchNorm's statistics of its batches."""
    given = [
        "algorithm.name=fedfomo", "task.validation_fraction=0.2", "model.norm=batch", "optimizer.lr=0",
        "run.rounds=2", f"run.dir={tmp_path}",
    ]  # fmt: skip
    assert main([*QUIET, *given]) == 0
    means = [value for name, value in models(tmp_path).items() if name.endswith("running_mean")]
    assert means
    assert not np.any(means), "as at the start"


# -- PENS and DAC ------------------------------------------------------------------------------------------


def gumbel_sample(
    t: int, i: int, allowed: list[int], logits_n: np.ndarray, count: int
) -> list[int]:
    """Return `count` of the allowed clients, drawn by softmax(logits) without replacement."""
    u = seeds.uniforms(seeds.key(0, "peers", t, i), N).numpy()
    values = logits_n - np.log(-np.log(u))
    return sorted(allowed, key=lambda j: -values[j])[:count]


def pens(problem: Path, rounds: int, part: int, steps: int, counts: np.ndarray) -> Dense:
    """Three sampled, the best two are averaged with; the first half of the rounds finds peers."""
    dense, chosen = DenseClients(problem, ETA), np.zeros((N, N))
    w = (1 - np.eye(N)) / (N - 1)
    for t in range(rounds):
        here, x = taking_part(t, part), dense.x.copy()
        for i in here:
            x[i] = dense.local_work(i, dense.x[i], steps)
        dense.x = x.copy()
        for i in here:
            others = [j for j in here if j != i]
            if t < rounds / 2:
                sampled = gumbel_sample(t, i, others, np.zeros(N), 3)
                peers = sorted(sampled, key=lambda j: dense.loss(i, x[j]))[:2]
                chosen[i, peers] += 1
                w[i] = chosen[i] / chosen[i].sum()
            else:
                often = [j for j in others if chosen[i, j] > chosen[i].sum() / (N - 1)]
                peers = gumbel_sample(t, i, often, np.zeros(N), 3)
            every = [i, *peers]
            dense.x[i] = counts[every] @ x[every] / counts[every].sum()
    return dense.x, w


@pytest.mark.parametrize(
    ("part", "steps", "weighting"), [(7, 1, "equal"), (5, 2, "equal"), (7, 1, "examples")]
)
def test_pens(
    pool: RankPool, weighed: Path, tmp_path: Path, part: int, steps: int, weighting: str
) -> None:
    counts = EXAMPLES if weighting == "examples" else np.ones(N)
    check_method(
        pool, weighed, tmp_path, pens(weighed, 8, part, steps, counts),
        *settings("pens", 8, f"participation.count={part}", f"local.steps={steps}"),
        "algorithm.peers=3", "algorithm.best=2", "algorithm.selection_share=0.5",
        f"algorithm.weighting={weighting}",
    )  # fmt: skip


def test_pens_finds_its_cluster(pool: RankPool, tmp_path: Path) -> None:
    """All others are sampled, and the best two are those of one's cluster, of three clients."""
    centers = [[1.0, 0.0], [0.0, 1.0]] * 3
    problem = write_centers(tmp_path / "two.npz", centers)
    _, w = trained(
        pool, problem, tmp_path / "run", 2, *settings("pens", 4, "algorithm.peers=5"),
        "algorithm.selection_share=1",
    )  # fmt: skip
    same = np.add.outer(np.arange(6), np.arange(6)) % 2 == 0
    np.testing.assert_allclose(w, (same & ~np.eye(6, dtype=bool)) / 2)


def dac(problem: Path, rounds: int, part: int, steps: int, tau: float, growth: float) -> Dense:
    """Two sampled peers; similarities of others are taken over from them."""
    dense, s, measured = DenseClients(problem, ETA), np.zeros((N, N)), np.eye(N, dtype=bool)
    w = (1 - np.eye(N)) / (N - 1)

    def tau_of(t: int) -> float:
        return 2 * tau / (1 + np.exp(-growth * t)) - tau + 1 if growth else tau

    for t in range(rounds):
        here, x, known = taking_part(t, part), dense.x.copy(), s.copy()
        for i in here:
            x[i] = dense.local_work(i, dense.x[i], steps)
        dense.x = x.copy()
        for i in here:
            others = [j for j in here if j != i]
            peers = gumbel_sample(t, i, others, tau_of(t) * known[i], 2)
            for k in peers:
                s[i, k], measured[i, k] = 1 / dense.loss(i, x[k]), True
            for j in range(N):
                knowing = [k for k in peers if known[k, j] > 0]
                if knowing and not measured[i, j]:
                    s[i, j] = known[max(knowing, key=lambda k: s[i, k]), j]
            dense.x[i] = x[[i, *peers]].mean(axis=0)
            parts = np.exp(tau_of(t + 1) * (s[i] - s[i].max())) * (np.arange(N) != i)
            w[i] = parts / parts.sum()
    return dense.x, w


@pytest.mark.parametrize(
    ("part", "steps", "tau", "growth"), [(7, 1, 3.0, 0.0), (5, 2, 3.0, 0.0), (7, 1, 4.0, 0.3)]
)
def test_dac(
    pool: RankPool, problem: Path, tmp_path: Path, part: int, steps: int, tau: float, growth: float
) -> None:
    expected = dac(problem, 6, part, steps, tau, growth)
    check_method(
        pool, problem, tmp_path, expected,
        *settings("dac", 6, f"participation.count={part}", f"local.steps={steps}"),
        "algorithm.peers=2", f"algorithm.tau={tau}", f"algorithm.tau_growth={growth}",
    )  # fmt: skip


def test_all_peers_are_fedavg(pool: RankPool, problem: Path, tmp_path: Path) -> None:
    """Clients average with all others."""
    x, _ = trained(pool, problem, tmp_path / "run", 2, *settings("dac", 5, "algorithm.peers=7"))
    together, _ = trained(pool, problem, tmp_path / "fedavg", 1, *settings("fedavg", 5))
    np.testing.assert_allclose(x, together, atol=1e-12)


def weights_with_bad_losses(session: Session, arguments: list[str]) -> np.ndarray:
    """Train; no model has a loss on the data of the first client of each rank. Return W [c, n]."""

    def score(
        given: Score, x_cd: torch.Tensor, b_cd: torch.Tensor, rows_e: np.ndarray
    ) -> torch.Tensor:
        return score_each(given, x_cd, b_cd, rows_e).where(torch.from_numpy(rows_e > 0), np.nan)

    with mock.patch("cobo_dist.algorithms.peer_sampling.score_each", score):
        return train_and_weights(session, arguments)


@pytest.mark.parametrize("name", ["dac", "pens"])
def test_losses_that_are_not_finite_leave_weights_finite(
    pool: RankPool, problem: Path, tmp_path: Path, name: str
) -> None:
    """As from run.on_nan=skip_client; with fewer clients in a round than a client may sample."""
    run = [
        "task.name=quadratic",
        f"task.file={problem}",
        f"run.dir={tmp_path}",
        "participation.count=4",
    ]
    w = np.concatenate(pool.run(2, weights_with_bad_losses, [*run, *settings(name, 5)]))
    assert np.isfinite(w).all()
    np.testing.assert_allclose(w.sum(axis=1), 1.0, rtol=1e-6)


# -- DPFL --------------------------------------------------------------------------------------------------


def greedy_set(
    dense: DenseClients, x: np.ndarray, i: int, t: int, pool: list[int], budget: int, tie: float,
    counts: np.ndarray,
) -> list[int]:  # fmt: skip
    """Return the collaborators that client i takes of a pool: randomized double greedy."""

    def reward(members: list[int]) -> float:
        return -dense.loss(i, counts[members] @ x[members] / counts[members].sum())

    order = seeds.permutation(seeds.key(0, "candidates", t, i), N).tolist()
    draws = seeds.uniforms(seeds.key(0, "collaborators", t, i), N).numpy()
    grown, shrunk = [i], [i, *pool]
    for u, draw in zip([u for u in order if u in pool], draws, strict=False):
        a = max(0.0, reward([*grown, u]) - reward(grown))
        b = max(0.0, reward([j for j in shrunk if j != u]) - reward(shrunk))
        p = a / (a + b) if a + b > 0 else tie
        if draw < p and len(grown) <= budget:
            grown.append(u)
        else:
            shrunk.remove(u)
    return grown[1:]


def dpfl(
    problem: Path, rounds: int, part: int, steps: int, budget: int, every: int, ties: str, counts: np.ndarray
) -> Dense:  # fmt: skip
    """Two rounds alone; then collaborators of all, and later of the first ones."""
    dense, w, pools = DenseClients(problem, ETA), np.eye(N), dict[int, list[int]]()
    for t in range(rounds):
        here, x = taking_part(t, part), dense.x.copy()
        for i in here:
            x[i] = dense.local_work(i, dense.x[i], steps)
        dense.x = x.copy()
        if t < 2:
            continue
        for i in here:
            if (t - 2) % every == 0:
                pool = [j for j in pools.get(i, range(N)) if j in here and j != i]
                found = greedy_set(dense, x, i, t, pool, budget, float(ties == "add"), counts)
                pools.setdefault(i, found)
                w[i] = np.isin(np.arange(N), [i, *found]) * counts
                w[i] /= w[i].sum()
            row = w[i] * np.isin(np.arange(N), here)
            dense.x[i] = row @ x / row.sum()
    return dense.x, w


@pytest.mark.parametrize(
    ("part", "steps", "budget", "every", "ties", "weighting"),
    [
        (7, 1, 6, 1, "drop", "equal"),
        (7, 1, 6, 2, "add", "examples"),
        (5, 2, 2, 1, "add", "equal"),
    ],
)
def test_dpfl(
    pool: RankPool, weighed: Path, tmp_path: Path,
    part: int, steps: int, budget: int, every: int, ties: str, weighting: str,
) -> None:  # fmt: skip
    counts = EXAMPLES.astype(float) if weighting == "examples" else np.ones(N)
    expected = dpfl(weighed, 7, part, steps, budget, every, ties, counts)
    others = expected[1] * (1 - np.eye(N)) > 0
    assert others.any(), "clients collaborate"
    assert others.sum(axis=1).max() <= budget
    check_method(
        pool, weighed, tmp_path, expected,
        *settings("dpfl", 7, f"participation.count={part}", f"local.steps={steps}"),
        f"algorithm.budget={budget}", f"algorithm.every={every}", f"algorithm.ties={ties}",
        "algorithm.local_rounds=2", f"algorithm.weighting={weighting}",
    )  # fmt: skip


def test_dpfl_takes_nobody_who_does_not_help(pool: RankPool, tmp_path: Path) -> None:
    problem = write_centers(tmp_path / "apart.npz", np.eye(4).tolist(), clusters=np.arange(4))
    drop = "algorithm.ties=drop"
    x, w = trained(pool, problem, tmp_path / "run", 2, *settings("dpfl", 6, drop))
    alone, _ = trained(pool, problem, tmp_path / "local", 1, *settings("local", 6))
    np.testing.assert_allclose(x, alone, atol=1e-14)
    np.testing.assert_array_equal(w, np.eye(4))


# -- APPLE -------------------------------------------------------------------------------------------------


def apple(problem: Path, rounds: int, part: int, p_0: np.ndarray, schedule: str) -> Dense:
    """eta_2 = 0.05, mu = 0.7, and a pull that is gone after half of the rounds."""
    dense, y, p = DenseClients(problem, ETA), None, np.tile(p_0, (N, 1))
    y, half = dense.x.copy(), rounds / 2
    for t in range(rounds):
        here, new_y = taking_part(t, part), y.copy()
        falls = (1 + np.cos(np.pi * t / half)) / 2 if schedule == "cosine" else 1e-3 ** (t / half)
        pull = 0.7 * falls if t < half else 0.0
        for i in here:
            g = dense.gradient(i, p[i] @ y)
            new_y[i] = y[i] - ETA * p[i, i] * g
            p[i] = p[i] - 0.05 * (y @ g + pull * (p[i] - p_0))
        y = new_y
        for i in here:
            dense.x[i] = p[i] @ y
    return dense.x, p


@pytest.mark.parametrize(
    ("part", "weighting", "schedule"),
    [(7, "equal", "cosine"), (7, "examples", "exponential"), (4, "equal", "cosine")],
)
def test_apple(
    pool: RankPool, weighed: Path, tmp_path: Path, part: int, weighting: str, schedule: str
) -> None:
    p_0 = EXAMPLES / EXAMPLES.sum() if weighting == "examples" else np.full(N, 1 / N)
    check_method(
        pool, weighed, tmp_path, apple(weighed, 8, part, p_0, schedule),
        *settings("apple", 8, f"participation.count={part}", f"algorithm.weighting={weighting}"),
        "algorithm.weights_lr=0.05", "algorithm.mu=0.7", "algorithm.pull_share=0.5",
        f"algorithm.pull_schedule={schedule}",
    )  # fmt: skip


def test_apple_of_one_client_is_gradient_descent_on_both_factors(
    pool: RankPool, tmp_path: Path
) -> None:
    """X = p y with f = (x - 1)^2 / 2, from y = 0.5 and p = 1."""
    problem = tmp_path / "one.npz"
    np.savez(problem, centers=[[1.0]], curvature=[1.0], start=[0.5], clusters=[0])
    x, w = trained(
        pool, problem, tmp_path / "run", 1, *settings("apple", 5, "algorithm.weights_lr=0.1"),
        "algorithm.mu=0",
    )  # fmt: skip
    p, y = 1.0, 0.5
    for _ in range(5):
        g = p * y - 1.0
        p, y = p - 0.1 * g * y, y - ETA * p * g
    np.testing.assert_allclose([x[0, 0], w[0, 0]], [p * y, p], atol=1e-12)


def test_models_of_apple_move_by_the_mean_gradient_over_n(
    pool: RankPool, problem: Path, tmp_path: Path
) -> None:
    """At p = 1/n, which a notice says."""
    still = settings("apple", 1, "algorithm.weights_lr=1e-15", "algorithm.mu=0")
    x, _ = trained(pool, problem, tmp_path, 1, *still)
    dense = DenseClients(problem, ETA)
    mean_d = np.mean([dense.gradient(i, dense.start) for i in range(N)], axis=0)
    np.testing.assert_allclose(x, np.tile(dense.start - ETA / N * mean_d, (N, 1)), atol=1e-12)
    (notice,) = rows(tmp_path, "warning")
    assert f"optimizer.lr / n = {ETA / N:.3g} times the mean gradient" in notice["message"]


# -- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("algorithm.name=apple local.steps=2", "local.steps=2 does not serve algorithm.name=apple"),
        ("algorithm.name=adaptive_collaboration local.epochs=1", "local.epochs=1 does not serve"),
        ("algorithm.name=apple algorithm.weights_lr=0", "algorithm.weights_lr"),
        ("algorithm.name=pens algorithm.best=5", "algorithm.best=5 of algorithm.peers=5"),
        ("algorithm.name=pens algorithm.selection_share=0", "algorithm.selection_share"),
    ],
)
def test_settings_that_make_it_another_method_are_refused(given: str, words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_config(None, given.split())
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["fedfomo", "dpfl"])
def test_a_task_without_validation_data_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"algorithm.name={name}", "task.validation_fraction=0", f"run.dir={tmp_path}"]
    assert main([*QUIET, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"algorithm.name={name} scores models on validation data" in line
    assert "task.validation_fraction=" in line


@pytest.mark.parametrize(
    ("given", "clients", "words"),
    [
        ("algorithm.name=pens", 3, "of the 2 models that a client can sample"),
        ("algorithm.name=pens", 3, "lower algorithm.best to 1 or less"),
        ("algorithm.name=pens participation.count=3", 7, "lower algorithm.best to 1 or less"),
        ("algorithm.name=pens algorithm.best=6 algorithm.peers=7", 7, "to 5 or less"),
        ("algorithm.name=pens algorithm.best=1", 2, "let 3 clients or more take part"),
        ("algorithm.name=pens participation.count=1", 7, "let 3 clients or more take part"),
        ("algorithm.name=apple optimizer.name=adamw", 7, "multiplies gradients by p_ii"),
    ],
)
def test_settings_that_do_not_suit_a_method_are_refused(
    given: str, clients: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = write_quadratic(tmp_path / "problem.npz", clients)
    run = ["task.name=quadratic", f"task.file={problem}", f"run.dir={tmp_path / 'run'}"]
    assert main([*QUIET, *run, *given.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_pens_with_three_clients_finds_peers(pool: RankPool, tmp_path: Path) -> None:
    """With algorithm.best=1, as the refusal says: two clients are alike, and the third differs."""
    problem = write_centers(tmp_path / "three.npz", [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    more = settings("pens", 6, "algorithm.best=1", "algorithm.selection_share=0.5")
    _, w = trained(pool, problem, tmp_path / "run", 2, *more)
    assert w[:2].tolist() == [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
