"""Partitions equal those of independent programs, fl-data-generator and Flower Datasets, for the same draws.

Our draws come from keys, theirs from NumPy's generators. So a test gives ours the draws that theirs makes.
Cuts between clients are rounded here, and rounded down there, so a few examples next to a cut may differ.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cobo_dist.tasks import label_partitions, partitions
from cobo_dist.tasks.partitions import PartitionSection, TrainingLabels, dirichlet

N, CLASSES, CLIENTS = 1200, 10, 8
LABELS = np.random.default_rng(3).integers(0, CLASSES, N)


def assign(partition: PartitionSection, labels: np.ndarray = LABELS, **given: Any) -> np.ndarray:
    return partition.assign(TrainingLabels(labels, int(labels.max()) + 1, "data", **given), 0)


def owners_of(parts: dict[int, np.ndarray], count: int = N) -> np.ndarray:
    """Return the client of each example, where each belongs to one."""
    owners = np.full(count, -1)
    for client, own in parts.items():
        owners[own] = client
    assert (owners >= 0).all()
    assert sum(map(len, parts.values())) == count
    return owners


def cells(owners: np.ndarray, labels: np.ndarray = LABELS) -> np.ndarray:
    """Return each client's number of examples with each label."""
    counts = np.zeros((owners.max() + 1, labels.max() + 1), dtype=int)
    np.add.at(counts, (owners, labels), 1)
    return counts


# -- fl-data-generator -------------------------------------------------------------------------------


def test_iid_has_their_sizes() -> None:
    oracle = pytest.importorskip("fl_data_generator")
    for count in (N, 1201, 1207):
        labels = np.arange(count) % CLASSES
        theirs = sorted(map(len, oracle.iid_partition(labels, CLIENTS, seed=0).values()))
        ours = assign(partitions.IidPartition(clients=CLIENTS), labels)
        assert sorted(np.bincount(ours).tolist()) == theirs


@pytest.mark.parametrize("alpha", [0.1, 0.5, 5.0])
def test_dirichlet_equals_theirs(alpha: float, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = pytest.importorskip("fl_data_generator")
    theirs = owners_of(oracle.dirichlet_partition(LABELS, CLIENTS, alpha, seed=5, min_size=0))
    rng, orders, shares = np.random.default_rng(5), [], []
    for label in range(CLASSES):
        orders.append(np.flatnonzero(label == LABELS))
        rng.shuffle(orders[-1])
        shares.append(rng.dirichlet(np.full(CLIENTS, alpha)))
    drawn = iter(shares)
    monkeypatch.setattr(label_partitions, "dirichlet", lambda *_: next(drawn))
    monkeypatch.setattr(label_partitions, "shuffled", lambda *given: orders[given[-1]])
    section = label_partitions.DirichletPartition(
        clients=CLIENTS, alpha=alpha, min_size=1, balanced=False
    )
    assert np.bincount(theirs, minlength=CLIENTS).min() >= 1, "or ours would draw again"
    ours = assign(section)
    assert np.abs(cells(ours) - cells(theirs)).max() <= 1
    assert (ours != theirs).sum() <= CLASSES * (CLIENTS - 1) / 2 + CLASSES


def test_quantity_equals_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = pytest.importorskip("fl_data_generator")
    theirs = owners_of(oracle.quantity_skew_partition(LABELS, CLIENTS, 0.7, seed=2))
    rng = np.random.default_rng(2)
    rng.permutation(N)
    shares = rng.dirichlet(np.full(CLIENTS, 0.7))
    monkeypatch.setattr(partitions, "dirichlet", lambda *_: shares)
    ours = assign(partitions.QuantityPartition(clients=CLIENTS, alpha=0.7, min_size=1))
    assert np.abs(np.bincount(ours) - np.bincount(theirs)).max() <= 1
    assert np.ptp(np.bincount(ours)) > N / CLIENTS, "the sizes are unequal"


@pytest.mark.parametrize(("clients", "each"), [(10, 2), (20, 3), (5, 2), (8, 5)])
def test_pathological_has_their_classes_and_sizes(clients: int, each: int) -> None:
    """Equally many classes a client, classes taken evenly, and a class split evenly over its takers."""
    oracle = pytest.importorskip("fl_data_generator")
    labels = np.arange(N) % CLASSES
    section = label_partitions.PathologicalPartition(clients=clients, classes_per_client=each)
    found = {}
    for name, owners in (
        ("theirs", owners_of(oracle.pathological_partition(labels, clients, each, seed=1))),
        ("ours", assign(section, labels)),
    ):
        counts = cells(owners, labels)
        found[name] = (
            (counts > 0).sum(axis=1).tolist(), sorted((counts > 0).sum(axis=0).tolist()),
            sorted(counts[counts > 0].tolist()),
        )  # fmt: skip
    assert found["ours"] == found["theirs"]


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_our_own_draws_have_the_statistics_of_theirs(alpha: float) -> None:
    """Spread of sizes, and how unevenly a client has the classes: means over 40 seeds."""
    oracle = pytest.importorskip("fl_data_generator")
    section = label_partitions.DirichletPartition(
        clients=CLIENTS, alpha=alpha, min_size=1, balanced=False
    )
    spread: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    for seed in range(40):
        data = TrainingLabels(LABELS, CLASSES, "data")
        theirs = oracle.dirichlet_partition(LABELS, CLIENTS, alpha, seed=seed, min_size=1)
        for name, owners in (("ours", section.assign(data, seed)), ("theirs", owners_of(theirs))):
            counts = cells(owners)
            shares = counts / counts.sum(axis=1, keepdims=True)
            spread[name].append(
                (counts.sum(axis=1).std(), float(np.square(shares).sum(axis=1).mean()))
            )
    ours, theirs = (np.mean(spread[name], axis=0) for name in ("ours", "theirs"))
    assert ours == pytest.approx(theirs, rel=0.12)


# -- Flower Datasets -----------------------------------------------------------------------------------


def flower(partitioner: str, columns: dict[str, Any], **keys: Any) -> np.ndarray:
    """Return the owners by a partitioner of Flower Datasets, as it numbers its partitions."""
    flower = pytest.importorskip("flwr_datasets.partitioner")
    datasets = pytest.importorskip("datasets")
    made = getattr(flower, partitioner)(**keys)
    made.dataset = datasets.Dataset.from_dict({**columns, "row": np.arange(N)})
    parts = {i: np.array(made.load_partition(i)["row"]) for i in range(made.num_partitions)}
    return owners_of(parts)


def test_natural_clients_equal_flowers() -> None:
    column = np.random.default_rng(1).permutation(np.arange(N) % 7).astype(str)
    theirs = flower("NaturalIdPartitioner", {"client": column}, partition_by="client")
    assert np.array_equal(assign(partitions.ByColumnPartition(), client=column), theirs)


def test_shards_equal_flowers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same shards of examples sorted by label, dealt alike."""
    theirs = flower(
        "ShardPartitioner", {"label": LABELS}, num_partitions=CLIENTS, partition_by="label",
        num_shards_per_partition=3, seed=4,
    )  # fmt: skip
    shards = CLIENTS * 3
    dealt = np.empty(shards, dtype=np.int64)
    dealt[np.random.default_rng(4).permutation(shards)] = np.arange(shards) // 3
    order = {"shards": np.arange(N), "shards dealt": dealt}
    monkeypatch.setattr(label_partitions, "shuffled", lambda _, purpose, *__: order[purpose])
    ours = assign(label_partitions.ShardsPartition(clients=CLIENTS, shards_per_client=3))
    assert np.array_equal(cells(ours), cells(theirs))
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("alpha", [0.3, 2.0])
def test_balanced_dirichlet_equals_flowers(alpha: float, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = flower(
        "DirichletPartitioner", {"label": LABELS}, num_partitions=CLIENTS, partition_by="label",
        alpha=alpha, min_partition_size=0, self_balancing=True, seed=6, shuffle=False,
    )  # fmt: skip
    rng = np.random.default_rng(6)
    monkeypatch.setattr(
        label_partitions, "dirichlet", lambda *_: rng.dirichlet(np.full(CLIENTS, alpha))
    )
    monkeypatch.setattr(label_partitions, "shuffled", lambda *given: given[2])
    section = label_partitions.DirichletPartition(
        clients=CLIENTS, alpha=alpha, min_size=1, balanced=True
    )
    difference = np.abs(cells(assign(section)) - cells(theirs))
    assert difference.max() <= 1


def test_the_oracles_shares_are_drawn_alike() -> None:
    """Our Dirichlet draws and NumPy's have the same quantiles."""
    ours = np.concatenate([dirichlet(0.4, CLIENTS, key) for key in range(1500)])
    theirs = np.random.default_rng(0).dirichlet(np.full(CLIENTS, 0.4), 1500).ravel()
    levels = np.linspace(0.05, 0.95, 10)
    assert np.quantile(ours, levels) == pytest.approx(np.quantile(theirs, levels), abs=0.015)
