"""Methods that average whole models, parts of them, or their changes: each against a twin on one array.

The twins are written from the papers: in numpy for Example 2, in plain torch for methods that split a model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from dense_local_work import DenseFedAvg, trained_rows
from methods import RANKS, DenseClients, check_method, trained
from pool import RankPool
from problems import QUIET, models, rows, train, train_and_weights, write_quadratic
from vision_data import write_images

from cobo_dist.algorithms.l2gd import L2gd
from cobo_dist.cli import plan
from cobo_dist.cli.train import main
from cobo_dist.config import load_config
from cobo_dist.maths import seeds
from cobo_dist.planning.dry_run import DryRun
from cobo_dist.tasks.registry import build_task

N, ETA, ROUNDS = 7, 0.1, 6
EXAMPLES = np.array([3, 1, 2, 5, 1, 4, 2])  # also the steps of an epoch of each client
ONES = np.ones((N, N))


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("problem")
    return write_quadratic(folder / "problem.npz", N, 5, clusters=3, examples=EXAMPLES)


def taking_part(t: int, count: int = N) -> list[int]:
    return seeds.permutation(seeds.key(0, "clients", t), N).tolist()[:count]


def run(problem: Path, folder: Path, *more: str) -> list[str]:
    return [
        "task.name=quadratic", f"task.file={problem}", "run.dtype=float64", f"run.rounds={ROUNDS}",
        f"run.dir={folder}", *more,
    ]  # fmt: skip


def dry_run_of(settings: list[str], ranks: int) -> DryRun:
    config = load_config(None, settings)
    task = build_task(config.task, config.model, config.data, config.run.seed, torch.float32)
    return DryRun(config, task, ranks)


Refused = Callable[..., str]


@pytest.fixture
def refused(problem: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Start a run that must be refused in one line, which is returned; nothing may be written."""

    def check(*arguments: str, quadratic: bool = True) -> str:
        folder = tmp_path / "refused"
        task = run(problem, folder) if quadratic else [f"run.dir={folder}"]
        assert main([*QUIET, *task, *arguments]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert not folder.exists()
        return line

    return check


# -- FedProx -------------------------------------------------------------------------------------------


def dense_fedprox(problem: Path, mu: float, work: list[int], count: int, sizes: Any) -> np.ndarray:
    dense = DenseClients(problem, ETA)
    for t in range(ROUNDS):
        x, part = dense.x[0], taking_part(t, count)
        ys = [dense.local_work(i, x, work[i], lambda y, x=x: mu * (y - x)) for i in part]
        dense.x[:] = np.average(ys, axis=0, weights=[sizes[i] for i in part])
    return dense.x


@pytest.mark.parametrize(
    ("more", "work", "count", "sizes"),
    [
        (["local.steps=3"], [3] * N, N, [1] * N),
        (
            ["local.epochs=1", "participation.count=3", "algorithm.weighting=examples"],
            EXAMPLES.tolist(),
            3,
            EXAMPLES,
        ),
    ],
    ids=["steps", "epochs of some, by examples"],
)
def test_fedprox(
    pool: RankPool, problem: Path, tmp_path: Path, more: list[str], work: list[int], count: int,
    sizes: Any,
) -> None:  # fmt: skip
    expected = dense_fedprox(problem, 0.7, work, count, sizes), ONES
    check_method(
        pool, problem, tmp_path, expected, "algorithm.name=fedprox", "algorithm.mu=0.7",
        f"run.rounds={ROUNDS}", *more,
    )  # fmt: skip


def test_fedprox_without_a_pull_is_fedavg(pool: RankPool, problem: Path, tmp_path: Path) -> None:
    """And the pull counts: with it, models are others."""
    steps = ["local.steps=3", f"run.rounds={ROUNDS}"]
    fedavg, none, some = (
        trained(pool, problem, tmp_path / str(number), 2, *steps, *one)[0]
        for number, one in enumerate(
            (
                ["algorithm.name=fedavg"],
                ["algorithm.name=fedprox", "algorithm.mu=0"],
                ["algorithm.name=fedprox", "algorithm.mu=0.1"],
            )
        )
    )
    assert np.array_equal(fedavg, none)
    assert np.abs(fedavg - some).max() > 1e-4


@pytest.mark.parametrize("command", ["train", "plan"])
def test_fedprox_with_one_step_is_refused(
    refused: Refused, problem: Path, tmp_path: Path, command: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Also where an epoch is one batch for every client; a run that one client's epoch saves is none."""
    ones = write_quadratic(tmp_path / "ones.npz", N)  # one example each
    cases = {
        "local.steps=1": ["algorithm.mu=0.1"],
        "local.epochs=1": ["local.epochs=1", f"task.file={ones}"],
    }
    for given, more in cases.items():
        if command == "train":
            line = refused("algorithm.name=fedprox", *more)
        else:
            assert (
                plan.main([*run(problem, tmp_path), "algorithm.name=fedprox", "ranks=2", *more])
                == 2
            )
            (line,) = capsys.readouterr().err.strip().splitlines()
        assert "algorithm.mu=0.1 is FedAvg" in line
        assert f"raise {given}, or set algorithm.name=fedavg" in line
    fine = run(problem, tmp_path / "run", "algorithm.name=fedprox", "local.epochs=1")
    assert main([*QUIET, *fine]) == 0


# -- models that are shared in part --------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 images for two clusters: one client with 48 of them, four with 12 each."""
    return write_images(tmp_path_factory.mktemp("images") / "images.npz", train=96, test=20, size=4)


def on_images(images: Path, *more: str) -> list[str]:
    return [
        "task.name=cross_device", f"data.file={images}", "task.cluster_sizes=[1, 4]",
        "task.validation_fraction=0", "model.name=mlp", "model.hidden=[4]", "data.augment=false",
        "data.batch_size=5", "run.dtype=float64", "run.rounds=4", "optimizer.lr=0.2",
        "run.eval_every=0", *more,
    ]  # fmt: skip


class DenseSharedPart(DenseFedAvg):
    """A model has part 0, which stays with its client, and part 1, which is shared; each has an optimizer."""

    def __init__(self, arguments: list[str], own: tuple[str, ...]) -> None:
        super().__init__(arguments)
        self.parts = [
            (
                [one for name, one in model.named_parameters() if name in own],
                [one for name, one in model.named_parameters() if name not in own],
            )
            for model in self.models
        ]
        self.of_parts = [tuple(map(self.build, parts)) for parts in self.parts]

    def build(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        config = self.config.optimizer
        if config.name == "adamw":
            return torch.optim.AdamW(
                parameters, config.lr, config.betas, config.eps, config.weight_decay
            )
        return torch.optim.SGD(
            parameters, config.lr, config.momentum, weight_decay=config.weight_decay
        )

    def is_local(self) -> bool:
        share = getattr(self.config.algorithm, "fedavg_share", 1.0)
        return self.t >= share * self.config.run.rounds

    def trains(self, client: int, t: int) -> list[tuple[int, ...]]:
        """Return which parts are trained in each local step."""
        self.t, steps = t, len(self.batches(client, t))
        algorithm, local = self.config.algorithm, self.config.local
        if algorithm.name == "fedrep":
            units = local.epochs or local.steps
            head = steps // units * (units - algorithm.body_work)
            return [(0,)] * head + [(1,)] * (steps - head)
        rests = algorithm.name == "fedbabu" and not self.is_local()
        if rests or algorithm.name == "ffa_lora":
            return [(1,)] * steps
        return [(0, 1)] * steps

    def local_work(self, client: int, t: int) -> None:
        for numbers, active in zip(self.batches(client, t), self.trains(client, t), strict=True):
            self.backward(client, numbers)
            if clip := self.config.local.clip_norm:
                parameters = [one for part in active for one in self.parts[client][part]]
                torch.nn.utils.clip_grad_norm_(parameters, clip)
            for part in active:
                self.of_parts[client][part].step()

    def average(self, members: list[int], part: list[int]) -> None:
        if self.is_local():
            return
        shares = self.shares(part)
        for alike in zip(*(self.parts[i][1] for i in range(self.n)), strict=True):
            mean = sum(share * alike[i].data for share, i in zip(shares, part, strict=True))
            for one in alike:
                one.data.copy_(mean)


HEAD, BODY = ("3.weight", "3.bias"), ("1.weight", "1.bias")
OWN = {
    "fedper": HEAD, "fedrep": HEAD, "fedbabu": HEAD, "lg_fedavg": BODY, "fedbn": ("2.weight", "2.bias"),
    "fedsa_lora": ("1.bias", *HEAD), "ffa_lora": ("1.weight",),
}  # fmt: skip
WAYS = {
    "steps": ["local.steps=3", "optimizer.momentum=0.5", "optimizer.weight_decay=0.01"],
    "epochs": [
        "local.epochs=2", "participation.count=3", "algorithm.weighting=examples", "local.clip_norm=0.5",
        "optimizer.momentum=0.5",
    ],
    "adamw": ["local.steps=2", "optimizer.name=adamw", "optimizer.lr=0.01", "participation.count=4"],
}  # fmt: skip
MORE = {
    "fedbn": ["model.norm=batch"], "fedbabu": ["algorithm.fedavg_share=0.6"],
    "fedsa_lora": ["algorithm.shared=[1.weight]"], "ffa_lora": ["algorithm.frozen=[1.weight]"],
}  # fmt: skip


# A bias before BatchNorm has no gradient but rounding, which Adam would blow up.
@pytest.mark.parametrize(
    ("name", "way"), [(n, w) for n in OWN for w in WAYS if (n, w) != ("fedbn", "adamw")]
)
def test_methods_that_share_a_part(
    pool: RankPool, images: Path, tmp_path: Path, name: str, way: str
) -> None:
    """Models and W on 1, 2, 3 ranks are the twin's; moments of a part that rests do not move."""
    given = on_images(images, f"algorithm.name={name}", *MORE.get(name, []), *WAYS[way])
    if (name, way) == ("fedbn", "epochs"):
        given.append("local.drop_last=true")  # BatchNorm takes no batch of one example
    dense = DenseSharedPart(given, OWN[name])
    expected = dense.train_rounds(4, [0] * dense.n)
    w = np.eye(dense.n) if name == "fedbabu" else np.ones((dense.n, dense.n))
    for deterministic in ("false", "true"):
        found = []
        for ranks in RANKS:
            folder = tmp_path / f"{deterministic}{ranks}"
            more = [f"comm.deterministic={deterministic}", f"run.dir={folder}"]
            weights = pool.run(ranks, train_and_weights, [*given, *more])
            np.testing.assert_array_equal(np.concatenate(weights), w)
            found.append(trained_rows(folder, dense))
            np.testing.assert_allclose(found[-1], expected, rtol=0, atol=1e-10)
        if deterministic == "true":
            assert all(one.tobytes() == found[0].tobytes() for one in found[1:])
    assert np.abs(expected - DenseFedAvg(given).rows()).max() > 1e-2, "models moved"


def columns_of(folder: Path, name: str) -> np.ndarray:
    """Return one parameter or buffer of all clients, [n, k]."""
    found = models(folder)
    return np.stack([value.ravel() for key, value in found.items() if key.endswith(f"/{name}")])


def alike(folder: Path, name: str) -> bool:
    """Return whether all clients have the same."""
    rows_nk = columns_of(folder, name)
    return bool((rows_nk == rows_nk[0]).all())


@pytest.mark.parametrize(
    ("name", "common", "own"),
    [
        ("fedper", ["1.weight", "2.weight"], ["4.weight", "4.bias", "2.running_mean"]),
        ("lg_fedavg", ["4.weight", "4.bias"], ["1.weight", "2.weight", "2.running_mean"]),
        (
            "fedbn",
            ["1.weight", "4.bias"],
            ["2.weight", "2.bias", "2.running_mean", "2.running_var"],
        ),
    ],
)
def test_what_is_common_and_what_is_not(
    pool: RankPool, images: Path, tmp_path: Path, name: str, common: list[str], own: list[str]
) -> None:
    given = on_images(images, f"algorithm.name={name}", "model.norm=batch", "local.steps=2")
    pool.run(2, train, [*given, f"run.dir={tmp_path}"])
    assert all(alike(tmp_path, one) for one in common)
    assert not any(alike(tmp_path, one) for one in own)


def test_statistics_of_shared_layers_are_averaged(
    pool: RankPool, images: Path, tmp_path: Path
) -> None:
    """With algorithm.buffers=averaged: those of the body's layers, and not of a head with normalization."""
    averaged = ["model.norm=batch", "model.hidden=[4,4]", "algorithm.buffers=averaged"]
    given = on_images(images, "algorithm.name=fedper", *averaged, "algorithm.head=[4,5,7]")
    pool.run(2, train, [*given, f"run.dir={tmp_path}"])
    assert alike(tmp_path, "2.running_mean")
    assert not alike(tmp_path, "5.running_mean")


def test_fedbabu_at_its_ends(pool: RankPool, images: Path, tmp_path: Path) -> None:
    """The head stays at x^0 while the body is averaged; a share of 0 is Local, bitwise."""
    # One engine, since the faster one is chosen anew in each run.
    given = on_images(images, "local.steps=2", "optimizer.momentum=0.5", "run.engine=one_by_one")
    for folder, more in {
        "together": ["algorithm.name=fedbabu", "algorithm.fedavg_share=1"],
        "alone": ["algorithm.name=fedbabu", "algorithm.fedavg_share=0"],
        "local": ["algorithm.name=local"],
    }.items():
        pool.run(2, train, [*given, *more, f"run.dir={tmp_path / folder}"])
    start = dict(DenseFedAvg(given).models[0].named_parameters())
    for name in HEAD:
        at_0 = start[name].detach().numpy().ravel()
        np.testing.assert_array_equal(
            columns_of(tmp_path / "together", name), np.tile(at_0, (5, 1))
        )
    assert all(alike(tmp_path / "together", name) for name in BODY)
    for key, value in models(tmp_path / "local").items():
        assert value.tobytes() == models(tmp_path / "alone")[key].tobytes()


@pytest.mark.parametrize("start", ["own", "loaded"])
def test_fedbabu_has_one_head_from_the_start(
    pool: RankPool, images: Path, tmp_path: Path, start: str
) -> None:
    """Where clients have starts of their own, that of x^0; from another run, the mean of its heads."""
    given = on_images(images)
    pool.run(1, train, [*given, "algorithm.name=local", f"run.dir={tmp_path / 'local'}"])
    more = "run.start=own" if start == "own" else f"run.init_from={tmp_path / 'local'}"
    babu = ["algorithm.name=fedbabu", "algorithm.fedavg_share=1", f"run.dir={tmp_path / 'run'}"]
    pool.run(2, train, [*given, *babu, more, "participation.count=2"])
    x_0 = dict(DenseFedAvg(given).models[0].named_parameters())
    for name in HEAD:
        expected = x_0[name].detach().numpy().ravel()
        if start == "loaded":
            expected = columns_of(tmp_path / "local", name).mean(axis=0)
        found = columns_of(tmp_path / "run", name)
        np.testing.assert_allclose(found, np.tile(expected, (5, 1)), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["fedper", "fedrep", "fedbabu", "lg_fedavg", "fedbn", "scaffold",
                                  "l2gd", "fedprox", "fedsa_lora", "ffa_lora"])  # fmt: skip
@pytest.mark.parametrize("count", [0, 3])
def test_a_round_sends_what_was_planned(
    pool: RankPool, tmp_path: Path, name: str, count: int
) -> None:
    """All that travels is the shared part; of L2GD nothing in a round of local steps."""
    given = [
        f"algorithm.name={name}", "model.hidden=[18]", "run.rounds=8", "run.eval_every=0",
        "run.threads=1", "local.steps=2", "model.norm=batch", f"participation.count={count}",
        *MORE.get(name, []),
    ]  # fmt: skip
    given = [one for one in given if name != "l2gd" or not one.startswith("local")]
    pool.run(3, train, [*given, f"run.dir={tmp_path}"])
    dry_run = dry_run_of(given, 3)
    sent = [row["bytes_sent"] for row in rows(tmp_path, "round")]
    assert sent == [dry_run.round(r).total for r in range(1, 9)]
    d = 64 * 18 + 18 + 18 + 18 + 18 * 10 + 10
    size = {"lg_fedavg": 18 * 10 + 10, "fedbn": d - 36, "scaffold": 2 * d, "l2gd": d, "fedprox": d,
            "fedsa_lora": 64 * 18, "ffa_lora": d - 64 * 18}  # fmt: skip
    model = 4 * size.get(name, d - 18 * 10 - 10)
    if not count:  # one part of a sum for each ordered pair of ranks
        assert set(sent) == ({0, 6 * model} if name in ("l2gd", "fedbabu") else {6 * model})


SPLIT_REFUSALS = {
    "algorithm.name=fedrep": "set local.steps=2 or more",
    "algorithm.name=fedrep local.epochs=2 algorithm.body_work=2": "set local.epochs=3 or more",
    "algorithm.name=fedper algorithm.head=fc": "algorithm.head=['fc']: no parameter is called 'fc'",
    "algorithm.name=fedper algorithm.head=['*']": "algorithm.head=['*']: '*' leaves no parameter",
    "algorithm.name=lg_fedavg model.name=linear": "this model has one layer, 1; choose",
    "algorithm.name=fedbn": "so it would be FedAvg; choose a model with BatchNorm",
    "algorithm.name=fedbn algorithm.norms=[7]": "algorithm.norms=['7']: no parameter is called '7'",
    "algorithm.name=fedbn algorithm.buffers=averaged": "algorithm.buffers",
    "algorithm.name=lg_fedavg algorithm.buffers=averaged": "algorithm.buffers",
    "algorithm.name=fedsa_lora": "this model has no parameter like *lora_A*; choose task.name=language",
    "algorithm.name=ffa_lora": "or name parameters in algorithm.frozen",
    "algorithm.name=fedsa_lora algorithm.shared=lora_A": "algorithm.shared=['lora_A']: no parameter is",
    "algorithm.name=ffa_lora algorithm.frozen=['*']": "algorithm.frozen=['*']: '*' leaves no parameter",
    "algorithm.name=similarity_based algorithm.columns=fc": "algorithm.columns=['fc']: no parameter is",
    "algorithm.alignment_columns=['*lora_B*']": "algorithm.alignment_columns=['*lora_B*']: no parameter is",
}


@pytest.mark.parametrize("arguments", SPLIT_REFUSALS)
def test_what_cannot_be_split_is_refused(refused: Refused, arguments: str) -> None:
    assert SPLIT_REFUSALS[arguments] in refused(*arguments.split(), quadratic=False)


PLAIN_NORM = """
from torch import nn
from cobo_dist import ModelSection, register

@register.model("plain_norm")
class PlainNorm(ModelSection):
    '''BatchNorm without parameters.'''
    def build(self, shape, classes):
        norm = nn.BatchNorm1d(shape.numel(), affine=False)
        return nn.Sequential(nn.Flatten(), norm, nn.Linear(shape.numel(), classes))
"""


def test_fedbn_of_normalization_without_parameters_is_refused(
    refused: Refused, tmp_path: Path
) -> None:
    plugin = tmp_path / "plain_norm.py"
    plugin.write_text(PLAIN_NORM)
    model = [f"plugins={plugin}", "model.name=plain_norm"]
    line = refused("algorithm.name=fedbn", *model, quadratic=False)
    assert "this model's layer 1 has none (affine=False)" in line
    assert "set algorithm.name=fedavg" in line


@pytest.mark.parametrize("name", ["fedper", "fedbabu", "lg_fedavg"])
def test_a_task_whose_model_is_one_vector_has_no_head(refused: Refused, name: str) -> None:
    assert "this model has one layer, x" in refused(f"algorithm.name={name}")


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        ("mlp", "5"),
        ("cnn", "9"),
        ("resnet9", ""),
        ("vit", "heads.head"),
        ("torchvision", "fc"),
    ],
)
def test_the_head_is_the_last_layer(tmp_path: Path, model: str, layer: str) -> None:
    """Of every model of images: the layer with a row for each class."""
    images = write_images(tmp_path / "images.npz", train=16, test=4, size=8)
    given = [
        "task.name=cross_silo", f"data.file={images}", f"model.name={model}", "algorithm.name=fedper",
        "task.clusters=1", "task.clients_per_cluster=2", "data.batch_size=4",
    ]  # fmt: skip
    if model == "resnet9":
        given.append("model.width=2")
    dry_run = dry_run_of(given, 1)
    own: Any = dry_run.algorithm
    shapes = dict(zip(dry_run.model.names.names, dry_run.model.names.shapes, strict=True))
    classes = {shapes[name][0] for name in own.own.names}
    assert len(classes) == 1
    assert not layer or all(name.startswith(f"{layer}.") for name in own.own.names)
    assert dry_run.task.model()(torch.zeros(2, 3, 8, 8)).shape[1] in classes


# -- SCAFFOLD ------------------------------------------------------------------------------------------


def dense_scaffold(
    problem: Path, work: list[int], count: int, eta_g: float, sizes: Any, rounds: int = ROUNDS
) -> np.ndarray:
    """With equal sizes, sums over S of sizes / all sizes are |S|/n means."""
    dense = DenseClients(problem, ETA)
    x, c = dense.start, np.zeros_like(dense.start)
    c_i = np.zeros_like(dense.x)
    for t in range(rounds):
        part = taking_part(t, count)
        weights = np.array([sizes[i] for i in part], dtype=float)
        y = [dense.local_work(i, x, work[i], lambda y, i=i, c=c: c - c_i[i]) for i in part]
        new = [c_i[i] - c + (x - y_i) / (work[i] * ETA) for i, y_i in zip(part, y, strict=True)]
        change = np.array([c_new - c_i[i] for i, c_new in zip(part, new, strict=True)])
        x = x + eta_g * (weights @ (np.array(y) - x)) / weights.sum()
        c = c + weights @ change / np.sum(sizes)
        c_i[part] = new
    return np.tile(x, (N, 1))


@pytest.mark.parametrize(
    ("more", "work", "count", "sizes"),
    [
        ([], [1] * N, N, [1] * N),
        (["local.steps=3", "participation.count=3"], [3] * N, 3, [1] * N),
        (
            ["local.epochs=1", "participation.count=4", "algorithm.weighting=examples"],
            EXAMPLES.tolist(),
            4,
            EXAMPLES,
        ),
    ],
    ids=["one step", "steps of some", "epochs of some, by examples"],
)
def test_scaffold(
    pool: RankPool, problem: Path, tmp_path: Path, more: list[str], work: list[int], count: int,
    sizes: Any,
) -> None:  # fmt: skip
    """K_i of each client, and c kept between rounds in which a client does not take part."""
    expected = dense_scaffold(problem, work, count, 0.8, sizes), ONES
    check_method(
        pool, problem, tmp_path, expected, "algorithm.name=scaffold", "algorithm.global_lr=0.8",
        f"run.rounds={ROUNDS}", *more,
    )  # fmt: skip


def test_scaffold_finds_the_minimum_that_fedavg_misses(
    pool: RankPool, problem: Path, tmp_path: Path
) -> None:
    """With several steps, FedAvg's models stop where curvatures of clients count otherwise."""
    dense = DenseClients(problem, ETA)
    best = dense.a @ dense.centers / dense.a.sum()
    more = ["local.steps=4", "run.rounds=150"]
    scaffold, fedavg = (
        trained(pool, problem, tmp_path / name, 1, f"algorithm.name={name}", *more)[0]
        for name in ("scaffold", "fedavg")
    )
    np.testing.assert_allclose(scaffold, np.tile(best, (N, 1)), atol=1e-8)
    assert np.abs(fedavg - best).max() > 1e-3


@pytest.mark.parametrize("start", ["own", "loaded"])
def test_scaffold_starts_all_clients_at_one_model(
    pool: RankPool, problem: Path, tmp_path: Path, start: str
) -> None:
    """Where clients have starts of their own, x^0; from another run, the mean of its models."""
    alone = ["algorithm.name=local", "run.rounds=3"]
    local, _ = trained(pool, problem, tmp_path / "local", 1, *alone)
    given = ["algorithm.name=scaffold", "run.rounds=1", "optimizer.lr=0"]
    more = "run.start=own" if start == "own" else f"run.init_from={tmp_path / 'local'}"
    found, _ = trained(pool, problem, tmp_path / "run", 2, *given, more)
    expected = np.load(problem)["start"] if start == "own" else local.mean(axis=0)
    np.testing.assert_allclose(found, np.tile(expected, (N, 1)), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("optimizer.momentum=0.5", "optimizer.momentum=0.5 mixes"),
        ("optimizer.name=ema_momentum optimizer.momentum=0.9", "optimizer.momentum=0.9 mixes"),
        ("optimizer.name=adamw", "optimizer.name=adamw mixes"),
    ],
)
def test_scaffold_refuses_momentum(refused: Refused, given: str, words: str) -> None:
    line = refused("algorithm.name=scaffold", *given.split())
    assert words in line
    assert "set optimizer.name=sgd and optimizer.momentum=0" in line


# -- L2GD ----------------------------------------------------------------------------------------------


def coin(t: int) -> float:
    return float(seeds.uniforms(seeds.key(0, "l2gd coin", t), 1))


def dense_l2gd(problem: Path, p: float, lambda_: float, count: int, rounds: int) -> np.ndarray:
    dense = DenseClients(problem, ETA)
    for t in range(rounds):
        part = taking_part(t, count)
        mean = dense.x[part].mean(axis=0)
        for i in part:
            if coin(t) < p:
                theta = ETA * lambda_ / (N * p)
                dense.x[i] = (1 - theta) * dense.x[i] + theta * mean
            else:
                dense.x[i] = dense.x[i] - ETA / (N * (1 - p)) * dense.gradient(i, dense.x[i])
    return dense.x


@pytest.mark.parametrize(("p", "lambda_", "count"), [(0.4, 9.0, N), (0.7, 30.0, N), (0.4, 9.0, 3)])
def test_l2gd(
    pool: RankPool, problem: Path, tmp_path: Path, p: float, lambda_: float, count: int
) -> None:
    """With p = 0.7, pulls follow one another, and the mean is not sent again."""
    rounds = 12
    expected = dense_l2gd(problem, p, lambda_, count, rounds), ONES
    check_method(
        pool, problem, tmp_path, expected, "algorithm.name=l2gd", f"algorithm.p={p}",
        f"algorithm.lambda={lambda_}", f"participation.count={count}", f"run.rounds={rounds}",
    )  # fmt: skip


def test_l2gd_sends_a_mean_once(pool: RankPool, problem: Path, tmp_path: Path) -> None:
    """Only in the first of rounds that pull in a row."""
    given = run(problem, tmp_path, "algorithm.name=l2gd", "algorithm.p=0.7", "run.rounds=12")
    pool.run(2, train, given)
    sends = [row["bytes_sent"] > 0 for row in rows(tmp_path, "round")]
    pulls = [coin(t) < 0.7 for t in range(12)]
    assert sends == [
        now and not before for now, before in zip(pulls, [False, *pulls], strict=False)
    ]
    assert sum(sends) < sum(pulls)


def test_l2gd_at_its_ends(pool: RankPool, problem: Path, tmp_path: Path) -> None:
    """A lambda of n p / eta averages; 0 leaves every client alone."""
    p = 0.4
    last = max(t for t in range(12) if coin(t) < p)
    together = ["algorithm.name=l2gd", f"algorithm.p={p}", f"run.rounds={last + 1}"]
    x, _ = trained(
        pool, problem, tmp_path / "mean", 2, *together, f"algorithm.lambda={N * p / ETA}"
    )
    np.testing.assert_allclose(x, np.tile(x.mean(axis=0), (N, 1)), rtol=0, atol=1e-14)
    x, _ = trained(pool, problem, tmp_path / "alone", 2, *together, "algorithm.lambda=0")
    dense = DenseClients(problem, ETA / (N * (1 - p)))
    steps = sum(coin(t) >= p for t in range(last + 1))
    expected = [dense.local_work(i, dense.start, steps) for i in range(N)]
    np.testing.assert_allclose(x, expected, rtol=0, atol=1e-12)


def test_l2gd_averages_statistics_alike(pool: RankPool, images: Path, tmp_path: Path) -> None:
    """With theta = 1, models and buffers are alike after a pull."""
    p = 0.4
    last = max(t for t in range(8) if coin(t) < p)
    more = [
        "algorithm.name=l2gd", f"algorithm.p={p}", f"algorithm.lambda={5 * p / 0.2}",
        "model.norm=batch", f"run.rounds={last + 1}",
    ]  # fmt: skip
    for buffers in ("local", "averaged"):
        folder = tmp_path / buffers
        given = on_images(images, *more, f"algorithm.buffers={buffers}", f"run.dir={folder}")
        pool.run(2, train, given)
        statistics = columns_of(folder, "2.running_mean")
        assert (np.ptp(statistics, axis=0).max() < 1e-12) == (buffers == "averaged")


def test_l2gd_leaves_clients_that_do_not_take_part_alone() -> None:
    """Also where the mean of the others is not finite."""
    x_cd = torch.ones(4, 2, dtype=torch.float64)
    part_n = np.array([True, False, True, False])
    method: Any = SimpleNamespace(
        clients=SimpleNamespace(ids=(0, 1, 2, 3), x_cd=x_cd, b_cd=x_cd[:, :0], eta=lambda t: 0.1),
        context=SimpleNamespace(clients=4, all_take_part=False, taking_part=lambda t: part_n),
        exchange=SimpleNamespace(all_reduce=lambda shares, rows: torch.full((1, 2), torch.inf)),
        config=SimpleNamespace(lambda_=2.0, p=0.5),
        means={"mean": torch.zeros(1, 2, dtype=torch.float64)},
    )
    L2gd.pull(method, 0)
    assert x_cd.isinf().all(dim=1).tolist() == part_n.tolist()
    assert (x_cd[~part_n] == 1.0).all()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("algorithm.lambda=71 algorithm.p=1e-1", "lower lambda to 7 or less"),
        ("algorithm.lambda=36 optimizer.lr=0.1", "(n p) = 1.03 is above 1"),
        ("algorithm.p=0", "algorithm.p"),
        ("algorithm.p=1", "algorithm.p"),
        ("local.steps=2", "takes one local step a round; leave local.steps at its default"),
        ("local.epochs=1", "leave local.epochs at its default"),
    ],
)
def test_l2gd_refuses(refused: Refused, given: str, words: str) -> None:
    assert words in refused("algorithm.name=l2gd", *given.split())
