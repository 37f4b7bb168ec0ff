"""Local steps, participation and weights by examples, against plain torch and against today's single step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dense_local_work import DenseFedAvg, trained_rows
from pool import RankPool
from problems import train
from vision_data import write_images

RANKS = (1, 2, 3)
ROUNDS = 3


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 images for two clusters: one client with 48 of them, four with 12 each."""
    return write_images(tmp_path_factory.mktemp("images") / "images.npz", train=96, test=20, size=4)


def unequal(images: Path, *more: str) -> list[str]:
    """Return a run whose clients have unequally many examples."""
    return [
        "task.name=cross_device", f"data.file={images}", "task.cluster_sizes=[1, 4]",
        "task.validation_fraction=0", "model.name=mlp", "model.hidden=[4]", "data.augment=false",
        "data.batch_size=5", "run.dtype=float64", f"run.rounds={ROUNDS}", "optimizer.lr=0.2",
        "run.eval_every=0", *more,
    ]  # fmt: skip


LOCAL = {
    "steps": ["local.steps=3"],
    "epochs": ["local.epochs=2"],
    "drop_last": ["local.epochs=1", "local.drop_last=true", "run.engine=vectorised"],
    "vectorised": ["local.epochs=1", "run.engine=vectorised", "optimizer.weight_decay=0.01"],
    "clipped": ["local.steps=2", "local.clip_norm=0.3", "optimizer.momentum=0.9"],
    "clipped_step": ["local.clip_norm=0.3"],
}


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", LOCAL)
def test_fedavg_is_plain_torch(
    name: str, ranks: int, pool: RankPool, images: Path, tmp_path: Path
) -> None:
    """Clients with 48 and 12 examples, batches of 5: K_i differs, and the last batch has 3 or 2."""
    arguments = unequal(images, "algorithm.name=fedavg", *LOCAL[name])
    pool.run(ranks, train, [*arguments, f"run.dir={tmp_path / 'run'}"])
    dense = DenseFedAvg(arguments)
    expected = dense.train_rounds(ROUNDS, [0] * dense.n)
    found = trained_rows(tmp_path / "run", dense)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert np.abs(expected - DenseFedAvg(arguments).rows()).max() > 1e-2, "models moved"
