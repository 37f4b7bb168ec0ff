"""Every baseline equals a dense version on 1, 2 and 3 ranks, and has the extremes of its docstring."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pool import RankPool
from problems import models, rows, train_and_weights, write_quadratic

from cobo_dist.algorithms.all_gradients import weighted_sums
from cobo_dist.algorithms.base import RunContext
from cobo_dist.algorithms.registry import build_algorithm
from cobo_dist.clients.client_batch import ClientBatch
from cobo_dist.comm.exchange import Exchange
from cobo_dist.comm.placement import Placement
from cobo_dist.comm.transports.base import SoloTransport
from cobo_dist.config import load_config
from cobo_dist.maths import seeds
from cobo_dist.tasks.registry import build_task

N, D, ROUNDS, ETA = 7, 5, 12, 0.1
RANKS = (1, 2, 3)
CLUSTERS = np.arange(N) % 3


class Dense:
    """Example 2 with all clients in one array: exact gradients and losses."""

    def __init__(self, problem: Path) -> None:
        arrays = np.load(problem)
        self.centers, self.a, self.start = arrays["centers"], arrays["curvature"], arrays["start"]
        self.x = np.tile(self.start, (N, 1))

    def gradients(self, points_nd: np.ndarray) -> np.ndarray:
        return self.a[:, None] * (points_nd - self.centers)

    def loss(self, i: int, point_d: np.ndarray) -> float:
        return 0.5 * self.a[i] * np.sum((point_d - self.centers[i]) ** 2)

    def local(self, rounds: int) -> np.ndarray:
        for _ in range(rounds):
            self.x = self.x - ETA * self.gradients(self.x)
        return self.x

    def fedavg(self, rounds: int) -> np.ndarray:
        for _ in range(rounds):
            self.x = np.tile((self.x - ETA * self.gradients(self.x)).mean(axis=0), (N, 1))
        return self.x

    def ditto(self, lambda_: float) -> np.ndarray:
        v = self.start.copy()
        for _ in range(ROUNDS):
            step = self.gradients(self.x) + lambda_ * (self.x - v)
            v = v - ETA * self.gradients(np.tile(v, (N, 1))).mean(axis=0)
            self.x = self.x - ETA * step
        return self.x

    def ifca(self, share: float) -> tuple[np.ndarray, np.ndarray]:
        centers = [self.start + self._variant(k) for k in range(3)]
        choice = np.zeros(N, dtype=int)
        for t in range(ROUNDS):
            order = seeds.permutation(seeds.key(0, "clients", t), N).tolist()
            part = order[: max(1, round(share * N))]
            for i in part:
                choice[i] = np.argmin([self.loss(i, center) for center in centers])
            moved = []
            for k, center in enumerate(centers):
                mine = [self.a[i] * (center - self.centers[i]) for i in part if choice[i] == k]
                moved.append(center - ETA * np.mean(mine, axis=0) if mine else center)
            centers = moved
        return np.stack([centers[k] for k in choice]), choice[:, None] == choice[None]

    def _variant(self, k: int) -> np.ndarray:
        return seeds.normals(seeds.key(0, "start variant", k), D).numpy() * (k > 0)

    def validation_based(
        self, temperature: float, every: int, score: str = "loss"
    ) -> tuple[np.ndarray, np.ndarray]:
        w = np.eye(N)
        for t in range(ROUNDS):
            self.local(1)
            if (t + 1) % every == 0:
                scores = np.array([[self.loss(i, x_d) for x_d in self.x] for i in range(N)])
                if score == "perplexity":
                    scores = np.exp(scores)
                w = np.exp(-(scores - scores.min(axis=1, keepdims=True)) / temperature)
                w /= w.sum(axis=1, keepdims=True)
                self.x = w @ self.x
        return self.x, w

    def clustering(self, inner: int) -> tuple[np.ndarray, np.ndarray]:
        near = np.zeros((N, N), dtype=bool)
        for _ in range(ROUNDS):
            v_nd = np.empty_like(self.x)
            for i in range(N):
                g = self.gradients(np.tile(self.x[i], (N, 1)))
                v = g[i]
                for _ in range(inner):
                    distances = np.linalg.norm(g - v, axis=1)
                    tau = np.sort(distances)[np.sum(CLUSTERS[i] == CLUSTERS) - 1]
                    near[i] = distances <= tau
                    v = np.mean(np.where(near[i][:, None], g, v), axis=0)
                v_nd[i] = v
            self.x = self.x - ETA * v_nd
        return self.x, near


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_quadratic(tmp_path_factory.mktemp("problem") / "problem.npz", N, D)


def trained(
    pool: RankPool, problem: Path, folder: Path, ranks: int, *algorithm: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the final models [n, d] and W [n, n] of a run."""
    arguments = [
        "task.name=quadratic", f"task.file={problem}", "run.dtype=float64", f"run.rounds={ROUNDS}",
        f"optimizer.lr={ETA}", f"run.dir={folder}", "run.log_weights_every=5", *algorithm,
    ]  # fmt: skip
    rows_of_w = pool.run(ranks, train_and_weights, arguments)
    return np.stack(list(models(folder).values())), np.concatenate(rows_of_w)


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_finetuned_fedavg(
    pool: RankPool, problem: Path, tmp_path: Path, ranks: int, share: float
) -> None:
    x, w = trained(
        pool, problem, tmp_path / "run", ranks,
        "algorithm.name=finetuned_fedavg", f"algorithm.fedavg_share={share}",
    )  # fmt: skip
    dense = Dense(problem)
    together = int(share * ROUNDS)
    dense.fedavg(together)
    close(x, dense.local(ROUNDS - together))
    assert np.array_equal(w, np.ones((N, N)) if share == 1.0 else np.eye(N))
    logged = np.load(tmp_path / "run" / "W.npz")["weights"]
    assert np.array_equal(logged[0], np.eye(N) if share == 0.0 else np.ones((N, N)))
    assert np.array_equal(logged[-1], w)
    assert logged.dtype == np.float64, "as the run"


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("lambda_", [0.0, 0.7])
def test_ditto(pool: RankPool, problem: Path, tmp_path: Path, ranks: int, lambda_: float) -> None:
    x, _ = trained(
        pool,
        problem,
        tmp_path / "run",
        ranks,
        "algorithm.name=ditto",
        f"algorithm.lambda={lambda_}",
    )
    close(x, Dense(problem).ditto(lambda_))
    if not lambda_:
        close(x, Dense(problem).local(ROUNDS))
    sent = sum(row["bytes_mixing"] for row in rows(tmp_path / "run", "round"))
    assert sent == ROUNDS * ranks * (ranks - 1) * D * 8, "one model for each ordered pair of ranks"


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_ifca(pool: RankPool, problem: Path, tmp_path: Path, ranks: int, share: float) -> None:
    x, w = trained(
        pool, problem, tmp_path / "run", ranks,
        "algorithm.name=ifca", f"algorithm.client_share={share}",
    )  # fmt: skip
    expected, same = Dense(problem).ifca(share)
    close(x, expected)
    assert np.array_equal(w, same)


def test_ifca_computes_gradients_of_participating_clients_only(problem: Path) -> None:
    """One of seven takes part: one gradient a round, and only its loss changes."""
    config = load_config(
        None,
        ["task.name=quadratic", f"task.file={problem}", "algorithm.name=ifca",
         "algorithm.client_share=0.1"],
    )  # fmt: skip
    task = build_task(config.task, config.model, config.data, 0, torch.float64)
    clients = ClientBatch(
        range(N), task, config.optimizer, dtype=torch.float64, device=torch.device("cpu")
    )
    exchange = Exchange(
        SoloTransport(), Placement.contiguous(N, 1), torch.float64, clients.device,
        deterministic=False,
    )  # fmt: skip
    context = RunContext(N, task.clusters, 0, ROUNDS)
    ifca = build_algorithm(config.algorithm, clients, exchange, context)
    counted = []
    plain = clients.engine.gradients
    clients.engine.gradients = lambda x, *more: counted.append(len(x)) or plain(x, *more)
    before = ifca.round(0).losses_c
    for t in range(1, 6):
        losses_c = ifca.round(t).losses_c
        part = int(seeds.permutation(seeds.key(0, "clients", t), N)[0])
        assert (losses_c != before).nonzero().flatten().tolist() in ([part], [])
        before = losses_c
    assert counted == [1] * 6


def test_ifca_with_one_center_is_fedavg(pool: RankPool, problem: Path, tmp_path: Path) -> None:
    x, _ = trained(pool, problem, tmp_path / "run", 2, "algorithm.name=ifca", "algorithm.centers=1")
    close(x, Dense(problem).fedavg(ROUNDS))


@pytest.mark.parametrize("ranks", RANKS)
def test_federated_clustering(pool: RankPool, problem: Path, tmp_path: Path, ranks: int) -> None:
    folder = tmp_path / "run"
    x, w = trained(
        pool, problem, folder, ranks,
        "algorithm.name=federated_clustering", "algorithm.inner_rounds=2",
    )  # fmt: skip
    expected, near = Dense(problem).clustering(2)
    close(x, expected)
    assert np.array_equal(w, near)
    (notice,) = rows(folder, "warning")
    assert "49 gradients" in notice["message"]
    # Every model visits every other rank, and each rank's gradients there go back: two exchanges.
    sizes = [len(ids) for ids in Placement.contiguous(N, ranks).by_rank]
    crossing = N * (ranks - 1) + sum(count * (N - count) for count in sizes)
    for row in rows(folder, "round"):
        assert row["bytes_mixing"] == crossing * D * 8
        assert row["messages"] == 2 * ranks * (ranks - 1)


def test_a_gradient_that_is_not_finite_spoils_no_mean_of_others() -> None:
    g_hmd = torch.tensor([[[1.0, 3.0], [5.0, 7.0], [torch.inf, torch.nan], [2.0, 0.0]]])
    near_hm = torch.tensor([[0.25, 0.25, 0.0, 0.0]])
    assert weighted_sums(g_hmd, near_hm, near_hm == 0.0).tolist() == [[1.5, 2.5]]


def test_federated_clustering_with_clusters_of_one_is_local(pool: RankPool, tmp_path: Path) -> None:
    base = np.load(write_quadratic(tmp_path / "base.npz", N, D))
    alone = tmp_path / "alone.npz"
    np.savez(alone, **base, clusters=np.arange(N))
    x, w = trained(
        pool, alone, tmp_path / "run", 2, "algorithm.name=federated_clustering",
        "algorithm.inner_rounds=60",
    )  # fmt: skip
    # v <- (1/n) g_i + (1 - 1/n) v from v = g_i stays g_i.
    close(x, Dense(alone).local(ROUNDS))
    assert np.array_equal(w, np.eye(N))


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize(
    ("score", "temperature", "every"),
    [("loss", 1.0, 1), ("loss", 0.3, 4), ("perplexity", 50.0, 2)],
)
def test_validation_based(
    pool: RankPool,
    problem: Path,
    tmp_path: Path,
    ranks: int,
    score: str,
    temperature: float,
    every: int,
) -> None:
    """Scores and averages equal the dense ones, and the traffic shows one model at a time."""
    folder = tmp_path / "run"
    x, w = trained(
        pool, problem, folder, ranks, "algorithm.name=validation_based",
        f"algorithm.temperature={temperature}", f"algorithm.every={every}", f"algorithm.score={score}",
    )  # fmt: skip
    expected, weights = Dense(problem).validation_based(temperature, every, score)
    close(x, expected)
    close(w, weights)
    assert weights.std() > 0.02, "a problem in which models differ"
    (notice,) = rows(folder, "warning")
    assert "n^2 = 49 forward passes" in notice["message"]
    logged = np.load(folder / "W.npz")["weights"]
    assert np.array_equal(logged[0], np.eye(N))
    close(logged[-1], weights)
    # Each of the models visits every other rank, one at a time, and then they are averaged: a block
    # of weights and at most as many models as a rank has cross between two ranks.
    placement = Placement.contiguous(N, ranks)
    pairs = [(a, b) for a in placement.by_rank for b in placement.by_rank if a is not b]
    visits = N * (ranks - 1) * D * 8
    blocks = sum(len(a) * len(b) * 8 for a, b in pairs)
    models_ = sum(min(len(a), len(b)) * D * 8 for a, b in pairs)
    for row in rows(folder, "round"):
        due = row["round"] % every == 0
        assert row["bytes_mixing"] == due * (visits + blocks + models_)


def test_validation_based_at_the_extremes(pool: RankPool, problem: Path, tmp_path: Path) -> None:
    """A very large temperature is FedAvg; one near 0 gives each client the model with the least loss."""
    name = "algorithm.name=validation_based"
    x, _ = trained(pool, problem, tmp_path / "hot", 2, name, "algorithm.temperature=1e12")
    close(x, Dense(problem).fedavg(ROUNDS))
    _, w = trained(pool, problem, tmp_path / "cold", 2, name, "algorithm.temperature=1e-12")
    assert sorted(set(w.ravel())) == [0.0, 1.0]
    assert (w.sum(axis=1) == 1.0).all()


def test_validation_scores_use_only_validation_examples() -> None:
    """Digits: the seeded batch of a round lies in the client's validation split; the loss is its mean."""
    config = load_config(None, ["task.name=digits", "model.norm=batch"])
    task = build_task(config.task, config.model, config.data, 0, torch.float32)
    clients = ClientBatch(
        [2, 5], task, config.optimizer, dtype=torch.float32, device=torch.device("cpu")
    )
    held_out = [set(task.split_of["validation"][i].tolist()) for i in (2, 5)]
    others = [set(task.split_of[s][i].tolist()) for s in ("train", "test") for i in (2, 5)]
    source = task.validation([2, 5], clients.device, 16)
    seen = [source.streams["validation"].batch(t) for t in range(30)]
    for row in range(2):
        numbers = {int(k) for batch in seen for k in batch[row]}
        assert numbers == held_out[row], "all of them in time"
        assert not any(numbers & other for other in others)
    assert not torch.equal(seen[0], seen[1]), "other examples in another round"
    found = clients.validation_losses_at(clients.x_cd, clients.b_cd, 7, 16)
    inputs, targets = source.batch(7, "validation")
    plain = task.model().eval()
    for row in range(2):
        expected = torch.nn.functional.cross_entropy(plain(inputs[row]), targets[row])
        np.testing.assert_allclose(found[row], expected.item(), rtol=1e-5)


@pytest.mark.parametrize(
    "algorithm",
    ["local", "fedavg", "finetuned_fedavg", "oracle", "ditto", "ifca", "federated_clustering",
     "validation_based"],
)  # fmt: skip
def test_adamw_is_the_same_on_any_number_of_ranks(
    pool: RankPool, problem: Path, tmp_path: Path, algorithm: str
) -> None:
    """Moments of clients and of global models: one rank and three give the same models."""
    found = [
        trained(
            pool, problem, tmp_path / f"run{ranks}", ranks, f"algorithm.name={algorithm}",
            "optimizer.name=adamw", "optimizer.weight_decay=0.1", "optimizer.schedule=one_cycle",
        )[0]
        for ranks in (1, 3)
    ]  # fmt: skip
    close(found[1], found[0])
    start = np.load(problem)["start"]
    assert np.abs(found[0] - start).max() > 0.1, "models moved"


def test_ditto_with_adamw_decays_the_models_of_the_round(
    pool: RankPool, problem: Path, tmp_path: Path
) -> None:
    """Written out for two rounds; the pull towards v comes after the decay was read off x^t."""
    x, _ = trained(
        pool, problem, tmp_path / "run", 1, "algorithm.name=ditto", "algorithm.lambda=0.7",
        "optimizer.name=adamw", "optimizer.weight_decay=0.5", "run.rounds=2",
    )  # fmt: skip
    dense, v = Dense(problem), np.load(problem)["start"].copy()
    moments = [np.zeros_like(dense.x), np.zeros_like(dense.x), np.zeros_like(v), np.zeros_like(v)]
    for t in (1, 2):
        g, at_v = dense.gradients(dense.x), dense.gradients(np.tile(v, (N, 1))).mean(axis=0)
        steps = []
        for k, gradient, model in ((0, g, dense.x), (2, at_v, v)):
            moments[k] = 0.9 * moments[k] + 0.1 * gradient
            moments[k + 1] = 0.95 * moments[k + 1] + 0.05 * gradient**2
            root = np.sqrt(moments[k + 1] / (1 - 0.95**t)) + 1e-8
            steps.append(moments[k] / (1 - 0.9**t) / root + 0.5 * model)
        dense.x = dense.x - ETA * (steps[0] + 0.7 * (dense.x - v))
        v = v - ETA * steps[1]
    close(x, dense.x)


@pytest.mark.parametrize(
    "algorithm",
    [
        ["algorithm.name=validation_based", "optimizer.name=adamw", "optimizer.lr=0.01"],
        ["algorithm.name=ditto", "optimizer.momentum=0.9"],
        ["algorithm.name=ifca", "optimizer.name=ema_momentum", "optimizer.momentum=0.9"],
        ["algorithm.name=federated_clustering", "algorithm.inner_rounds=2"],
        ["algorithm.name=finetuned_fedavg", "algorithm.buffers=averaged"],
    ],
    ids=lambda arguments: arguments[0].partition("=")[2],
)
def test_digits_deterministic_is_bitwise_the_same(
    pool: RankPool, tmp_path: Path, algorithm: list[str]
) -> None:
    """Real batches, BatchNorm, float32, unequal shares: any number of ranks gives the same bits."""
    found = []
    for ranks in (1, 3):
        folder = tmp_path / f"run{ranks}"
        arguments = [
            "comm.deterministic=true", "run.rounds=6", f"run.dir={folder}", "run.eval_every=0",
            "model.norm=batch", *algorithm,
        ]  # fmt: skip
        pool.run(ranks, train_and_weights, arguments)
        found.append(models(folder))
    for name, value in found[0].items():
        assert value.tobytes() == found[1][name].tobytes(), name
