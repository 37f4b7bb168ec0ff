"""The vision tasks: files, splits that never overlap, labels, views, and the network."""

from __future__ import annotations

import hashlib
import pickle
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pool import RankPool
from problems import models, rows, train
from torch.nn import functional as F
from vision_data import cifar_root, write_images

from cobo_dist.cli.prepare import main as prepare
from cobo_dist.clients.client_batch import ClientBatch
from cobo_dist.config import load_config
from cobo_dist.errors import ConfigError
from cobo_dist.tasks.augmentation import Augmentation, dropout_keys, dropout_mask
from cobo_dist.tasks.images import load_images
from cobo_dist.tasks.labeled import Classification
from cobo_dist.tasks.registry import build_task

CPU = torch.device("cpu")
SMALL = ("model.width=4", "data.batch_size=8")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "images.npz")


def task_of(name: str, *settings: str) -> Classification:
    config = load_config(None, [f"task.name={name}", *SMALL, *settings])
    dtype = getattr(torch, config.run.dtype)
    task = build_task(config.task, config.model, config.data, config.run.seed, dtype)
    assert isinstance(task, Classification)
    return task


def clients_of(task: Classification, *settings: str, **how: object) -> ClientBatch:
    config = load_config(None, list(settings))
    more = {"dtype": torch.float32, "device": CPU} | how
    return ClientBatch(range(task.clients), task, config.optimizer, **more)


# -- splits and labels -------------------------------------------------------------------------------


def check_splits(task: Classification, share: bool) -> None:
    """No image is trained on by two clients that share images, nor in two splits of any client."""
    split = task.split_of
    for client in range(task.clients):
        parts = [set(split[name][client].tolist()) for name in ("train", "validation", "test")]
        assert sum(map(len, parts)) == len(set.union(*parts)), "a split repeats an image"
        for other in range(task.clients):
            kept = set(split["validation"][other].tolist()) | set(split["test"][other].tolist())
            assert not parts[0] & kept, "one client's training image is another's test image"
    for i, j in combinations(range(task.clients), 2):
        if not share or task.clusters[i] == task.clusters[j]:
            assert not set(split["train"][i].tolist()) & set(split["train"][j].tolist())


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["task.clusters=3", "task.clients_per_cluster=5", "task.data_fraction=0.37"],
        ["task.validation_fraction=0"],
    ],
)
def test_cross_silo_splits_are_disjoint_and_cover(images: Path, settings: list[str]) -> None:
    task = task_of("cross_silo", f"data.file={images}", *settings)
    check_splits(task, share=True)
    pools = {}
    for client, cluster in enumerate(task.clusters):
        pools.setdefault(cluster, set()).update(task.split_of["train"][client].tolist())
    assert len({frozenset(pool) for pool in pools.values()}) == 1, (
        "every cluster has the same images"
    )
    held_out = len(task.split_of["validation"][0])
    fraction = task.config.data_fraction
    assert len(pools[0]) == int(fraction * (400 - held_out))
    sizes = [len(numbers) for numbers in task.split_of["train"]]
    assert max(sizes) - min(sizes) <= 1
    assert task.split_of["test"][0].tolist() == list(range(400, 480))
    assert task.splits == (("validation", "test") if held_out else ("test",))


@pytest.mark.parametrize("seed", [0, 3])
def test_cross_device_splits_are_disjoint_by_class_and_by_client(images: Path, seed: int) -> None:
    sizes = [2, 3, 1, 4, 2]
    task = task_of(
        "cross_device", f"data.file={images}", f"task.cluster_sizes={sizes}", f"run.seed={seed}"
    )
    check_splits(task, share=False)
    assert [task.clusters.count(k) for k in range(5)] == sizes
    for split in ("train", "validation", "test"):
        for client, cluster in enumerate(task.clusters):
            classes = set(task.examples.targets[task.split_of[split][client]].tolist())
            assert classes == {2 * cluster, 2 * cluster + 1}


@pytest.mark.slow
def test_the_real_data_give_the_papers_experiments() -> None:
    root = cifar_root()
    silo = task_of("cross_silo", f"data.root={root}", "task.validation_fraction=0")
    assert (silo.clients, len(silo.split_of["train"][0]), len(silo.split_of["test"][0])) == (
        8,
        25_000,
        10_000,
    )
    check_splits(silo, share=True)
    device = task_of("cross_device", f"data.root={root}", "task.validation_fraction=0")
    assert [device.clusters.count(k) for k in range(10)] == [6, 6, 7, 7, 8, 8, 9, 9, 10, 10]
    check_splits(device, share=False)
    assert sorted({len(numbers) for numbers in device.split_of["train"]}) == sorted(
        {5000 // size + extra for size in (6, 7, 8, 9, 10) for extra in (0, 5000 % size > 0)}
    )
    assert device.examples.inputs.dtype == torch.uint8
    assert device.examples.inputs.numel() == 60_000 * 32 * 32 * 3, "the data lie here once"


def test_each_cluster_permutes_labels_by_its_own_seed(images: Path) -> None:
    task = task_of("cross_silo", f"data.file={images}")
    maps = task.examples.labels_of
    for i, j in combinations(range(8), 2):
        assert torch.equal(maps[i], maps[j]) == (task.clusters[i] == task.clusters[j])
    named = task_of("cross_silo", f"data.file={images}", "task.label_seeds=[5,6,5,7]")
    again = task_of("cross_silo", f"data.file={images}", "task.label_seeds=[6,5,0,1]", "run.seed=9")
    assert torch.equal(named.examples.labels_of[0], named.examples.labels_of[4])
    assert torch.equal(named.examples.labels_of[2], again.examples.labels_of[0])
    shifted = task_of("cross_silo", f"data.file={images}", "task.label_map=shifted")
    assert shifted.examples.labels_of[6].tolist() == [3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    # A batch and an evaluation of one client name the classes alike.
    _, targets = task.training([6], CPU).batch(0, "local")[:2]
    numbers = task.training([6], CPU).streams["local"].batch(0)
    assert torch.equal(targets[0], maps[6][task.examples.targets[numbers[0]]])
    (_, (_, answers)), *_ = task.evaluation(6, "test", CPU)
    assert torch.equal(answers, maps[6][task.examples.targets[400:480]])


def test_cross_device_labels_are_kept_or_taken_modulo(images: Path) -> None:
    sizes = "task.cluster_sizes=[1,1,1,1,1]"
    kept = task_of("cross_device", f"data.file={images}", sizes)
    folded = task_of("cross_device", f"data.file={images}", sizes, "task.labels=modulo")
    for task, expected in ((kept, {6, 7}), (folded, {0, 1})):
        (_, (_, targets)), *_ = task.evaluation(3, "test", CPU)
        assert set(targets.tolist()) == expected
        assert task.model().classifier.out_features == 10


def test_superclasses(images: Path) -> None:
    task = task_of("cross_silo", f"data.file={images}", "task.labels=coarse")
    assert task.model().classifier.out_features == 5
    assert task.examples.targets[:6].tolist() == [0, 0, 1, 1, 2, 2]


def test_the_evaluated_part_is_fixed_and_inside_the_split(images: Path) -> None:
    task = task_of("cross_silo", f"data.file={images}", "data.eval_examples=30")

    def seen(client: int, whole: bool) -> torch.Tensor:
        return torch.cat([x for _, (x, _) in task.evaluation(client, "test", CPU, whole)])

    part, whole = seen(0, False), seen(0, True)
    assert (len(part), len(whole)) == (30, 80)
    assert torch.equal(part, seen(0, False))
    assert torch.equal(part, seen(5, False)), "clients that share a test set share its part"
    rows = {tuple(row.tolist()) for row in whole.flatten(1)}
    assert all(tuple(row.tolist()) in rows for row in part.flatten(1))
    other = task_of("cross_silo", f"data.file={images}", "data.eval_examples=30", "run.seed=1")
    elsewhere = torch.cat([x for _, (x, _) in other.evaluation(0, "test", CPU, False)])
    assert not torch.equal(part, elsewhere)


# -- views -------------------------------------------------------------------------------------------


def test_augmented_images_are_crops_of_the_reflected_image() -> None:
    generator = np.random.default_rng(0)
    stored = torch.from_numpy(generator.integers(0, 256, size=(5, 12, 9, 3), dtype=np.uint8))
    views = Augmentation(3, "local", [4, 7], stored)
    numbers = torch.tensor([[0, 1, 2, 3, 4, 0, 0, 0], [4, 3, 2, 1, 0, 0, 0, 0]])
    drawn = views(numbers, views.keys(11))
    padded = F.pad(stored.permute(0, 3, 1, 2).float(), (4, 4, 4, 4), mode="reflect").byte()
    offsets, flips = set(), set()
    for row in range(2):
        for position, number in enumerate(numbers[row].tolist()):
            matches = [
                (down, across, flip)
                for down in range(9)
                for across in range(9)
                for flip in (False, True)
                if torch.equal(
                    drawn[row, position],
                    (crop.flip(2) if flip else crop).permute(1, 2, 0)
                    if (crop := padded[number, :, down : down + 12, across : across + 9])
                    is not None
                    else stored[0],
                )
            ]
            assert matches, "not a crop of the padded image"
            offsets.add(matches[0][:2])
            flips.add(matches[0][2])
    assert len(offsets) > 5
    assert flips == {False, True}


def test_augmentation_depends_only_on_seed_round_and_client() -> None:
    stored = torch.arange(4 * 16 * 16 * 3).remainder(251).to(torch.uint8).view(4, 16, 16, 3)
    numbers = torch.arange(4).repeat(2, 1)

    def drawn(
        seed: int, stream: str, clients: list[int], t: int, rows: list[int] | None = None
    ) -> Any:
        views = Augmentation(seed, stream, clients, stored)
        keys = views.keys(t, rows)
        return views(numbers[: len(keys)], keys)

    both, alone = drawn(3, "local", [4, 7], 5), drawn(3, "local", [7], 5)
    assert torch.equal(both[1], alone[0])
    assert torch.equal(both[1], drawn(3, "local", [4, 7], 5, [1])[0])
    assert not torch.equal(both[0], both[1])
    for other in (
        drawn(3, "local", [7], 6),
        drawn(4, "local", [7], 5),
        drawn(3, "midpoint", [7], 5),
    ):
        assert not torch.equal(other, alone)


def test_offsets_are_uniform() -> None:
    ramp = torch.arange(32).to(torch.uint8)[None, :, None, None].expand(1, 32, 32, 1).contiguous()
    augmentation = Augmentation(0, "local", [0], ramp)
    views = augmentation(torch.zeros(1, 4500, dtype=torch.int64), augmentation.keys(0))
    # Row 10 of the view shows row 10 + offset, offset in -4..4.
    counts = torch.bincount(views[0, :, 10, 0, 0].long() - 6, minlength=9)
    assert len(counts) == 9
    assert (counts - 500).abs().max() < 5 * (500 * 8 / 9) ** 0.5


def test_masks_drop_their_share_and_keep_the_mean() -> None:
    mask = dropout_mask(dropout_keys(1, "local", [3, 5], 2), (50, 40), 0.2)
    assert mask.shape == (2, 50, 40)
    assert set(mask.unique().tolist()) == {0.0, 1.25}
    assert abs(float(mask.mean()) - 1.0) < 0.05
    assert torch.equal(mask[1], dropout_mask(dropout_keys(1, "local", [5], 2), (50, 40), 0.2)[0])
    assert not torch.equal(
        mask[1], dropout_mask(dropout_keys(1, "local", [5], 3), (50, 40), 0.2)[0]
    )


def test_dropout_acts_in_training_only(images: Path) -> None:
    task = task_of("cross_silo", f"data.file={images}", "data.augment=false", "model.norm=group")
    inputs, _, mask = (part[0] for part in task.training([0], CPU).batch(0, "local"))
    model = task.model()
    assert torch.equal(model.eval()(inputs, mask), model.eval()(inputs))
    assert not torch.allclose(model.train()(inputs, mask), model.train()(inputs))
    plain = task_of("cross_silo", f"data.file={images}", "model.dropout=0")
    assert len(plain.training([0], CPU).batch(0, "local")) == 2


def test_images_become_numbers_in_minus_one_to_one(images: Path) -> None:
    task = task_of("cross_silo", f"data.file={images}", "data.augment=false")
    inputs = task.training([0, 1], CPU).batch(0, "local")[0]
    numbers = task.training([0, 1], CPU).streams["local"].batch(0)
    stored = task.examples.inputs[numbers].float() / 255
    expected = ((stored - 0.5) / 0.5).permute(0, 1, 4, 2, 3)
    assert torch.allclose(inputs, expected, atol=1e-6)
    assert inputs[0].is_contiguous(memory_format=torch.channels_last)


# -- the network -------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [4, 64])
def test_resnet9_has_the_papers_layers(images: Path, width: int) -> None:
    model = task_of("cross_silo", f"data.file={images}", f"model.width={width}").model()
    w = width
    channels = [(3, w), (w, 2 * w), (2 * w, 2 * w), (2 * w, 2 * w), (2 * w, 4 * w)]
    channels += [(4 * w, 8 * w), (8 * w, 8 * w), (8 * w, 8 * w)]
    expected = sum(9 * i * o + 2 * o for i, o in channels) + 8 * w * 10 + 10
    assert sum(p.numel() for p in model.parameters()) == expected
    shapes = []
    for module in (model.conv1, model.conv2, model.residual2):
        module.register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape)))
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert shapes == [(2, w, 32, 32), (2, 2 * w, 32, 32), (2, 8 * w, 4, 4)]


def test_the_small_network_has_its_layers(images: Path) -> None:
    """McMahan et al. count 1,663,370 parameters for 28 x 28 grey images and 10 digits."""
    from cobo_dist.tasks.cnn import CnnConfig

    mnist = CnnConfig().build(torch.Size([1, 28, 28]), 10)
    assert sum(p.numel() for p in mnist.parameters()) == 1_663_370
    task = task_of("cross_silo", f"data.file={images}", "model.name=cnn", "model.hidden=16")
    assert task.model()(torch.zeros(2, 3, 16, 16)).shape == (2, 10)


@pytest.mark.parametrize("model", ["model.name=resnet9", "model.name=cnn"])
def test_the_first_loss_is_near_that_of_guessing(images: Path, model: str) -> None:
    task = task_of("cross_silo", f"data.file={images}", model, "model.width=8")
    losses = clients_of(task).gradients(0)
    assert 0.8 * np.log(10) < float(losses.mean()) < 1.4 * np.log(10)


@pytest.mark.parametrize(
    "model", ["model.norm=batch", "model.norm=group", "model.name=cnn model.hidden=16"]
)
def test_engines_and_memory_formats_give_the_same_gradients(images: Path, model: str) -> None:
    found = {}
    for engine in ("one_by_one", "vectorised"):
        for last in ("true", "false"):
            task = task_of(
                "cross_silo", f"data.file={images}", *model.split(),
                f"data.channels_last={last}", "task.clusters=2", "run.dtype=float64",
            )  # fmt: skip
            clients = clients_of(task, dtype=torch.float64)
            clients.use_engine(engine)
            losses = clients.gradients(3)
            rows = [clients.layout.views(row) for row in clients.g_cd]
            named = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
            found[engine, last] = (losses, named, clients.state_dict(1))
    expected_losses, expected, state = found["one_by_one", "false"]
    assert any(len(v.shape) == 5 and v.abs().max() > 0 for v in expected.values())
    for losses, named, other in found.values():
        assert torch.allclose(losses, expected_losses, rtol=1e-9)
        for name, value in expected.items():
            assert torch.allclose(named[name], value, rtol=1e-6, atol=1e-10), name
        assert other.keys() == state.keys()
        for name, value in state.items():
            assert torch.allclose(other[name], value, rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize("engine", ["one_by_one", "vectorised"])
def test_bfloat16_losses_agree_with_float32(images: Path, engine: str) -> None:
    """One step: losses to 1%, gradients in the same direction. Then the runs drift, but learn alike."""
    curves, gradients = [], []
    for autocast in (None, torch.bfloat16):
        task = task_of(
            "cross_silo", f"data.file={images}", "task.clusters=1", "data.batch_size=16",
            "data.augment=false", "model.dropout=0",
        )  # fmt: skip
        clients = clients_of(task, "optimizer.lr=0.01", autocast=autocast)
        clients.use_engine(engine)
        curve = []
        for t in range(12):
            curve.append(clients.gradients(t))
            if t == 0:
                gradients.append(clients.g_cd.clone())
            clients.x_cd.add_(clients.direction(), alpha=-clients.eta(t))
        assert clients.x_cd.dtype == clients.g_cd.dtype == torch.float32
        curves.append(torch.stack(curve))
    exact, cast = curves
    assert torch.allclose(cast[0], exact[0], rtol=0.01)
    assert not torch.equal(cast[0], exact[0]), "autocast did something"
    assert (F.cosine_similarity(*gradients) > 0.99).all()
    assert exact[6:].mean() < 0.9 * exact[:3].mean(), "it learns"
    assert torch.allclose(cast.mean(), exact.mean(), rtol=0.03)


def test_own_starts_differ_and_common_ones_do_not(images: Path) -> None:
    task = task_of("cross_silo", f"data.file={images}")
    common, own = clients_of(task), clients_of(task, own_starts=True)
    assert (common.x_cd == common.x_cd[0]).all()
    assert len({row.sum().item() for row in own.x_cd}) == task.clients
    few = ClientBatch([5], task, load_config(None, []).optimizer, dtype=torch.float32, device=CPU,
                  own_starts=True)  # fmt: skip
    assert torch.equal(few.x_cd[0], own.x_cd[5])


# -- whole runs --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["task.name=cross_silo", "run.autocast=bfloat16"],
        ["task.name=cross_silo", "algorithm.name=ifca", "algorithm.client_share=0.3"],
        ["task.name=cross_device", "task.cluster_sizes=[2,1,1,2,1]", "algorithm.start=zeros"],
    ],
    ids=["bfloat16", "ifca", "cross_device"],
)
def test_any_number_of_ranks_gives_the_same_bits(
    pool: RankPool, images: Path, tmp_path: Path, settings: list[str]
) -> None:
    """Views, dropout, BatchNorm and kernels with channels last: deterministic runs on 1 and 3 ranks."""
    found = []
    for ranks in (1, 3):
        folder = tmp_path / f"run{ranks}"
        arguments = [
            f"data.file={images}", "comm.deterministic=true", "run.rounds=5", "run.eval_every=2",
            "data.eval_examples=20", "data.eval_batch_size=32", "algorithm.name=cobo", *SMALL,
            f"run.dir={folder}", *settings,
        ]  # fmt: skip
        pool.run(ranks, train, arguments)
        found.append((models(folder), rows(folder, "eval")))
    (one, evaluations), (three, others) = found
    assert one.keys() == three.keys()
    for name, value in one.items():
        assert value.tobytes() == three[name].tobytes(), name
    assert evaluations == others
    for row in evaluations:
        assert row["whole"] == (row["round"] == 5)
        assert row["model"] == "personal"
        if row["client"] is not None:
            test = {"cross_silo": 80, "cross_device": 16}[settings[0].partition("=")[2]]
            assert row["examples"] == (test if row["whole"] else min(test, 20))


# -- files -------------------------------------------------------------------------------------------


def test_cifar100_as_torchvision_stores_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR100

    source = np.load(write_images(tmp_path / "images.npz", size=32))
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    sums = {}
    for name, part in (("train", "train"), ("test", "test")):
        x = source[f"x_{part}"].transpose(0, 3, 1, 2).reshape(len(source[f"x_{part}"]), -1)
        content = {
            "data": x,
            "fine_labels": source[f"y_{part}"].tolist(),
            "coarse_labels": source[f"coarse_{part}"].tolist(),
        }
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        sums[name] = hashlib.md5(data, usedforsecurity=False).hexdigest()
    meta = pickle.dumps({"fine_label_names": [str(k) for k in range(10)]})
    (folder / "meta").write_bytes(meta)
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    digest = hashlib.md5(meta, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(
        CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": digest}
    )
    for labels in ("fine", "coarse"):
        stored = load_images("", str(tmp_path), labels)
        plain = load_images(str(tmp_path / "images.npz"), "", labels)
        for name in ("x_train", "y_train", "x_test", "y_test"):
            np.testing.assert_array_equal(getattr(stored, name), getattr(plain, name))
    (folder / "train").write_bytes(b"torn")
    with pytest.raises(ConfigError, match=r"incomplete or damaged.*prepare"):
        load_images("", str(tmp_path), "fine")


def mend(path: Path, **changes: object) -> Path:
    """Rewrite an npz with some arrays replaced, or dropped where None."""
    arrays = dict(np.load(path)) | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


BAD_FILES = {
    "lacks": ({"y_train": None}, r"lacks the array 'y_train'.*it must hold x_train, y_train"),
    "dtype": ({"x_test": np.zeros((80, 16, 16, 3), np.float32)}, r"x_test is float32 .*uint8"),
    "shape": ({"x_train": np.zeros((400, 16, 16), np.uint8)}, r"x_train is uint8 \[400, 16, 16\]"),
    "channels": ({"x_train": np.zeros((400, 16, 16, 4), np.uint8)}, r"1 or 3 channels"),
    "empty": ({"x_test": np.zeros((0, 16, 16, 3), np.uint8)}, r"at least one image"),
    "count": ({"y_train": np.zeros(399, np.uint8)}, r"y_train is uint8 \[399\].*\[400\]"),
    "float labels": ({"y_test": np.zeros(80)}, r"y_test is float64.*whole numbers"),
    "negative": ({"y_train": np.full(400, -1)}, r"labels -1 to -1, but labels must lie in 0"),
    "beyond": ({"y_test": np.full(80, 12)}, r"y_test holds labels 12 to 12, .* 0 to 9"),
    "sizes": ({"x_test": np.zeros((80, 8, 8, 3), np.uint8)}, r"must be alike"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_malformed_file_is_refused(tmp_path: Path, case: str) -> None:
    changes, words = BAD_FILES[case]
    path = mend(write_images(tmp_path / "bad.npz"), **changes)
    with pytest.raises(ConfigError, match=words) as caught:
        task_of("cross_silo", f"data.file={path}")
    assert "\n" not in str(caught.value)
    assert "bad.npz" in str(caught.value)


@pytest.mark.parametrize("name", ["cross_silo", "cross_device"])
@pytest.mark.parametrize("greatest", [90, 2**61])
def test_labels_with_gaps_are_numbered_anew_and_said(
    tmp_path: Path, name: str, greatest: int
) -> None:
    """A file without gaps gives the same; the classifier has an output for each label that there is."""
    plain = write_images(tmp_path / "plain.npz")
    with np.load(plain) as arrays:
        gaps = {
            key: np.where(arrays[key] == 9, greatest, 2 * arrays[key].astype(np.int64))
            for key in ("y_train", "y_test")
        }
    path = mend(write_images(tmp_path / "gaps.npz"), **gaps)
    task, same = task_of(name, f"data.file={path}"), task_of(name, f"data.file={plain}")
    assert task.fingerprint() == same.fingerprint()
    assert task.model_facts()["classes"] == 10
    (notice,) = task.notices
    assert f"10 labels from 0 to {greatest} are numbered 0 to 9" in notice
    assert same.notices == ()


def test_missing_and_unreadable_files_are_refused(tmp_path: Path) -> None:
    torn = tmp_path / "torn.npz"
    torn.write_bytes(b"PK\x03\x04 no zip")
    bare = tmp_path / "bare.npz"
    with bare.open("wb") as file:
        np.save(file, np.zeros(3))
    for path, words in (
        (torn, "no readable npz"),
        (bare, "one bare array"),
        (tmp_path / "absent.npz", "no file"),
    ):
        with pytest.raises(ConfigError, match=words):
            task_of("cross_device", f"data.file={path}")
    with pytest.raises(ConfigError, match=r"neither cifar100.npz nor cifar-100-python.*prepare"):
        task_of("cross_silo", f"data.root={tmp_path}")
    only_fine = mend(write_images(tmp_path / "fine.npz"), coarse_train=None)
    with pytest.raises(ConfigError, match=r"'coarse_train'.*task.labels=fine"):
        task_of("cross_silo", f"data.file={only_fine}", "task.labels=coarse")


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("cross_silo", ["task.clients_per_cluster=500"], r"leave 360 for the 500 clients"),
        ("cross_silo", ["task.data_fraction=0.001"], r"leave 0 .*raise task.data_fraction"),
        ("cross_silo", ["task.label_seeds=[1,2]"], r"2 seeds for task.clusters=4"),
        (
            "cross_device",
            ["task.cluster_sizes=[1,1,1]"],
            r"10 classes .* 3 clusters.*divisor of 10",
        ),
        ("cross_device", ["task.cluster_sizes=[1,300]"], r"cluster 1 has 200 .*300 clients"),
        ("cross_silo", ["model.norm=group", "model.groups=3"], r"groups=3 .*width=4"),
    ],
)
def test_impossible_splits_and_models_are_refused(
    images: Path, name: str, settings: list[str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        task_of(name, f"data.file={images}", *settings)


def test_models_refuse_small_images_and_other_inputs(tmp_path: Path) -> None:
    tiny = write_images(tmp_path / "tiny.npz", size=6)
    with pytest.raises(ConfigError, match=r"at least 8 x 8 pixels, and these have 6 x 6.*mlp"):
        task_of("cross_silo", f"data.file={tiny}")
    dots = write_images(tmp_path / "dots.npz", size=3)
    with pytest.raises(ConfigError, match=r"at least 4 x 4 pixels, and these have 3 x 3.*mlp"):
        task_of("cross_silo", f"data.file={dots}", "model.name=cnn")
    config = load_config(None, ["model.name=resnet9"])
    with pytest.raises(ConfigError, match=r"takes images, and this task's inputs are 64 numbers"):
        build_task(config.task, config.model, config.data, 0, torch.float32)
    flat = load_config(None, ["task.name=cross_silo", f"data.file={tiny}", "model.name=mlp"])
    task = build_task(flat.task, flat.model, flat.data, 0, torch.float32)
    assert clients_of(task).gradients(0).isfinite().all()


def test_prepare_checks_the_data_and_prints_the_splits(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(["task.name=cross_silo", f"data.file={images}", *SMALL]) == 0
    said = capsys.readouterr().out
    assert "8 in 4 clusters" in said
    assert "180 examples a client" in said
    assert "80 examples a client" in said
    assert prepare(["task.name=cross_silo", f"data.file={tmp_path / 'none.npz'}"]) == 2
    assert "is no file" in capsys.readouterr().err
    assert prepare(["task.name=cross"]) == 2
    assert prepare([]) == 0
    assert "digits" in capsys.readouterr().out


def test_prepare_fetches_only_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import CIFAR100

    asked = []

    def download(root: str, **_: object) -> None:
        asked.append(root)
        raise OSError("no route to host")

    monkeypatch.setattr(CIFAR100, "__new__", lambda _cls, root, **more: download(root, **more))
    assert prepare(["task.name=cross_silo", f"data.root={tmp_path}"]) == 2
    assert asked == [str(tmp_path)]
    assert "no route to host" in (error := capsys.readouterr().err)
    assert len(error.strip().splitlines()) == 1
    write_images(tmp_path / "cifar100.npz")
    assert prepare(["task.name=cross_silo", f"data.root={tmp_path}", *SMALL]) == 0
    assert len(asked) == 1
