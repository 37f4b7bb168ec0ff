"""Methods with a global model beside the clients' own, against dense twins written from their papers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from methods import DenseClients, check_method, trained
from pool import RankPool
from problems import QUIET, models, rows, train, train_with, write_quadratic

from cobo_dist.algorithms.algorithm import HealthFacts
from cobo_dist.algorithms.base import RunContext
from cobo_dist.algorithms.fedala import FedAla
from cobo_dist.algorithms.perfedavg import PerFedAvg
from cobo_dist.cli.train import main
from cobo_dist.clients.local_steps import LocalStep
from cobo_dist.comm.session import Session
from cobo_dist.config import load_config
from cobo_dist.maths import seeds

N, D, ROUNDS, ETA, NOISE = 7, 5, 4, 0.1, 0.3
EXAMPLES = np.array([1, 3, 2, 1, 4, 2, 5])
CASES = {
    "one step": [],
    "steps, some clients": ["local.steps=3", "participation.count=4"],
    "epochs, by examples": ["local.epochs=1", "algorithm.weighting=examples"],
}


class Twin(DenseClients):
    """Example 2 with noise, and the batches of a case: local steps, who takes part, weights in averages."""

    def __init__(self, problem: Path, case: str) -> None:
        super().__init__(problem, ETA)
        self.case, self.w = case, self.start.copy()

    def taking_part(self, t: int) -> list[int]:
        if self.case != "steps, some clients":
            return list(range(self.n))
        return sorted(seeds.permutation(seeds.key(0, "clients", t), self.n).tolist()[:4])

    def batches(self, i: int, t: int) -> list[int]:
        """Return the numbers of the batches of client i's local steps in round t."""
        if self.case == "epochs, by examples":
            return [(t << 32) + part for part in range(EXAMPLES[i])]
        steps = 3 if self.case == "steps, some clients" else 1
        return list(range(t * steps, (t + 1) * steps))

    def g(self, i: int, point_d: np.ndarray, number: int, stream: str = "local") -> np.ndarray:
        noise = seeds.normals(seeds.key(0, f"noise {stream}", number, i), D).numpy()
        return self.gradient(i, point_d) + NOISE * noise

    def mean(self, models: dict[int, np.ndarray]) -> np.ndarray:
        by_examples = self.case == "epochs, by examples"
        shares = np.array([EXAMPLES[i] if by_examples else 1.0 for i in models])
        return (shares / shares.sum()) @ np.stack(list(models.values()))

    def apfl(self, alpha: float, adaptive: bool, momentum: float) -> None:
        v, alphas = self.x.copy(), np.full(self.n, alpha)
        of_v, of_w = np.zeros_like(v), np.zeros_like(v)
        for t in range(ROUNDS):
            local = {}
            for i in self.taking_part(t):
                w = self.w
                for number in self.batches(i, t):
                    g = self.g(i, alphas[i] * v[i] + (1 - alphas[i]) * w, number)
                    slope = (v[i] - w) @ g
                    of_v[i] = momentum * of_v[i] + alphas[i] * g
                    of_w[i] = momentum * of_w[i] + self.g(i, w, number)
                    v[i], w = v[i] - ETA * of_v[i], w - ETA * of_w[i]
                    if adaptive:
                        alphas[i] = np.clip(alphas[i] - ETA * slope, 0, 1)
                local[i] = w
            self.w = self.mean(local)
            for i in local:
                self.x[i] = alphas[i] * v[i] + (1 - alphas[i]) * self.w

    def pfedme(self, pull: float, inner: int, lr: float, beta: float) -> None:
        for t in range(ROUNDS):
            local = {}
            for i in self.taking_part(t):
                w = theta = self.w
                for number in self.batches(i, t):
                    for _ in range(inner):
                        theta = theta - lr * (self.g(i, theta, number) + pull * (theta - w))
                    w = w - ETA * pull * (w - theta)
                local[i], self.x[i] = w, theta
            self.w = (1 - beta) * self.w + beta * self.mean(local)

    def perfedavg(self, lr: float, second: bool) -> None:
        """With `second` derivatives: here they are a_i I, exactly."""
        for t in range(ROUNDS):
            local = {}
            for i in self.taking_part(t):
                w = self.w
                for number in self.batches(i, t):
                    g = self.g(i, w - lr * self.g(i, w, number), number, "meta")
                    w = w - ETA * (g - second * lr * self.a[i] * g)
                local[i] = w
            self.w = self.mean(local)
            for i in local:
                self.x[i] = self.w - lr * self.g(i, self.w, t << 32, "adaptation")

    def fedala(self, share: float, lr: float, first: int) -> None:
        a, learned = np.ones_like(self.x), set()
        for t in range(ROUNDS):
            local = {}
            for i in self.taking_part(t):
                x = self.x[i]
                if t:
                    far = self.w - x
                    x = self.x[i] + far * a[i]
                    for _ in range(1 if i in learned else first):
                        for part in range(max(1, int(share * self.batch_count(i)))):
                            g = self.g(i, x, (t << 32) + part, "adaptation")
                            a[i] = np.clip(a[i] - lr * g * far, 0, 1)
                            x = self.x[i] + far * a[i]
                    learned.add(i)
                for number in self.batches(i, t):
                    x = x - ETA * self.g(i, x, number)
                local[i] = self.x[i] = x
            self.w = self.mean(local)

    def batch_count(self, i: int) -> int:
        return int(EXAMPLES[i])


METHODS: dict[str, tuple[list[str], Any]] = {
    "apfl": (["algorithm.name=apfl", "optimizer.momentum=0.5"], lambda twin: twin.apfl(0.5, True, 0.5)),
    "apfl fixed": (
        ["algorithm.name=apfl", "algorithm.adaptive=false", "algorithm.alpha=0.75"],
        lambda twin: twin.apfl(0.75, False, 0.0),
    ),
    "pfedme": (
        ["algorithm.name=pfedme", "algorithm.lambda=4", "algorithm.inner_steps=3",
         "algorithm.personal_lr=0.07", "algorithm.beta=1.5"],
        lambda twin: twin.pfedme(4.0, 3, 0.07, 1.5),
    ),
    "perfedavg": (
        ["algorithm.name=perfedavg", "algorithm.personal_lr=0.2"],
        lambda twin: twin.perfedavg(0.2, False),
    ),
    "perfedavg second": (
        ["algorithm.name=perfedavg", "algorithm.personal_lr=0.2", "algorithm.variant=hessian_free"],
        lambda twin: twin.perfedavg(0.2, True),
    ),
    "fedala": (
        ["algorithm.name=fedala", "algorithm.weight_lr=0.3", "algorithm.share=0.6",
         "algorithm.first_passes=3"],
        lambda twin: twin.fedala(0.6, 0.3, 3),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_quadratic(
        tmp_path_factory.mktemp("problem") / "problem.npz", N, D, examples=EXAMPLES
    )


def settings(*more: str) -> list[str]:
    return [f"run.rounds={ROUNDS}", f"optimizer.lr={ETA}", *more]


SOME, EPOCHS = "steps, some clients", "epochs, by examples"
TRIED = [
    ("apfl", SOME), ("apfl", EPOCHS), ("apfl fixed", "one step"), ("pfedme", SOME), ("pfedme", EPOCHS),
    ("perfedavg", EPOCHS), ("perfedavg second", SOME), ("fedala", SOME), ("fedala", EPOCHS),
]  # fmt: skip


@pytest.mark.parametrize(("method", "case"), TRIED)
def test_equals_a_dense_twin(
    method: str, case: str, pool: RankPool, problem: Path, tmp_path: Path
) -> None:
    """With noise, so that every gradient is on the batch that it should be on. W is all ones."""
    arguments, run = METHODS[method]
    twin = Twin(problem, case)
    run(twin)
    expected = twin.x, np.ones((N, N))
    noise = f"task.noise={NOISE}"
    check_method(pool, problem, tmp_path, expected, *settings(noise, *arguments, *CASES[case]))
    assert np.ptp(twin.x, axis=0).max() > 1e-3, "clients differ"


def models_of(pool: RankPool, problem: Path, folder: Path, *more: str) -> np.ndarray:
    """Return the final models [n, d] of a run without noise on one rank."""
    return trained(pool, problem, folder, 1, *settings(*more))[0]


@pytest.mark.parametrize(("alpha", "other"), [(1, "local"), (0, "fedavg")])
def test_apfl_with_a_fixed_share_of_all_or_nothing(
    alpha: int, other: str, pool: RankPool, problem: Path, tmp_path: Path
) -> None:
    """It is said before training, since another method does the same with half the gradients."""
    fixed = ["algorithm.name=apfl", f"algorithm.alpha={alpha}", "algorithm.adaptive=false"]
    found = models_of(pool, problem, tmp_path / "apfl", *fixed, "local.steps=2")
    expected = models_of(
        pool, problem, tmp_path / "other", f"algorithm.name={other}", "local.steps=2"
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    (notice,) = rows(tmp_path / "apfl", "warning")
    assert f"fixed at {alpha} is {'Local' if alpha else 'FedAvg'}" in notice["message"]


def test_pfedme_with_one_inner_step_is_fedavg_with_another_step_size(
    pool: RankPool, problem: Path, tmp_path: Path
) -> None:
    """Theta starts at w, so the pull is 0: w - theta = eta_p g(w), and w moves by eta lambda eta_p g."""
    pull, lr = 4.0, 0.25
    found = models_of(
        pool, problem, tmp_path / "pfedme", "algorithm.name=pfedme", f"algorithm.lambda={pull}",
        "algorithm.inner_steps=1", f"algorithm.personal_lr={lr}",
    )  # fmt: skip
    w_1d = models_of(
        pool, problem, tmp_path / "fedavg", "algorithm.name=fedavg", f"run.rounds={ROUNDS - 1}",
        f"optimizer.lr={ETA * pull * lr}",
    )  # fmt: skip
    twin = Twin(problem, "one step")
    expected = [w_1d[i] - lr * twin.gradient(i, w_1d[i]) for i in range(N)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_perfedavg_without_a_personal_step_is_fedavg(
    pool: RankPool, problem: Path, tmp_path: Path
) -> None:
    tiny = ["algorithm.name=perfedavg", "algorithm.personal_lr=1e-15", "local.steps=2"]
    found = models_of(pool, problem, tmp_path / "perfedavg", *tiny)
    expected = models_of(
        pool, problem, tmp_path / "fedavg", "algorithm.name=fedavg", "local.steps=2"
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_the_mean_of_fedala_without_learning_is_fedavg(
    pool: RankPool, problem: Path, tmp_path: Path
) -> None:
    """A stays at 1, so clients start at w; X holds their models before they are averaged."""
    still = ["algorithm.name=fedala", "algorithm.weight_lr=1e-300"]
    found = models_of(pool, problem, tmp_path / "fedala", *still)
    expected = models_of(pool, problem, tmp_path / "fedavg", "algorithm.name=fedavg")
    np.testing.assert_allclose(found.mean(axis=0), expected[0], rtol=0, atol=1e-12)
    assert np.ptp(found, axis=0).max() > 1e-3


class Watched(FedAla):
    """FedALA that checks where clients start."""

    def start_between(self, t: int) -> None:
        own_cd, w_1d = self.clients.x_cd.clone(), self.w_1d
        super().start_between(t)
        below = self.clients.columns(self.clients.layers()[-1], others=True)
        assert (below.take(self.clients.x_cd) == below.take(w_1d)).all()
        near_ck, far_ck, start_ck = map(self.top.take, (own_cd, w_1d, self.clients.x_cd))
        expected_ck = near_ck + (far_ck - near_ck) * self.a_ck
        np.testing.assert_allclose(start_ck.numpy(), expected_ck.numpy(), rtol=0, atol=1e-6)


def watched(session: Session, arguments: list[str]) -> np.ndarray:
    """Train; return A [c, k]."""
    built = []

    def build(*parts: Any) -> Any:
        built.append(Watched(*parts))
        return built[-1]

    assert train_with(session, arguments, build) == 0
    return built[-1].a_ck.numpy()


def test_fedala_learns_the_top_layer_only(pool: RankPool, tmp_path: Path) -> None:
    network = ["model.hidden=[6]", "model.norm=batch", "algorithm.buffers=averaged"]
    arguments = [
        "algorithm.name=fedala", *network, "run.rounds=3", "algorithm.weight_lr=5",
        f"run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    a_ck = np.concatenate(pool.run(2, watched, arguments))
    assert a_ck.shape == (8, 6 * 10 + 10)
    assert a_ck.min() >= 0.0
    assert a_ck.max() == 1.0
    assert (a_ck < 1.0).any(axis=1).all(), "every client learned"


def train_without_examples(session: Session, arguments: list[str]) -> int:
    """Train; in round 2 only clients without examples take part."""
    weights = RunContext.client_weights

    def client_weights(self: RunContext, t: int, weighting: str) -> np.ndarray:
        return weights(self, t, weighting) * (t != 1)

    with mock.patch.object(RunContext, "client_weights", client_weights):
        return train(session, arguments)


def test_fedala_without_examples_in_a_round_keeps_w(pool: RankPool, tmp_path: Path) -> None:
    arguments = [
        "algorithm.name=fedala", "model.hidden=[6]", "model.norm=batch", "algorithm.buffers=averaged",
        "algorithm.weighting=examples", "run.rounds=3", "run.eval_every=0", f"run.dir={tmp_path}",
    ]  # fmt: skip
    assert pool.run(2, train_without_examples, arguments) == [0, 0]
    assert all(np.isfinite(value).all() for value in models(tmp_path).values())


def test_second_derivatives_of_a_short_gradient_in_float32() -> None:
    """A step of delta times it would be lost beside models of size 1. A gradient of 0 gives 0."""
    w_cd = torch.ones(3, 5)
    v_kd = torch.tensor([[1e-7], [10.0], [0.0]]) * torch.arange(1.0, 6.0)
    x_cd = torch.empty(3, 5)

    class Step:
        rows = slice(None)

        def gradients(self, models_cd: torch.Tensor, stream: str) -> torch.Tensor:
            return 3.0 * (models_cd - 0.5)

        def move(self, models_cd: torch.Tensor, by_kd: torch.Tensor, factor: float) -> None:
            models_cd.add_(by_kd, alpha=factor)

    method: Any = SimpleNamespace(
        clients=SimpleNamespace(x_cd=x_cd), config=SimpleNamespace(delta=1e-3)
    )
    step: Any = Step()
    found_kd = PerFedAvg.hessian_product(method, step, w_cd, v_kd)
    np.testing.assert_allclose(found_kd.numpy(), 3.0 * v_kd.numpy(), rtol=1e-2)


@pytest.mark.parametrize("method", ["apfl", "pfedme", "perfedavg", "perfedavg second", "fedala"])
def test_a_method_says_how_many_streams_of_batches_it_reads(
    method: str, problem: Path, tmp_path: Path
) -> None:
    """From which `plan` estimates memory."""
    arguments = METHODS[method][0]
    read, gradients = {"local"}, LocalStep.gradients

    def note(self: Any, models_cd: Any, stream: str = "local", *, trains: bool = False) -> Any:
        read.add(stream)
        return gradients(self, models_cd, stream, trains=trains)

    run = ["task.name=quadratic", f"task.file={problem}", f"run.dir={tmp_path}"]
    with mock.patch.object(LocalStep, "gradients", note):
        assert main([*QUIET, *run, *settings(*arguments)]) == 0
    assert load_config(None, arguments).algorithm.batch_streams == len(read)


@pytest.mark.parametrize(
    ("name", "keys"),
    [("pfedme", ("lambda", "personal_lr")), ("perfedavg", ("personal_lr",))],
)
def test_keys_that_make_models_diverge(name: str, keys: tuple[str, ...]) -> None:
    """Refusals of models that are not finite name them."""
    config = load_config(None, [f"algorithm.name={name}"]).algorithm
    assert config.step_keys == tuple(f"algorithm.{key}" for key in keys)


def test_pfedme_warns_of_a_pull_that_overshoots() -> None:
    facts = HealthFacts(clients=7, rounds=10, lr=0.1, taking_part=7)
    config = load_config(None, ["algorithm.name=pfedme"]).algorithm
    assert list(config.check_settings(facts)) == []
    config = load_config(None, ["algorithm.name=pfedme", "algorithm.lambda=25"]).algorithm
    messages = [one.message for one in config.check_settings(facts)]
    assert len(messages) == 2
    assert "set algorithm.personal_lr below 0.08" in messages[0]
    assert "set optimizer.lr below 0.08" in messages[1]


REFUSED = {
    "algorithm.name=apfl algorithm.alpha=1.5": "algorithm.alpha",
    "algorithm.name=apfl optimizer.name=adamw": "multiplies gradients by alpha_i",
    "algorithm.name=pfedme optimizer.name=adamw": "multiplies gradients by lambda",
    "algorithm.name=perfedavg algorithm.variant=hessian_free local.clip_norm=2": "would clip",
    "algorithm.name=pfedme algorithm.lambda=0": "algorithm.lambda",
    "algorithm.name=pfedme algorithm.inner_steps=0": "algorithm.inner_steps",
    "algorithm.name=pfedme algorithm.personal_lr=0": "algorithm.personal_lr",
    "algorithm.name=pfedme algorithm.beta=0": "algorithm.beta",
    "algorithm.name=perfedavg algorithm.personal_lr=0": "algorithm.personal_lr",
    "algorithm.name=perfedavg algorithm.delta=0.01": "set algorithm.variant=hessian_free",
    "algorithm.name=perfedavg algorithm.variant=hessian_free algorithm.delta=0": "algorithm.delta",
    "algorithm.name=fedala algorithm.layers=0": "algorithm.layers",
    "algorithm.name=fedala algorithm.layers=9": "layers; set at most algorithm.layers=",
    "algorithm.name=fedala algorithm.weight_lr=0": "algorithm.weight_lr",
    "algorithm.name=fedala algorithm.share=0": "algorithm.share",
    "algorithm.name=fedala algorithm.first_passes=0": "algorithm.first_passes",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_bad_settings_are_refused_in_one_line(
    arguments: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*QUIET, *arguments.split(), f"run.dir={tmp_path / 'run'}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert REFUSED[arguments] in line


@pytest.fixture(scope="module")
def alone(problem: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of Local."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    run = ["task.name=quadratic", f"task.file={problem}", "run.dtype=float64", "run.rounds=20"]
    assert main([*QUIET, *run, "algorithm.name=local", f"run.dir={folder}"]) == 0
    return folder


@pytest.mark.parametrize("method", ["apfl", "pfedme", "perfedavg", "fedala"])
def test_from_models_of_another_run_the_global_model_is_their_mean(
    method: str, pool: RankPool, problem: Path, alone: Path, tmp_path: Path
) -> None:
    """With a step of 0 it is what clients have, or near which they begin, after two rounds."""
    start = np.stack(list(models(alone).values()))
    still = ["optimizer.lr=0", f"run.init_from={alone}", "run.rounds=2"]
    keys = {
        "apfl": ["algorithm.alpha=0.25", "algorithm.adaptive=false"],
        "pfedme": ["algorithm.personal_lr=1e-15"],
        "perfedavg": ["algorithm.personal_lr=1e-15"],
        "fedala": ["algorithm.weight_lr=1e-300"],
    }[method]
    found = trained(pool, problem, tmp_path / "run", 2, f"algorithm.name={method}", *keys, *still)[
        0
    ]
    mean_1d = start.mean(axis=0)
    expected = 0.25 * start + 0.75 * mean_1d if method == "apfl" else np.tile(mean_1d, (N, 1))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
