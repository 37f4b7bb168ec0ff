"""Local steps, participation and weights by examples, against plain torch and against today's single step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_local_work import DenseFedAvg, trained_rows
from methods import SPLIT_MODELS, settings_of
from pool import RankPool
from problems import QUIET, models, rows, train, train_and_weights, write_quadratic
from vision_data import write_images

from cobo_dist.algorithms.registry import ALGORITHMS
from cobo_dist.cli.train import main
from cobo_dist.config import describe_keys, load_config
from cobo_dist.maths import seeds
from cobo_dist.tasks.registry import build_task

RANKS = (1, 2, 3)
ROUNDS = 3


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 images for two clusters: one client with 48 of them, four with 12 each."""
    return write_images(tmp_path_factory.mktemp("images") / "images.npz", train=96, test=20, size=4)


def unequal(images: Path, *more: str) -> list[str]:
    """Return a run whose clients have unequally many examples."""
    return [
        "task.name=cross_device", f"data.file={images}", "task.cluster_sizes=[1, 4]",
        "task.validation_fraction=0", "model.name=mlp", "model.hidden=[4]", "data.augment=false",
        "data.batch_size=5", "run.dtype=float64", f"run.rounds={ROUNDS}", "optimizer.lr=0.2",
        "run.eval_every=0", *more,
    ]  # fmt: skip


LOCAL = {
    "steps": ["local.steps=3"],
    "epochs": ["local.epochs=2"],
    "drop_last": ["local.epochs=1", "local.drop_last=true", "run.engine=vectorised"],
    "vectorised": ["local.epochs=1", "run.engine=vectorised", "optimizer.weight_decay=0.01"],
    "clipped": ["local.steps=2", "local.clip_norm=0.3", "optimizer.momentum=0.9"],
    "clipped_step": ["local.clip_norm=0.3"],
    "part": ["participation.count=2", "optimizer.momentum=0.5"],
    "one_client": ["participation.count=1", "local.steps=2"],
    "by_examples": ["algorithm.weighting=examples"],
    "all": [
        "local.epochs=1",
        "participation.count=3",
        "algorithm.weighting=examples",
        "optimizer.momentum=0.5",
        "optimizer.weight_decay=0.01",
        "local.clip_norm=1",
    ],
}


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", [*LOCAL, "oracle part", "oracle all"])
def test_fedavg_is_plain_torch(
    name: str, ranks: int, pool: RankPool, images: Path, tmp_path: Path
) -> None:
    """Clients with 48 and 12 examples, batches of 5: K_i differs, and the last batch has 3 or 2.

    Oracle averages each of the two clusters by itself: one client, and four.
    """
    algorithm = "oracle" if name.startswith("oracle") else "fedavg"
    case = name.removeprefix("oracle ")
    arguments = unequal(images, f"algorithm.name={algorithm}", *LOCAL[case])
    pool.run(ranks, train, [*arguments, f"run.dir={tmp_path / 'run'}"])
    dense = DenseFedAvg(arguments)
    groups = dense.task.clusters if algorithm == "oracle" else [0] * dense.n
    expected = dense.train_rounds(ROUNDS, groups)
    found = trained_rows(tmp_path / "run", dense)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert np.abs(expected - DenseFedAvg(arguments).rows()).max() > 1e-2, "models moved"


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_quadratic(tmp_path_factory.mktemp("problem") / "problem.npz")


def quadratic(problem: Path, folder: Path, *more: str) -> list[str]:
    return [
        "task.name=quadratic", f"task.file={problem}", "run.dtype=float64", "run.rounds=6",
        f"run.dir={folder}", "task.noise=0.1", *more,
    ]  # fmt: skip


PART = {name: settings_of(name) for name in ALGORITHMS if name not in SPLIT_MODELS} | {
    "cobo": ["algorithm.gamma=0.1", "algorithm.sampling.name=all"],
    "cobo-simplex": [
        "algorithm.gamma=0.1",
        "algorithm.domain=simplex",
        "algorithm.sampling.name=all",
    ],
    "cobo-models-first": ["algorithm.order=models_first", "algorithm.sampling.rate=4"],
}


@pytest.mark.parametrize("name", PART)
@pytest.mark.parametrize("local", ["", "local.steps=2"])
def test_some_clients_take_part(
    name: str, local: str, pool: RankPool, problem: Path, tmp_path: Path
) -> None:
    """Models and W are the same on 1, 2 and 3 ranks, and the mean loss is that of those that take part."""
    if local and load_config(None, PART[name]).algorithm.takes_one_step:
        return
    found = []
    for ranks in RANKS:
        folder = tmp_path / f"run{ranks}"
        more = [*PART[name], *filter(None, [local]), "participation.count=3"]
        weights = pool.run(ranks, train_and_weights, quadratic(problem, folder, *more))
        losses = [row["loss"] for row in rows(folder, "round")]
        found.append((np.stack(list(models(folder).values())), np.concatenate(weights), losses))
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            np.testing.assert_allclose(one, same, rtol=0, atol=1e-12)
    assert np.isfinite(found[0][2]).all()


@pytest.mark.parametrize("name", ["local", "cobo", "cobo-simplex", "validation_based", "ditto",
                                  "federated_clustering"])  # fmt: skip
def test_a_client_that_does_not_take_part_keeps_its_model(
    name: str, pool: RankPool, problem: Path, tmp_path: Path
) -> None:
    more = [*PART[name], "participation.count=3", "run.rounds=1"]
    pool.run(2, train, quadratic(problem, tmp_path / "run", *more))
    start, found = np.load(problem)["start"], list(models(tmp_path / "run").values())
    part = seeds.permutation(seeds.key(0, "clients", 0), len(found)).tolist()[:3]
    assert [i for i, x in enumerate(found) if (x != start).any()] == sorted(part)


@pytest.mark.parametrize("name", ["fedavg", "cobo", "ditto"])
def test_all_clients_and_one_step_are_the_default(
    name: str, pool: RankPool, problem: Path, tmp_path: Path
) -> None:
    for folder, more in (("a", []), ("b", ["participation.count=7", "local.steps=1"])):
        pool.run(2, train, quadratic(problem, tmp_path / folder, *PART[name], *more))
    for one, other in zip(*(models(tmp_path / f).values() for f in "ab"), strict=True):
        assert one.tobytes() == other.tobytes()


def test_cobo_is_dense_cobo_among_the_clients_that_take_part(
    pool: RankPool, problem: Path, tmp_path: Path
) -> None:
    """Penalty, pairs and W of three of seven clients a round, with two local steps each."""
    rounds, rho, gamma, eta = 8, 0.3, 0.05, 0.1
    weights = pool.run(
        3, train_and_weights,
        quadratic(
            problem, tmp_path / "run", "task.noise=0", f"run.rounds={rounds}", "local.steps=2",
            "participation.count=3", "algorithm.sampling.name=all", f"algorithm.rho={rho}",
            f"algorithm.gamma={gamma}", f"optimizer.lr={eta}",
        ),
    )  # fmt: skip
    arrays = np.load(problem)
    centers, curvature = arrays["centers"], arrays["curvature"]
    x, w = np.tile(arrays["start"], (7, 1)), np.ones((7, 7))
    for t in range(rounds):
        part = seeds.permutation(seeds.key(0, "clients", t), 7).tolist()[:3]
        new = w.copy()
        for i in part:
            for j in part:
                z = (x[i] + x[j]) / 2
                inner = curvature[i] * (z - centers[i]) @ (curvature[j] * (z - centers[j]))
                new[i, j] = w[i, j] if i == j else np.clip(w[i, j] + gamma * inner, 0, 1)
        w, moved = new, x.copy()
        for i in part:
            y = x[i]
            for _ in range(2):
                y = y - eta * curvature[i] * (y - centers[i])
            moved[i] = y - eta * rho * sum(w[i, j] * (x[i] - x[j]) for j in part)
        x = moved
    np.testing.assert_allclose(np.stack(list(models(tmp_path / "run").values())), x, atol=1e-12)
    np.testing.assert_allclose(np.concatenate(weights), w, atol=1e-12)


def test_ditto_pulls_in_every_local_step(pool: RankPool, problem: Path, tmp_path: Path) -> None:
    pool.run(2, train, quadratic(problem, tmp_path / "run", "algorithm.name=ditto", "local.steps=3",
             "algorithm.lambda=0.7", "task.noise=0"))  # fmt: skip
    arrays = np.load(problem)
    centers, a = arrays["centers"], arrays["curvature"][:, None]
    x, v = np.tile(arrays["start"], (7, 1)), arrays["start"]
    for _ in range(6):
        y, u = x, np.tile(v, (7, 1))
        for _ in range(3):
            y = y - 0.1 * (a * (y - centers) + 0.7 * (y - v))
            u = u - 0.1 * a * (u - centers)
        x, v = y, u.mean(axis=0)
    np.testing.assert_allclose(np.stack(list(models(tmp_path / "run").values())), x, atol=1e-12)


def test_bits_do_not_depend_on_ranks_or_moves(pool: RankPool, images: Path, tmp_path: Path) -> None:
    """Epochs in parts, AdamW's steps of each client, and clients that move to their cluster's rank."""
    found, moves = [], []
    for ranks in RANKS:
        folder = tmp_path / f"run{ranks}"
        pool.run(ranks, train, unequal(
            images, "algorithm.name=oracle", "task.order=shuffled", "algorithm.weighting=examples",
            "local.epochs=1", "data.accumulation=3", "local.clip_norm=0.5", "participation.count=3",
            "optimizer.name=adamw", "optimizer.lr=0.01", "run.dtype=float32", "comm.deterministic=true",
            "comm.placement=adaptive", "comm.placement_every=2", "run.rounds=30", f"run.dir={folder}",
            "task.cluster_sizes=[3, 4]",
        ))  # fmt: skip
        found.append(models(folder))
        moves += rows(folder, "placement")
    for other in found[1:]:
        for name, value in other.items():
            assert value.tobytes() == found[0][name].tobytes(), name
    assert moves, "clients moved"


@pytest.mark.parametrize("engine", ["one_by_one", "vectorised"])
def test_an_incomplete_batch_in_parts_is_the_mean_over_its_examples(
    engine: str, images: Path, tmp_path: Path
) -> None:
    """48 and 12 examples in batches of 15 make last batches of 3 and 12, here in up to three parts."""
    found = []
    for accumulation in (1, 3):
        size = 15 // accumulation
        folder = tmp_path / f"parts{accumulation}"
        more = [f"data.batch_size={size}", f"data.accumulation={accumulation}", f"run.dir={folder}"]
        run = unequal(
            images, "local.epochs=1", "algorithm.name=local", f"run.engine={engine}", *more
        )
        assert main([*QUIET, *run]) == 0
        found.append(np.concatenate([value.ravel() for value in models(folder).values()]))
    np.testing.assert_allclose(*found, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2])
def test_dittos_pull_is_not_clipped(steps: int, tmp_path: Path) -> None:
    n, rounds, eta, pull, most = 4, 6, 0.1, 0.8, 0.05
    problem = write_quadratic(tmp_path / "problem.npz", n)
    given = [
        "task.name=quadratic", f"task.file={problem}", "run.dtype=float64", f"run.rounds={rounds}",
        "algorithm.name=ditto", f"algorithm.lambda={pull}", f"local.clip_norm={most}",
        f"local.steps={steps}", f"optimizer.lr={eta}", f"run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    assert main([*QUIET, *given]) == 0
    with np.load(problem) as stored:
        centers, curvature, start = stored["centers"], stored["curvature"], stored["start"]

    def clipped(points: np.ndarray) -> np.ndarray:
        gradients = curvature[:, None] * (points - centers)
        norms = np.linalg.norm(gradients, axis=1, keepdims=True)
        return gradients * np.minimum(1.0, most / (norms + 1e-6))

    x, v = np.tile(start, (n, 1)), start
    for _ in range(rounds):
        near_v = np.tile(v, (n, 1))
        for _ in range(steps):
            x = x - eta * (clipped(x) + pull * (x - v))
            near_v = near_v - eta * clipped(near_v)
        v = near_v.mean(axis=0)
    found = np.stack(list(models(tmp_path / "run").values()))
    np.testing.assert_allclose(found, x, rtol=0, atol=1e-12)


def test_a_config_with_epochs_can_be_read_again(tmp_path: Path) -> None:
    """It does not name steps, which would contradict it."""
    written = load_config(None, ["local.epochs=2"])
    (tmp_path / "config.yaml").write_text(written.to_yaml())
    assert load_config(str(tmp_path / "config.yaml"), []) == written


REFUSED = {
    "local.steps=2 local.epochs=1": "drop one of them",
    "local.steps=1 local.epochs=2": "drop one of them",
    "local.drop_last=true": "set local.epochs=1",
    "local.steps=0": "local.steps",
    "local.clip_norm=-1": "local.clip_norm",
    "participation.fraction=0": "participation.count=1",
    "participation.fraction=1.5": "participation.fraction",
    "participation.count=9": "more than the 8 clients; set at most 8",
    "participation.count=2 participation.fraction=0.5": "drop one of them",
    "algorithm.name=ifca algorithm.client_share=0.5 participation.count=2": "algorithm.client_share=0.5",
    "algorithm.name=federated_clustering local.steps=2": "leave local.steps at its default",
    "algorithm.name=federated_clustering local.epochs=2": "leave local.epochs at its default",
    "local.epochs=1 local.drop_last=true data.batch_size=1000": "lower data.batch_size",
    "algorithm.name=local algorithm.weighting=examples": "belongs to",
    "algorithm.name=validation_based algorithm.weighting=examples": "belongs to",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_bad_input_is_refused_in_one_line(
    arguments: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*QUIET, *arguments.split(), f"run.dir={tmp_path / 'run'}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert REFUSED[arguments] in line
    assert not (tmp_path / "run").exists()


def test_weights_that_sum_to_0_are_refused(
    problem: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Clusters are clients 0, 3, 6; 1, 4; and 2, 5. A client without examples counts nothing."""
    arrays = dict(np.load(problem))
    for name, sizes in (("some", [3, 0, 1, 0, 2, 0, 0]), ("none", [1, 0, 1, 1, 0, 1, 1])):
        np.savez(tmp_path / f"{name}.npz", **arrays, examples=sizes)
    oracle = ["algorithm.name=oracle", "algorithm.weighting=examples"]
    assert main([*QUIET, *quadratic(tmp_path / "some.npz", tmp_path / "run", *oracle)]) == 0
    found = np.stack(list(models(tmp_path / "run").values()))
    assert np.ptp(found[[0, 3, 6]], axis=0).max() == np.ptp(found[[1, 4]], axis=0).max() == 0.0
    capsys.readouterr()
    for run, words in (
        (["run.dir=a", *oracle], "client 1, and each that it is averaged with"),
        (["run.dir=a", "local.epochs=1"], "client 1 has no training examples"),
    ):
        assert main([*QUIET, *quadratic(tmp_path / "none.npz", tmp_path / "a", *run)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert words in line


def test_several_runs_share_one_split() -> None:
    """Splits and label maps come from data.seed; batches, pairs and x^0 from run.seed."""
    tasks = []
    for seed in (3, 4):
        config = load_config(None, [f"run.seed={seed}", "data.seed=3"])
        task: Any = build_task(config.task, config.model, config.data, seed, torch.float32)
        tasks.append(task)
    one, other = tasks
    assert one.fingerprint() == other.fingerprint()
    plain = load_config(None, ["run.seed=3", "data.seed=null"])
    same: Any = build_task(plain.task, plain.model, plain.data, 3, torch.float32)
    assert same.fingerprint() == one.fingerprint()
    moved: Any = build_task(plain.task, plain.model, plain.data, 4, torch.float32)
    assert moved.fingerprint() != one.fingerprint()
    numbers = [task.training([0], torch.device("cpu")).streams["local"].batch(0) for task in tasks]
    assert not torch.equal(*numbers)
    assert any((one.start()[name] != start).any() for name, start in other.start().items())
    assert "  data.seed  (int, default null)" in describe_keys()
