"""NaN and infinity in a client's loss or gradient: the run ends, or goes on without that gradient."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from pool import RankPool
from problems import models, rows, train
from torch import Tensor, nn

from cobo_dist.comm.session import Session
from cobo_dist.errors import RunFailure
from cobo_dist.tasks.labeled import Classification

RUN = [
    "run.rounds=30", "task.test_size=80", "model.hidden=[8]", "model.norm=batch", "data.batch_size=8",
    "comm.deterministic=true", "run.checkpoint_every=2", "optimizer.name=ema_momentum",
    "optimizer.momentum=0.9", "algorithm.sampling.rate=2", "run.eval_every=0",
]  # fmt: skip


def train_with_bad_batches(session: Session, arguments: list[str], share: float) -> int | str:
    """Train; a share of the batches, told by their pixels, has a loss that is NaN."""
    good = Classification.loss

    def loss(self: Classification, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        spoilt = (inputs.sum() * 7.77) % 1.0 < share
        return good(self, model, inputs, targets) * torch.where(spoilt, float("nan"), 1.0)

    with mock.patch.object(Classification, "loss", loss):
        try:
            return train(session, arguments)
        except RunFailure as failure:
            return str(failure)


def test_skipping_keeps_models_finite_and_the_same_on_any_ranks(
    pool: RankPool, tmp_path: Path
) -> None:
    """Weights, BatchNorm's statistics and momentum never see what is not finite."""
    for ranks in (1, 3):
        folder = tmp_path / str(ranks)
        arguments = [*RUN, "run.on_nan=skip_client", f"run.dir={folder}"]
        assert pool.run(ranks, train_with_bad_batches, arguments, 0.05) == [0] * ranks
    one, three = models(tmp_path / "1"), models(tmp_path / "3")
    for name, value in one.items():
        assert np.isfinite(value).all(), name
        assert np.array_equal(value, three[name]), name
    skipped = [row["skipped"] for row in rows(folder, "round")]
    assert 2 <= sum(skipped) <= 40
    assert all(row["loss"] is not None for row in rows(folder, "round"))
    told = [row["message"] for row in rows(folder, "warning") if row["kind"] == "skipped"]
    assert 1 <= len(told) <= min(8, sum(skipped))
    assert "run.on_nan=skip_client" in told[0]


def test_stopping_leaves_the_checkpoint_before_it_intact(pool: RankPool, tmp_path: Path) -> None:
    """All ranks end alike; the log ends with the bad round, and no checkpoint is as late."""
    arguments = [*RUN, f"run.dir={tmp_path / 'run'}"]
    answers = pool.run(2, train_with_bad_batches, arguments, 0.01)
    assert answers[0] == answers[1]
    assert "became nan in round" in answers[0]
    last = rows(tmp_path / "run", "round")[-1]["round"]
    assert f"round {last};" in answers[0]
    assert rows(tmp_path / "run", "round")[-1]["loss"] is None
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("round-*"))
    assert all(int(name[6:15]) < last for name in kept if not name.endswith(".part"))
    assert json.loads((tmp_path / "run" / "status.json").read_text())["exit_code"] == 1


@pytest.mark.parametrize("engine", ["one_by_one", "vectorised"])
def test_both_engines_skip(engine: str, pool: RankPool, tmp_path: Path) -> None:
    arguments = [
        *RUN, "comm.deterministic=false", f"run.engine={engine}", "run.on_nan=skip_client",
        f"run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    assert pool.run(1, train_with_bad_batches, arguments, 0.05) == [0]
    assert all(np.isfinite(value).all() for value in models(tmp_path / "run").values())
    assert sum(row["skipped"] for row in rows(tmp_path / "run", "round")) >= 2
