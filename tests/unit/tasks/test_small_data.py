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


def test_clients_that_have_validation_data_keep_theirs(tmp_path: Path) -> None:
    config = load_config(None, clusters_of(tmp_path, (60, 5, 60), "[2,2,2]"))
    task = build_task(config.task, config.model, config.data, 0, torch.float32)
    assert isinstance(task, Classification)
    assert [len(own) for own in task.split_of["validation"]] == [6, 6, 0, 0, 6, 6]
    assert task.splits == ("test",)
