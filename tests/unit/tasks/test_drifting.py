"""Clients that change cluster: their training, validation and test data, the truth, and saved label maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import write_quadratic
from vision_data import write_images

from cobo_dist.config import load_config
from cobo_dist.tasks.registry import build_task
from cobo_dist.tasks.supervised import Supervised

CPU = torch.device("cpu")
DRIFT = "task.drift=[{round: 5, clients: [0], cluster: 1}, {round: 9, clients: [0], cluster: 0}]"
SMALL = ["model.name=mlp", "model.hidden=[4]", "data.augment=false", "data.batch_size=6"]
CLASSIFICATION = ["task.name=classification", "task.partition.clients=4", *SMALL]
TASKS = {
    "digits": ["task.test_size=80", *SMALL],
    "cross_silo": ["task.name=cross_silo", "task.clusters=2", *SMALL],
    "cross_device": ["task.name=cross_device", "task.cluster_sizes=[2, 3]", *SMALL],
    "labels": [*CLASSIFICATION, "task.change.name=labels"],
    "shuffled": [*CLASSIFICATION, "task.change.name=labels", "task.order=shuffled", "data.seed=2"],
    "rotation": [*CLASSIFICATION, "task.change.name=rotation", "task.change.degrees=180"],
    "noise": [*CLASSIFICATION, "task.change.name=noise"],
    "regression": [
        "task.name=regression", "task.partition.clients=4", "task.change.name=scale", *SMALL
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "images.npz", size=8)


def task_of(name: str, images: Path, *more: str) -> Supervised:
    given = TASKS[name]
    if name == "rotation":
        more = ("task.source.name=npz", f"task.source.file={_own_images(images)}", *more)
    data = [f"data.file={images}"] if name.startswith("cross") else []
    config = load_config(None, [*given, *data, *more])
    task: Any = build_task(config.task, config.model, config.data, 0, torch.float32)
    return task


def _own_images(images: Path) -> Path:
    path = images.with_name("own.npz")
    if not path.exists():
        arrays = np.load(images)
        np.savez(path, x_train=arrays["x_train"], y_train=arrays["y_train"])
    return path


def seen(task: Supervised, split: str, client: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a client's inputs and targets of a split as evaluations have them."""
    batches = [batch for _, batch in task.evaluation(client, split, CPU)]
    return torch.cat([batch[0] for batch in batches]), torch.cat([batch[1] for batch in batches])


def everything(task: Supervised) -> list[torch.Tensor]:
    """Return what all clients train on, select by and are tested on, in the round under way."""
    every = range(task.clients)
    batches = task.training(every, CPU).batch(3, "midpoint")
    held_out = task.validation(every, CPU, 5).batch(3, "validation")
    tests = [part for i in every for part in seen(task, "test", i)]
    return [*batches, *held_out, *tests]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, one, other))


def a_move(task: Supervised) -> str:
    """Return `task.drift` that moves client 0 to the cluster of the first client that is in another one."""
    assert task.clusters is not None
    first, other = task.clusters[0], next(k for k in task.clusters if k != task.clusters[0])
    return (
        f"task.drift=[{{round: 5, clients: [0], cluster: {other}}}, "
        f"{{round: 9, clients: [0], cluster: {first}}}]"
    )


@pytest.mark.parametrize("name", TASKS)
def test_before_the_move_and_after_the_way_back_all_is_as_without_drift(
    images: Path, name: str
) -> None:
    plain = task_of(name, images)
    task = task_of(name, images, a_move(plain))
    expected = everything(plain)
    for r, same in (
        (0, True),
        (4, True),
        (5, False),
        (8, False),
        (9, True),
        (20, True),
        (5, False),
    ):
        task.begin_round(r)
        assert equal(everything(task), expected) == same, r


@pytest.mark.parametrize("name", TASKS)
def test_a_client_that_moves_sees_its_new_cluster_in_all_splits(images: Path, name: str) -> None:
    """Of the clients of the new cluster there is one with the same inputs or the same labels of them."""
    plain = task_of(name, images)
    task = task_of(name, images, a_move(plain))
    source, held_out = task.training([0], CPU), task.validation([0], CPU, 6)
    before = [source.batch(2, "local"), held_out.batch(2, "validation")]
    others = [everything_of(task, client) for client in range(1, task.clients)]
    sizes = list(task.train_sizes())
    task.begin_round(5)
    after = [source.batch(2, "local"), held_out.batch(2, "validation")]
    for one, other in zip(before, after, strict=True):
        assert not all(map(torch.equal, one, other))
        if name in ("digits", "cross_silo", "labels", "shuffled"):
            assert torch.equal(one[0], other[0]), "the same images"
        if name in ("rotation", "noise", "regression"):
            assert torch.equal(one[1], other[1]), "the same targets"
    assert list(task.train_sizes()) == sizes
    now = [everything_of(task, client) for client in range(1, task.clients)]
    assert all(map(equal, others, now)), "nobody else's data move"


def everything_of(task: Supervised, client: int) -> list[torch.Tensor]:
    return [*task.training([client], CPU).batch(3, "local"), *seen(task, "test", client)]


@pytest.mark.parametrize("name", ["digits", "cross_silo", "labels", "shuffled"])
def test_labels_are_those_of_the_new_cluster(images: Path, name: str) -> None:
    plain = task_of(name, images)
    task = task_of(name, images, a_move(plain))
    task.begin_round(5)
    clusters = task.truth.clusters_at(5)
    assert clusters is not None
    donor = next(i for i in range(1, task.clients) if clusters[i] == clusters[0])
    maps = task.model_facts()["label_map_of"]
    assert maps[0] == maps[donor]
    indices = task.split_of["train"][0]
    assert torch.equal(task.labels_of(0, indices), task.labels_of(donor, indices))
    assert not torch.equal(task.labels_of(0, indices), plain.labels_of(0, indices))


def test_cross_device_draws_as_many_images_of_the_other_classes(images: Path) -> None:
    plain = task_of("cross_device", images)
    task = task_of("cross_device", images, a_move(plain))
    task.begin_round(5)
    for split in ("train", "validation", "test"):
        own, mine = task.current.of(split)[0], plain.split_of[split]
        classes = set(plain.labels[own].tolist())
        assert classes == set(plain.labels[torch.cat([mine[2], mine[3], mine[4]])].tolist())
    own = task.current.of("train")[0]
    assert len(own) == len(set(own.tolist())) == task.train_sizes()[0]


def test_rotated_images_are_those_that_the_cluster_sees(images: Path) -> None:
    """Clusters are turned by 0 and 90 degrees; client 0 goes from the first to the second."""
    plain = task_of("rotation", images)
    task = task_of("rotation", images, a_move(plain))
    before, _ = seen(task, "test", 0)
    task.begin_round(5)
    after, _ = seen(task, "test", 0)
    assert torch.equal(after, torch.rot90(before, 1, (-2, -1)))


@pytest.mark.parametrize("name", TASKS)
def test_the_truth_follows(images: Path, name: str) -> None:
    plain = task_of(name, images)
    task = task_of(name, images, a_move(plain))
    assert plain.clusters is not None
    assert task.truth.switches == (5, 9)
    for r in (0, 4, 9, 12):
        assert task.truth.clusters_at(r) == plain.clusters
    moved = np.array(task.truth.clusters_at(5))
    assert (moved[1:] == np.array(plain.clusters)[1:]).all()
    assert moved[0] != plain.clusters[0]
    assert "2 changes of cluster, before rounds 5, 9" in task.describe()["drift"]


def test_a_right_graph_follows_too(images: Path) -> None:
    """Eight clients, four clusters in two groups. Client 0 goes to cluster 2, of the other group."""
    given = ["task.partition.clients=8", "task.change.name=hierarchy"]
    config = load_config(
        None,
        [*CLASSIFICATION, *given, "task.drift=[{round: 3, clients: [0], cluster: 2}]"],
    )
    task: Any = build_task(config.task, config.model, config.data, 0, torch.float32)
    before, after = (task.truth.graph_at(r).rows(range(8)) for r in (2, 3))
    assert before[0].tolist() == [1, 1, 0.5, 0.5, 0, 0, 0, 0]
    assert after[0].tolist() == [1, 0, 0, 0, 1, 1, 0.5, 0.5]
    assert np.array_equal(after, after.T)
    assert np.array_equal(after[1:, 1:], before[1:, 1:])


def test_clusters_of_the_partition_stay(images: Path) -> None:
    """Two clusters of classes times two of labels: client 0 changes its labels, not its classes."""
    given = [
        "task.partition.name=disjoint_classes", "task.partition.cluster_sizes=[2, 2]",
        "task.change.name=labels", "task.change.cluster_sizes=[1, 3]",
    ]  # fmt: skip
    config = load_config(
        None,
        ["task.name=classification", *SMALL, *given, "task.drift=[{round: 2, clients: [0]}]"],
    )
    task: Any = build_task(config.task, config.model, config.data, 0, torch.float32)
    before, after = (np.array(task.truth.clusters_at(r)) for r in (1, 2))
    assert (before[0] == before).tolist() == [True, False, False, False]
    assert (after[0] == after).tolist() == [True, True, False, False]


def test_the_center_of_a_quadratic_jumps(tmp_path: Path) -> None:
    """Clients 0, 3, 6 share a center, and 1, 4. Client 0 moves to the cluster of 1, and has its center."""
    path = write_quadratic(tmp_path / "problem.npz")
    np.savez(path, **np.load(path), clusters=np.arange(7) % 3)
    config = load_config(
        None,
        [
            "task.name=quadratic",
            f"task.file={path}",
            "task.drift={round: 4, clients: [0], cluster: 1}",
        ],
    )
    task: Any = build_task(config.task, config.model, config.data, 0, torch.float64)
    source, centers = task.training([0, 1], CPU), task.centers_nd
    for r, cluster in ((3, 0), (4, 1), (3, 0)):
        task.begin_round(r)
        for i, expected in ((0, cluster), (1, 1)):
            assert np.array_equal(source.batch(7, "local")[0][i].numpy(), centers[expected])
        ((_, batch),) = task.evaluation(0, "test", CPU)
        assert np.array_equal(batch[0].numpy(), centers[cluster])
        assert task.truth.clusters_at(r)[0] == cluster
    at_new = centers.copy()
    at_new[0] = centers[1]
    assert (
        task.diagnose(at_new, 4)["gradient_norm"] == 0.0 < task.diagnose(at_new, 3)["gradient_norm"]
    )


def test_a_quadratic_without_clusters_cannot_drift(tmp_path: Path) -> None:
    from cobo_dist.errors import ConfigError

    path = write_quadratic(tmp_path / "problem.npz", clients=3)
    config = load_config(
        None, ["task.name=quadratic", f"task.file={path}", "task.drift=[{round: 4, clients: [0]}]"]
    )
    with pytest.raises(ConfigError, match="no two clients share a centre; add the array clusters"):
        build_task(config.task, config.model, config.data, 0, torch.float64)
