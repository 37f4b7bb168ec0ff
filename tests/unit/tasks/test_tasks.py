"""Tasks: splits that never overlap, labels that differ by cluster, Example 2's closed forms."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from cobo_dist.tasks.base import DataConfig
from cobo_dist.tasks.digits import DigitsConfig
from cobo_dist.tasks.labeled import Classification
from cobo_dist.tasks.models import MlpConfig, build_model
from cobo_dist.tasks.quadratic import Quadratic, QuadraticConfig
from cobo_dist.tasks.sources import handwritten_digits

CPU = torch.device("cpu")


def digits(seed: int = 0, **config: object) -> Classification:
    return Classification(DigitsConfig(**config), MlpConfig(), DataConfig(), seed, torch.float32)


@pytest.mark.parametrize(
    "config", [{}, {"clusters": 3, "clients_per_cluster": 5}, {"test_size": 97}]
)
def test_no_image_is_in_two_splits_or_clients(config: dict[str, int]) -> None:
    task = digits(**config)
    own = [*task.split_of["train"], *task.split_of["validation"], task.split_of["test"][0]]
    for a, b in combinations(own, 2):
        assert not set(a.tolist()) & set(b.tolist())
    used = torch.cat(own)
    assert len(used) > 1797 - task.clients, "nothing is left over but what cannot be shared out"
    assert all(torch.equal(test, task.split_of["test"][0]) for test in task.split_of["test"])
    sizes = {len(numbers) for numbers in task.split_of["train"]}
    assert len(sizes) == 1


def test_more_clients_than_images_draw_their_own() -> None:
    """2,000 clients of 12 images each: all from outside the test pool, none twice to a client."""
    task = digits(clusters=200, clients_per_cluster=10, images_per_client=12)
    pool = set(range(1797)) - set(task.split_of["test"][0].tolist())
    drawn = set()
    for train, held_out in zip(task.split_of["train"], task.split_of["validation"], strict=True):
        own = [*train.tolist(), *held_out.tolist()]
        assert (len(train), len(own), len(set(own))) == (10, 12, 12)
        assert set(own) <= pool
        drawn |= set(own)
    assert drawn == pool
    assert set(task.split_of["train"][0].tolist()) != set(task.split_of["train"][1].tolist())
    few = digits(clusters=2, images_per_client=12)
    assert torch.equal(few.split_of["train"][3], task.split_of["train"][3]), "a client's own draw"


def test_the_digits_are_those_of_scikit_learn() -> None:
    for ours, theirs in zip(handwritten_digits(), load_digits(return_X_y=True), strict=True):
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours, theirs)


def test_the_quickstart_has_8_clients_in_4_clusters() -> None:
    task = digits()
    assert task.clients == 8
    assert task.clusters == (0, 0, 1, 1, 2, 2, 3, 3)
    assert (
        len(task.split_of["train"][0]),
        len(task.split_of["validation"][0]),
        len(task.split_of["test"][0]),
    ) == (130, 32, 500)


def test_clusters_share_labels_inside_and_permute_them_across() -> None:
    task = digits()
    maps = task.examples.labels_of
    for i, j in combinations(range(8), 2):
        same = torch.equal(maps[i], maps[j])
        assert same == (task.clusters[i] == task.clusters[j])
    assert all(sorted(row.tolist()) == list(range(10)) for row in maps)
    source = task.training([5, 0], CPU)
    for stream in ("local", "midpoint"):
        inputs, targets = source.batch(3, stream)
        assert inputs.shape == (2, 32, 64)
        numbers = source.streams[stream].batch(3)
        assert torch.equal(targets[0], maps[5][task.examples.targets[numbers[0]]])
    _, few = source.batch(3, "local", torch.tensor([1]))
    assert torch.equal(few[0], source.batch(3, "local")[1][1])


def test_the_seed_decides_split_labels_and_start() -> None:
    again, other = digits(), digits(seed=1)
    assert again.fingerprint() == digits().fingerprint() != other.fingerprint()
    assert not torch.equal(again.split_of["test"][0], other.split_of["test"][0])
    start = [
        torch.cat([p.flatten() for p in task.model().parameters()])
        for task in (again, digits(), other)
    ]
    assert torch.equal(start[0], start[1])
    assert not torch.equal(start[0], start[2])


def test_models_have_the_given_widths_and_start_within_bounds() -> None:
    model = build_model(MlpConfig(hidden=(64, 64)), torch.Size([64]), 10, seed=0)
    assert sum(p.numel() for p in model.parameters()) == 64 * 64 + 64 + 64 * 64 + 64 + 640 + 10
    first = model[1].weight.detach()
    assert 0.9 < float(first.abs().max()) / (6 / 64) ** 0.5 <= 1.0
    assert float(model[1].bias.detach().abs().max()) == 0.0


def write(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_quadratic_gives_example_2(tmp_path: Path) -> None:
    """f_i(x) = a_i/2 ||x - mu_i||^2: loss, gradient, and Theorem 1's two quantities by hand."""
    file = write(
        tmp_path / "p.npz",
        centers=np.array([[0.0, 0.0], [0.0, 0.0], [4.0, 0.0]]),
        curvature=np.array([1.0, 3.0, 2.0]),
        start=np.array([1.0, 1.0]),
    )
    task = Quadratic(QuadraticConfig(file=str(file)), 0, torch.float64, 0)
    assert task.clusters[0] == task.clusters[1] != task.clusters[2]
    ((_, batch),) = task.evaluation(2, "test", CPU)
    assert task.loss(task.model(), *batch).item() == pytest.approx(0.5 * 2 * (9 + 1))
    x = np.array([[1.0, 0.0], [0.0, 2.0], [4.0, 1.0]])
    found = task.diagnose(x, r=1)
    assert found["consensus_distance"] == pytest.approx(1 + 4), "one pair: ||(1, -2)||^2"
    assert found["gradient_norm"] == pytest.approx((1 + 36 + 4) / 3)


def test_quadratic_noise_is_independent_and_has_its_deviation(tmp_path: Path) -> None:
    file = write(
        tmp_path / "p.npz", centers=np.zeros((3, 4000)), curvature=np.ones(3), start=np.zeros(4000)
    )
    task = Quadratic(QuadraticConfig(file=str(file), noise=0.3), 0, torch.float64, 0)
    source = task.training([1, 2], CPU)
    noises = [
        source.batch(t, s)[2][row] for t in (0, 1) for s in ("local", "midpoint") for row in (0, 1)
    ]
    for noise in noises:
        assert float(noise.std()) == pytest.approx(0.3, rel=0.05)
    for a, b in combinations(noises, 2):
        assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.08
    alone = task.training([2], CPU).batch(1, "local")[2][0]
    assert torch.equal(alone, source.batch(1, "local")[2][1])


def test_clusters_are_given_or_from_equal_centers_or_unknown(tmp_path: Path) -> None:
    base = {"curvature": np.ones(3), "start": np.zeros(2)}
    apart = np.arange(6.0).reshape(3, 2)

    def clusters(**arrays: np.ndarray) -> tuple[int, ...] | None:
        file = write(tmp_path / "p.npz", **base, **arrays)
        return Quadratic(QuadraticConfig(file=str(file)), 0, torch.float64, 0).clusters

    assert clusters(centers=apart) is None
    assert clusters(centers=apart, clusters=np.array([0, 1, 1])) == (0, 1, 1)
    assert clusters(centers=apart[[0, 1, 0]]) == (0, 1, 0)
