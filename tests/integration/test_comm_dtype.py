"""Models that travel as bfloat16: half the bytes, as planned, and the rounding error of that type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pool import RankPool
from problems import models, rows, train

from cobo_dist.config import load_config
from cobo_dist.errors import ConfigError
from cobo_dist.planning.dry_run import DryRun
from cobo_dist.tasks.registry import build_task

RUN = [
    "run.rounds=12", "run.eval_every=0", "run.threads=1", "model.hidden=[18]", "log.progress=none",
    "run.engine=one_by_one",
]  # fmt: skip
METHODS = {
    "cobo": ("algorithm.gamma=0", "algorithm.sampling.name=all"),
    "fedavg": ("algorithm.name=fedavg",),
    "ditto": ("algorithm.name=ditto",),
    "ifca": ("algorithm.name=ifca",),
}


@pytest.fixture(scope="module")
def runs(gloo_pool: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each method on 3 ranks, with both types."""
    folder = tmp_path_factory.mktemp("wire")
    for name, settings in METHODS.items():
        for dtype in ("model", "bfloat16"):
            place = f"run.dir={folder / name / dtype}"
            gloo_pool.run(3, train, [*RUN, *settings, f"comm.dtype={dtype}", place])
    return folder


@pytest.mark.parametrize("name", METHODS)
def test_models_differ_by_rounding_errors_only(runs: Path, name: str) -> None:
    """bfloat16 has 8 bits: 12 rounds of sums of 8 models stay within 12 rounding steps."""
    exact, rounded = models(runs / name / "model"), models(runs / name / "bfloat16")
    differ = False
    for key, value in exact.items():
        step = 2.0**-8 * np.abs(value).max()
        assert np.abs(rounded[key] - value).max() <= 12 * step, key
        differ |= bool((rounded[key] != value).any())
    assert differ or name == "ifca"  # all its clients may pick one center that rank 0 alone has


@pytest.mark.parametrize("name", ["cobo", "fedavg", "ditto"])
def test_bytes_are_halved_and_as_planned(runs: Path, name: str) -> None:
    whole = [row["bytes_sent"] for row in rows(runs / name / "model", "round")]
    half = [row["bytes_sent"] for row in rows(runs / name / "bfloat16", "round")]
    scalars = [0] * len(whole)
    config = load_config(None, [*RUN, *METHODS[name], "comm.dtype=bfloat16"])
    task = build_task(config.task, config.model, config.data, config.run.seed, torch.float32)
    dry_run_of = DryRun(config, task, 3)
    if name == "cobo":  # inner products do not shrink: 2 numbers of 8 bytes an end
        pairs = [row["pairs"] for row in rows(runs / name / "model", "round")]
        crossing = 28 - 3 - 3 - 1  # of 8 clients on ranks of 3, 3 and 2
        assert set(pairs) == {28}
        scalars = [crossing * 4 * 8] * len(whole)
    assert [2 * (h - s) + s for h, s in zip(half, scalars, strict=True)] == whole
    assert [dry_run_of.round(r).total for r in range(1, 13)] == half


def test_all_ranks_keep_the_same_global_model(runs: Path) -> None:
    """The result of `all_reduce` is rounded on its owner's rank too: IFCA's clients have equal centers."""
    found = models(runs / "ifca" / "bfloat16")
    clients = {key.split("/")[0] for key in found}
    weights = np.load(runs / "ifca" / "bfloat16" / "W.npz")["weights"][-1]
    for i in range(len(clients)):
        for j in np.flatnonzero(weights[i]):
            for key in [key for key in found if key.startswith(f"client_{i:05d}/")]:
                assert np.array_equal(found[key], found[key.replace(f"{i:05d}", f"{int(j):05d}")])


def test_deterministic_runs_refuse_it() -> None:
    with pytest.raises(ConfigError, match=r"leave comm\.dtype at model"):
        load_config(None, ["comm.dtype=bfloat16", "comm.deterministic=true"])
