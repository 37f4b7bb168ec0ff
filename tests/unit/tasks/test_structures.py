"""Structures beyond clusters: which weights would be right, and where a run keeps and shows them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from problems import QUIET

from cobo_dist.cli.prepare import main as prepare
from cobo_dist.cli.report import main as report
from cobo_dist.cli.train import main
from cobo_dist.config import load_config
from cobo_dist.errors import ConfigError
from cobo_dist.maths.true_graph import TrueGraph, Truth
from cobo_dist.maths.weights import Weights
from cobo_dist.registry import BUILT_IN, register
from cobo_dist.storage.run_dir import RunDir
from cobo_dist.tasks.labeled import Classification
from cobo_dist.tasks.registry import build_task
from cobo_dist.tracking.weight_snapshots import WeightSnapshots

RING = [
    "task.partition.name=ring",
    "task.partition.clients=10",
    "task.partition.classes_per_client=3",
]
CONTINUUM = ["task.change.name=rotation", "task.change.by=clients"]
HIERARCHY = ["task.change.name=hierarchy"]


def task_of(*given: str) -> Classification:
    config = load_config(None, ["task.name=classification", *given])
    task = build_task(config.task, config.model, config.data, config.run.seed, torch.float32)
    assert isinstance(task, Classification)
    return task


def right(task: Classification) -> np.ndarray:
    assert task.true_graph is not None
    return task.true_graph.rows(range(task.clients))


def classes_of(task: Classification, client: int) -> set[int]:
    parts = [split[client] for split in task.split_of.values()]
    return set(task.examples.targets[torch.cat(parts)].tolist())


@pytest.mark.parametrize(
    ("clients", "each", "order"),
    [
        (10, 3, "clusters"),
        (10, 8, "clusters"),
        (4, 5, "clusters"),
        (15, 2, "clusters"),
        (10, 3, "shuffled"),
    ],
)
def test_the_weights_of_a_ring_are_the_shares_of_common_classes(
    clients: int, each: int, order: str
) -> None:
    """Also where long windows overlap on both sides, and where clients are numbered at random."""
    task = task_of(
        *RING, f"task.partition.clients={clients}", f"task.partition.classes_per_client={each}",
        f"task.order={order}",
    )  # fmt: skip
    own = [classes_of(task, client) for client in range(clients)]
    expected = [[len(one & other) / each for other in own] for one in own]
    assert np.allclose(right(task), expected)
    assert task.clusters is None


def test_the_weights_of_a_hierarchy_are_the_shares_of_labels_that_agree() -> None:
    """Exactly so within a group; random permutations of two groups agree on few labels by chance."""
    task = task_of(
        "task.partition.clients=12", *HIERARCHY, "task.change.clusters=6", "task.change.shared=0.3"
    )
    maps = task.examples.labels_of.numpy()
    agree = (maps[:, None] == maps[None, :]).mean(axis=2)
    found = right(task)
    assert task.clusters == tuple(i // 2 for i in range(12))
    assert set(np.unique(found).tolist()) == {np.float32(value) for value in (0.0, 0.3, 1.0)}
    assert np.allclose(found[:6, :6], agree[:6, :6])
    assert np.allclose(found[6:, 6:], agree[6:, 6:])
    assert (found[:6, 6:] == 0).all()
    assert agree[:6, 6:].mean() < 0.3
    assert (np.sort(maps, axis=1) == np.arange(10)).all()


def test_hierarchies_of_unequal_clusters() -> None:
    task = task_of(*HIERARCHY, "task.change.cluster_sizes=[3, 2, 2, 1]")
    assert task.clusters == (0, 0, 0, 1, 1, 2, 2, 3)
    assert right(task)[0].tolist() == [1, 1, 1, 0.5, 0.5, 0, 0, 0]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("groups=5", "task.change.groups=5 is more than the 4 clusters; lower it"),
        ("shared=0.99", "leaves 0 for 2 clusters of a group to rotate, of which 2 to 9 are needed; set "
         "task.change.shared=0.8"),
        ("shared=0.01", "leaves 10 for 2 clusters of a group to rotate, of which 2 to 9 are needed; set "
         "task.change.shared=0.1"),
        ("clusters=8 groups=1", "leaves 5 for 8 clusters of a group to rotate, of which 8 to 9 are needed; "
         "set task.change.shared=0.2"),
    ],
)  # fmt: skip
def test_hierarchies_that_do_not_fit_are_refused_with_a_remedy(keys: str, expected: str) -> None:
    given = [*HIERARCHY, *(f"task.change.{one}" for one in keys.split())]
    with pytest.raises(ConfigError) as caught:
        task_of(*given)
    message = str(caught.value)
    assert message.endswith(expected)
    if "set " in expected:
        assert task_of(*given, message.rpartition("set ")[2]).clusters is not None


def test_a_group_has_no_more_clusters_than_labels_can_tell_apart() -> None:
    wine = ["task.source.set=wine", *HIERARCHY]  # 3 labels
    with pytest.raises(ConfigError, match="groups=2 has 3 clusters in a group"):
        task_of(*wine, "task.change.clusters=6")
    assert task_of(*wine, "task.change.clusters=6", "task.change.groups=3").true_graph is not None


@pytest.mark.parametrize("n", [512, 513])
def test_many_clients_have_no_graph_in_the_file(tmp_path: Path, n: int) -> None:
    graph = TrueGraph.of(np.arange(n) / n, lambda one, other: np.abs(one - other) < 0.1)
    snapshots = WeightSnapshots(RunDir(tmp_path), Truth.constant(None, graph), ())
    snapshots.add(0, Weights(range(n), np.zeros(n), symmetric=True))
    with np.load(tmp_path / "W.npz") as stored:
        assert ("true_graph" in stored) == ("true_order" in stored) == (n == 512)


def test_the_weights_of_a_continuum_fall_with_the_distance() -> None:
    full = right(task_of(*CONTINUUM))  # 8 clients, 45 degrees from one to the next
    assert full[0].tolist() == [1, 0.75, 0.5, 0.25, 0, 0.25, 0.5, 0.75]
    half = right(task_of(*CONTINUUM, "task.change.degrees=-180"))
    assert half[0].tolist() == [1 - i / 8 for i in range(8)]
    noise = right(task_of("task.change.name=noise", "task.change.by=clients"))
    assert np.allclose(noise[0], 1 - np.arange(8) / 7)


@pytest.mark.parametrize(
    ("settings", "clusters"),
    [
        ([], (0,) * 8),
        (["task.change.name=labels", "task.change.cluster_sizes=[7, 1]"], (0,) * 7 + (1,)),
        (["task.change.name=labels", "task.change.cluster_sizes=[4, 3, 1]"], (0,) * 4 + (1,) * 3 + (2,)),
        (["task.change.name=labels", "task.change.clusters=8"], tuple(range(8))),
        (["task.partition.name=disjoint_classes", "task.partition.cluster_sizes=[1, 1, 1]"], (0, 1, 2)),
        (["task.partition.name=dirichlet"], None),
    ],
    ids=["iid", "one outlier", "unequal", "all different", "all different classes", "unknown"],
)  # fmt: skip
def test_clusters_alone_need_no_graph(
    settings: list[str], clusters: tuple[int, ...] | None
) -> None:
    task = task_of(*settings)
    assert task.clusters == clusters
    assert task.true_graph is None


def test_a_partition_and_a_change_together() -> None:
    """Alike are clients that are so in both ways; without a truth of the partition, in the change's."""
    task = task_of(*RING, "task.change.name=labels")
    ring = right(task_of(*RING))
    same = np.equal.outer(np.arange(10) // 5, np.arange(10) // 5)
    assert np.allclose(right(task), ring * same)
    unknown = task_of("task.partition.name=dirichlet", *CONTINUUM)
    assert np.array_equal(right(unknown), right(task_of(*CONTINUUM)))


@pytest.mark.parametrize("kind", ["partition", "change"])
def test_graphs_are_symmetric_and_agree_with_clusters(kind: str) -> None:
    """For all that are registered: weights in [0, 1], 1 within clusters; a graph where there are clusters."""
    for name, one in register.kinds[kind].items():
        if one.source != BUILT_IN:
            continue
        assert one.section is not None
        section = one.section()
        clients = len(section.cluster_sizes) * 2 if name == "disjoint_classes" else 8
        clusters, graph = section.clusters_of(clients), section.graph_of(clients, 10)
        assert (graph is not None) or (clusters is None), name
        if graph is not None:
            every = graph.rows(range(clients))
            assert np.array_equal(every, every.T), name
            assert (np.diag(every) == 1).all(), name
            assert every.min() >= 0, name
            assert every.max() <= 1, name
        if clusters is not None:
            same = np.equal.outer(clusters, clusters)
            assert np.array_equal(every == 1, same), name


def test_a_run_keeps_the_right_graph_and_reports_draw_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    settings = ["task.name=classification", *RING, "task.order=shuffled"]
    assert main([*QUIET, *settings, "run.rounds=30", "run.threads=1", f"run.dir={run}"]) == 0
    assert "correlation with the right graph" in capsys.readouterr().out
    task = task_of(*RING, "task.order=shuffled")
    with np.load(run / "W.npz") as stored:
        arrays = dict(stored)
    assert np.array_equal(arrays["true_graph"], right(task))
    order, off = arrays["true_order"], ~np.eye(10, dtype=bool)
    assert np.array_equal(right(task)[np.ix_(order, order)], right(task_of(*RING)))
    expected = np.corrcoef(arrays["weights"][-1][off], arrays["true_graph"][off])[0, 1]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["graph_correlation"] == pytest.approx(expected, abs=1e-6)
    assert summary["link_accuracy"] is None
    out = tmp_path / "report"
    assert report([str(run), "--out", str(out)]) == 0
    assert "graph correlation" in (out / "table.md").read_text()
    assert report([str(run), "--out", str(tmp_path / "again")]) == 0
    del arrays["true_graph"], arrays["true_order"]
    with_graph = Image.open(out / "weights.png").size
    np.savez(run / "W.npz", **arrays)
    assert report([str(run), "--out", str(tmp_path / "without")]) == 0
    assert with_graph[0] > Image.open(tmp_path / "without" / "weights.png").size[0], (
        "one panel more"
    )
    for broken in (
        {"true_graph": right(task)},
        {"true_graph": right(task), "true_order": order * 2},
    ):
        np.savez(run / "W.npz", **arrays, **broken)
        capsys.readouterr()
        assert report([str(run), "--out", str(tmp_path / "broken")]) == 2
        assert "`true_order` is no order of the clients" in capsys.readouterr().err


@pytest.mark.parametrize("settings", [HIERARCHY, ["task.change.name=labels"], RING])
def test_the_picture_has_the_right_weights_beside_the_labels(
    tmp_path: Path, settings: list[str]
) -> None:
    """Wider than high where the right weights can be said, as of clusters."""
    size = {}
    for name, given in (("with", settings), ("without", ["task.partition.name=dirichlet"])):
        assert (
            prepare(
                ["--picture", str(tmp_path / f"{name}.png"), "task.name=classification", *given]
            )
            == 0
        )
        size[name] = Image.open(tmp_path / f"{name}.png").size
    assert size["with"][0] > 1.6 * size["with"][1]
    assert size["without"][0] < 1.6 * size["without"][1]
