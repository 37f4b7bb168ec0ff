"""Small and unusual data: what is left out, who lacks what, and remedies that help when they are applied."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from cobo_dist.comm.startup.launch_env import Launch
from cobo_dist.config import load_config
from cobo_dist.tasks.labeled import Classification
from cobo_dist.tasks.registry import build_task
from cobo_dist.training.preparation import prepare

ALONE = Launch("python", 0, 1, 0, 1, "127.0.0.1", 0)
VALIDATED = "run.eval_splits=[validation,test]"


def images_of(path: Path, counts: tuple[int, ...]) -> str:
    """Write `counts` training images of the classes 0, 1, ... and four test images of each."""
    train = np.repeat(np.arange(len(counts)), counts)
    test = np.repeat(np.arange(len(counts)), 4)
    rng = np.random.default_rng(0)
    pixels = {
        f"x_{name}": rng.integers(0, 255, size=(len(labels), 8, 8, 1)).astype(np.uint8)
        for name, labels in (("train", train), ("test", test))
    }
    np.savez(path, **pixels, y_train=train, y_test=test)
    return f"data.file={path}"


def refusal_of(*settings: str) -> str:
    return prepare(load_config(None, list(settings)), ALONE, with_folder=False).refusal or ""


def clusters_of(tmp_path: Path, counts: tuple[int, ...], sizes: str) -> list[str]:
    file = images_of(tmp_path / "images.npz", counts)
    return ["task.name=cross_device", "model.name=cnn", file, f"task.cluster_sizes={sizes}"]


def test_a_cluster_without_validation_images_is_named_with_a_fraction_that_helps(
    tmp_path: Path,
) -> None:
    settings = clusters_of(tmp_path, (60, 5, 60), "[2,2,2]")
    refusal = refusal_of(*settings, VALIDATED)
    assert "client 2 of cluster 1" in refusal
    assert "0.1 (task.validation_fraction) of 5 examples" in refusal
    assert "2 of 6 clients" in refusal
    (remedy,) = re.findall(r"task\.validation_fraction=\S+?(?=,)", refusal)
    assert refusal_of(*settings, VALIDATED, remedy) == ""
    assert refusal_of(*settings, "run.eval_splits=[test]") == "", "the other remedy"
    again = refusal_of(*settings, "algorithm.name=validation_based")
    assert "client 2 of cluster 1" in again
    assert refusal_of(*settings, "algorithm.name=validation_based", remedy) == ""


def test_where_no_fraction_helps_none_is_advised(tmp_path: Path) -> None:
    refusal = refusal_of(*clusters_of(tmp_path, (60, 3), "[2,3]"), VALIDATED)
    assert "no fraction leaves cluster 1 enough to train on" in refusal
    assert "fewer clients" in refusal
    assert refusal_of(
        *clusters_of(tmp_path, (60, 3), "[2,2]"), VALIDATED, "task.validation_fraction=0.34"
    ) == "", "fewer clients help"  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        ["task.name=digits", "task.images_per_client=4"],
        ["task.name=digits", "task.images_per_client=49", "task.validation_fraction=0.02"],
        ["task.name=digits", "task.validation_fraction=0"],
    ],
)
def test_the_advised_fraction_helps(settings: list[str]) -> None:
    refusal = refusal_of(*settings, VALIDATED)
    (remedy,) = re.findall(r"set (task\.validation_fraction=\S+?)(?=,|$)", refusal)
    assert refusal_of(*settings, VALIDATED, remedy) == ""


def natural(path: Path, sizes: tuple[int, ...]) -> list[str]:
    """Write an npz whose clients have so many examples of two classes."""
    client, count = np.repeat(np.arange(len(sizes)), sizes), sum(sizes)
    np.savez(path, x_train=np.ones((count, 2)), y_train=np.arange(count) % 2, client=client)
    return ["task.name=classification", "task.source.name=npz", f"task.source.file={path}"]


@pytest.mark.parametrize(
    ("sizes", "more", "words", "helps"),
    [
        ((9, 1, 9), [], "drop the 1 client with fewer than 3 examples", None),
        ((9, 1, 2, 1), [], "drop the 3 clients with fewer than 3 examples", None),
        ((9, 2, 9), [], "drop the 1 client with fewer than 3 examples", "task.validation_fraction=0"),
        ((9, 1), ["task.validation_fraction=0"], "fewer than 2 examples", None),
    ],
)  # fmt: skip
def test_validation_data_are_given_up_only_where_that_suffices(
    tmp_path: Path, sizes: tuple[int, ...], more: list[str], words: str, helps: str | None
) -> None:
    settings = [*natural(tmp_path / "t.npz", sizes), "task.partition.name=by_column", *more]
    refusal = refusal_of(*settings)
    assert words in refusal
    assert ("or set task.validation_fraction=0" in refusal) == bool(helps)
    assert "other clients have too few" not in refusal
    assert helps is None or refusal_of(*settings, helps) == ""


@pytest.mark.parametrize(
    "settings",
    [
        ["task.partition.name=iid", "task.partition.clients=30"],
        ["task.partition.name=quantity", "task.partition.clients=30", "task.partition.min_size=1"],
        ["task.partition.name=dirichlet", "task.partition.clients=9", "task.partition.min_size=2"],
    ],
)
def test_the_advised_number_of_clients_helps(tmp_path: Path, settings: list[str]) -> None:
    """Each class has three test examples, so a client without a large share of one gets none."""
    labels, few = np.repeat(np.arange(4), 20), np.repeat(np.arange(4), 3)
    arrays = {"x_train": np.ones((80, 2)), "y_train": labels, "x_test": np.ones((12, 2))}
    np.savez(tmp_path / "t.npz", **arrays, y_test=few)
    source = ["task.name=classification", "task.source.name=npz"]
    settings = [*source, f"task.source.file={tmp_path / 't.npz'}", *settings]
    refusal = refusal_of(*settings)
    (number,) = re.findall(r"lower task.partition.clients to (\d+)", refusal)
    assert refusal_of(*settings, f"task.partition.clients={number}") == ""


def test_test_examples_of_a_client_go_by_its_name_alone(tmp_path: Path) -> None:
    arrays = {"x_train": np.ones((9, 2)), "y_train": np.arange(9) % 2, "client": np.arange(9) // 3}
    tests = {"x_test": np.ones((4, 2)), "y_test": np.arange(4) % 2, "client_test": np.zeros(4, int)}
    np.savez(tmp_path / "t.npz", **arrays, **tests)
    refusal = refusal_of(
        "task.name=classification", "task.source.name=npz", "task.partition.name=by_column",
        f"task.source.file={tmp_path / 't.npz'}",
    )  # fmt: skip
    assert "drop the 2 clients with no test examples" in refusal
    assert "by its share of each class" not in refusal


@pytest.mark.parametrize(
    ("settings", "offered"),
    [
        (["data.batch_size=1", "local.epochs=1", "local.drop_last=true"], False),
        (["data.batch_size=1"], False),
        (["data.batch_size=4", "local.epochs=1"], True),
    ],
)
def test_whole_batches_are_advised_only_where_they_help(
    tmp_path: Path, settings: list[str], offered: bool
) -> None:
    of_data = [*natural(tmp_path / "t.npz", (7, 8)), "task.partition.name=by_column"]
    settings = [*of_data, "model.norm=batch", *settings]
    refusal = refusal_of(*settings)
    assert "cannot train on a batch of one example" in refusal
    assert ("local.drop_last=true" in refusal) == offered
    assert not offered or refusal_of(*settings, "local.drop_last=true") == ""


def test_clients_that_have_validation_data_keep_theirs(tmp_path: Path) -> None:
    config = load_config(None, clusters_of(tmp_path, (60, 5, 60), "[2,2,2]"))
    task = build_task(config.task, config.model, config.data, 0, torch.float32)
    assert isinstance(task, Classification)
    assert [len(own) for own in task.split_of["validation"]] == [6, 6, 0, 0, 6, 6]
    assert task.splits == ("test",)
