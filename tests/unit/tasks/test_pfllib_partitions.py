"""PFLlib's partitions against plain programs that draw from NumPy's global generator, as PFLlib does."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from cobo_dist.config import load_config
from cobo_dist.errors import ConfigError
from cobo_dist.lazy import torch
from cobo_dist.tasks.base import DataConfig
from cobo_dist.tasks.classification import DataTaskConfig
from cobo_dist.tasks.partitions import TrainingLabels
from cobo_dist.tasks.pfllib_partitions import (
    PfllibDirichletPartition,
    PfllibPartition,
    PfllibPathologicalPartition,
)

CIFAR = (
    Path(os.environ.get("COBO_DATA", Path(__file__).parents[4] / "shared/data")) / "cifar100.npz"
)
N, CLASSES, CLIENTS = 1200, 12, 6
LABELS = np.random.default_rng(7).integers(0, CLASSES, N)


def pathological(y: np.ndarray, n: int, each: int) -> list[list[int]]:
    """Hand out each class to the first clients that still want one, the last of them the rest."""
    classes, wanted = int(y.max()) + 1, {i: each for i in range(n)}
    least = int(min(10 / (1 - 0.75), len(y) / n / 2))
    clients: list[list[int]] = [[] for _ in range(n)]
    for label in range(classes):
        own = [k for k in range(len(y)) if y[k] == label]
        takers = [i for i in range(n) if wanted[i] > 0][: int(np.ceil(n / classes * each))]
        per = len(own) / len(takers)
        sizes = np.random.randint(max(per / 10, least / classes), per, len(takers) - 1).tolist()
        for i, size in zip(takers, [*sizes, len(own) - sum(sizes)], strict=True):
            clients[i] += own[:size]
            own = own[size:]
            wanted[i] -= 1
    return clients


def dirichlet(y: np.ndarray, n: int, alpha: float) -> list[list[int]]:
    """Draw shares of each class, of which clients with their part already get none; until all have enough."""
    least = int(min(10 / (1 - 0.75), len(y) / n / 2))
    clients: list[list[int]] = [[] for _ in range(n)]
    while min(map(len, clients)) < least:
        clients = [[] for _ in range(n)]
        for label in range(int(y.max()) + 1):
            own = np.where(y == label)[0]
            np.random.shuffle(own)
            drawn = np.random.dirichlet(np.repeat(alpha, n))
            shares = np.array(
                [p * (len(has) < len(y) / n) for p, has in zip(drawn, clients, strict=True)]
            )
            ends = (np.cumsum(shares / shares.sum()) * len(own)).astype(int)[:-1]
            for has, part in zip(clients, np.split(own, ends), strict=True):
                has += part.tolist()
    return clients


def expected(kind: str, y: np.ndarray, n: int, key: float) -> tuple[list[set[int]], list[set[int]]]:
    """Return each client's examples for training and for test."""
    np.random.seed(1)
    clients = pathological(y, n, int(key)) if kind == "pathological" else dirichlet(y, n, key)
    parts = [train_test_split(np.array(own), train_size=0.75, shuffle=True) for own in clients]
    return [set(train.tolist()) for train, _ in parts], [set(test.tolist()) for _, test in parts]


def section_of(kind: str, n: int, key: float) -> PfllibPartition:
    if kind == "pathological":
        return PfllibPathologicalPartition(clients=n, classes_per_client=int(key))
    return PfllibDirichletPartition(clients=n, alpha=key)


def found(section: PfllibPartition, y: np.ndarray) -> tuple[list[set[int]], list[set[int]]]:
    given = TrainingLabels(y, int(y.max()) + 1, "data")
    owners, tests = section.assign(given, 0), section.tests_of(given, 0.25, 0)
    assert tests is not None
    sets = [
        [set(np.flatnonzero((owners == i) & mask).tolist()) for i in range(section.clients)]
        for mask in (~tests, tests)
    ]
    return sets[0], sets[1]


CASES = [
    ("pathological", CLIENTS, 4), ("pathological", CLIENTS, 2), ("pathological", 4, 6),
    ("pathological", 7, 4), ("pathological", 6, 7), ("dirichlet", CLIENTS, 0.1), ("dirichlet", CLIENTS, 1.0),
    ("dirichlet", 20, 0.3),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "n", "key"), CASES)
def test_every_example_is_where_it_would_be(kind: str, n: int, key: float) -> None:
    assert found(section_of(kind, n, key), LABELS) == expected(kind, LABELS, n, key)


def test_the_generator_is_numpys_own_and_untouched() -> None:
    """The global one keeps its state, and another seed is another split."""
    np.random.seed(5)
    before = np.random.get_state()[1].tolist()
    one = found(section_of("dirichlet", CLIENTS, 1.0), LABELS)
    assert np.random.get_state()[1].tolist() == before
    other = PfllibDirichletPartition(clients=CLIENTS, alpha=1.0, seed=2)
    assert found(other, LABELS) != one


@pytest.mark.parametrize(
    ("n", "each", "clusters"),
    [
        (6, 4, [0, 0, 1, 1, 2, 2]),
        (4, 6, [0, 0, 1, 1]),
        (6, 2, [0, 1, 2, 3, 4, 5]),
        (7, 4, [0, 0, 0, 1, 1, 1, 2]),
        (6, 7, [0, 0, 0, 0, 1, 1]),
    ],
)
def test_clients_of_a_cluster_have_the_same_classes(n: int, each: int, clusters: list[int]) -> None:
    section = PfllibPathologicalPartition(clients=n, classes_per_client=each)
    assert section.clusters_among(n, CLASSES) == clusters
    owners = section.assign(TrainingLabels(LABELS, CLASSES, "data"), 0)
    has = [set(LABELS[owners == i].tolist()) for i in range(n)]
    same = [[one == other for other in has] for one in has]
    assert same == [[one == other for other in clusters] for one in clusters]
    assert section.graph_of(n, CLASSES).rows(range(n)).tolist() == np.array(same, float).tolist()


def load(path: Path, *more: str) -> DataTaskConfig:
    arguments = [
        "task.name=classification",
        "task.source.name=npz",
        f"task.source.file={path}",
        *more,
    ]
    config = load_config(None, [*arguments, "model.name=mlp"]).task
    assert isinstance(config, DataTaskConfig)
    return config


def test_a_task_has_these_examples_and_clusters(tmp_path: Path) -> None:
    """Training examples first, then those of the test set; validation is taken from training."""
    x = np.arange(N, dtype=np.float32)[:, None]
    path = tmp_path / "data.npz"
    np.savez(path, x_train=x[:1000], y_train=LABELS[:1000], x_test=x[1000:], y_test=LABELS[1000:])
    keys = [
        "task.merge_test=true", "task.partition.name=pfllib_pathological", "task.partition.clients=6",
        "task.partition.classes_per_client=4", "task.test_fraction=0.25",
    ]  # fmt: skip
    train, test = expected("pathological", LABELS, 6, 4)
    for fraction in (0.0, 0.1):
        config = load(path, *keys, f"task.validation_fraction={fraction}")
        loaded = config.load(DataConfig(), 0, torch.float32)
        assert list(loaded.clusters or ()) == [0, 0, 1, 1, 2, 2]
        assert [set(own.tolist()) for own in loaded.splits["test"]] == test
        both = zip(loaded.splits["train"], loaded.splits["validation"], strict=True)
        assert [set(own.tolist()) | set(other.tolist()) for own, other in both] == train
        count = sum(map(len, loaded.splits["validation"]))
        assert (count > 0) == (fraction > 0)


REFUSED = {
    "task.partition.name=pfllib_pathological": "set task.merge_test=true",
    "task.merge_test=true task.partition.name=pfllib_pathological task.partition.clients=3 "
    "task.partition.classes_per_client=3": "take 9 of 12 classes",
    "task.merge_test=true task.partition.name=pfllib_dirichlet task.partition.alpha=0.001": "raise alpha",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_what_pfllib_cannot_split_is_refused_in_one_line(arguments: str, tmp_path: Path) -> None:
    x = np.zeros((N, 1), dtype=np.float32)
    path = tmp_path / "data.npz"
    np.savez(path, x_train=x[:1000], y_train=LABELS[:1000], x_test=x[1000:], y_test=LABELS[1000:])
    with pytest.raises(ConfigError) as refusal:
        load(path, *arguments.split()).load(DataConfig(), 0, torch.float32)
    assert REFUSED[arguments] in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_source_without_a_test_set_has_nothing_to_merge(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x_train=np.zeros((N, 1)), y_train=LABELS)
    with pytest.raises(ConfigError, match="has no test set"):
        load(tmp_path / "data.npz", "task.merge_test=true").load(DataConfig(), 0, torch.float32)


def test_natural_clients_of_test_examples_are_needed(tmp_path: Path) -> None:
    x, client = np.zeros((N, 1), dtype=np.float32), np.arange(N) % 3
    arrays = {"x_train": x, "y_train": LABELS, "x_test": x, "y_test": LABELS, "client": client}
    keys = ["task.merge_test=true", "task.partition.name=by_column"]
    np.savez(tmp_path / "some.npz", **arrays)
    with pytest.raises(ConfigError, match="names no clients of test examples"):
        load(tmp_path / "some.npz", *keys).load(DataConfig(), 0, torch.float32)
    np.savez(tmp_path / "all.npz", **arrays, client_test=client)
    loaded = load(tmp_path / "all.npz", *keys).load(DataConfig(), 0, torch.float32)
    for i in range(3):
        own = torch.cat([loaded.splits[split][i] for split in loaded.splits])
        assert sorted(own.tolist()) == [k for k in range(2 * N) if (k % N) % 3 == i]


@pytest.mark.skipif(not CIFAR.is_file(), reason=f"needs {CIFAR}")
@pytest.mark.parametrize(("kind", "key"), [("pathological", 10), ("dirichlet", 0.1)])
def test_cifar_100_has_the_published_sizes(kind: str, key: float) -> None:
    """Ten pairs; and 2,607 to 3,359 images with 32 to 99 classes."""
    with np.load(CIFAR) as arrays:
        y = np.concatenate([arrays["y_train"], arrays["y_test"]]).astype(np.int64)
    section = section_of(kind, 20, key)
    train, test = found(section, y)
    assert (train, test) == expected(kind, y, 20, key)
    sizes = [len(one) + len(other) for one, other in zip(train, test, strict=True)]
    assert sum(sizes) == 60_000
    if kind == "pathological":
        assert sizes[:2] == [1816, 4184]
        assert section.clusters_among(20, 100) == [i // 2 for i in range(20)]
    else:
        assert (min(sizes), max(sizes)) == (2607, 3359)
        owners = section.assign(TrainingLabels(y, 100, "data"), 0)
        classes = [len(set(y[owners == i].tolist())) for i in range(20)]
        assert (min(classes), max(classes)) == (32, 99)
