"""Runs with `comm.compression`: on any number of ranks, resumed, planned, and against the dense rule."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from pool import RankPool
from problems import models, rows, train, write_quadratic
from resuming import assert_same, stopped

from cobo_dist.config import load_config
from cobo_dist.errors import EXIT_DONE, EXIT_STOPPED, ConfigError
from cobo_dist.maths.compression import Compression

SIZE = 5


def quadratic(folder: Path, *more: str) -> list[str]:
    problem = write_quadratic(folder / "problem.npz", size=SIZE)
    return [
        "task.name=quadratic", f"task.file={problem}", "run.dtype=float64", "optimizer.lr=0.1",
        "algorithm.gamma=0.5", "algorithm.rho=0.5", "run.rounds=20", "run.eval_every=5",
        "run.log_weights_every=5", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["int8", "topk"])
@pytest.mark.parametrize("coupling", ["explicit", "capped"])
def test_any_number_of_ranks_gives_the_same_bits(
    pool: RankPool, tmp_path: Path, name: str, coupling: str
) -> None:
    run = [
        *quadratic(tmp_path), f"comm.compression={name}", f"algorithm.coupling={coupling}",
        "comm.deterministic=true", *(["comm.compression_share=0.4"] if name == "topk" else []),
    ]  # fmt: skip
    for ranks in (1, 2, 3):
        pool.run(ranks, train, [*run, f"run.dir={tmp_path / str(ranks)}"])
    assert_same(tmp_path / "1", tmp_path / "2")
    assert_same(tmp_path / "1", tmp_path / "3")
    again = [*run, f"run.dir={tmp_path / 'again'}"]
    assert pool.run(2, stopped, again, 1, 9, signal.SIGTERM) == [EXIT_STOPPED] * 2
    assert pool.run(3, train, [*again, "run.resume=auto"]) == [EXIT_DONE] * 3
    assert_same(tmp_path / "1", tmp_path / "again")


def test_models_are_those_of_the_rule(pool: RankPool, tmp_path: Path) -> None:
    """With W held: y <- y + C(x - y), then x <- x - eta (g + rho sum_k w_ik (x_i - y_k))."""
    run = [
        *quadratic(tmp_path), "algorithm.gamma=0", "comm.compression=topk", "comm.compression_share=0.4",
        f"run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    pool.run(2, train, run)
    with np.load(tmp_path / "problem.npz") as arrays:
        b_nd, a_n = torch.from_numpy(arrays["centers"]), torch.from_numpy(arrays["curvature"])
        x_nd = torch.from_numpy(arrays["start"]).repeat(len(a_n), 1)
    y_nd, compression = x_nd.clone(), Compression("topk", 0.4)
    w_nn = 1.0 - torch.eye(len(a_n), dtype=torch.float64)
    for _ in range(20):
        y_nd = y_nd + compression.of(x_nd - y_nd)
        gradients = a_n[:, None] * (x_nd - b_nd)
        pull = 0.5 * (w_nn.sum(dim=1, keepdim=True) * x_nd - w_nn @ y_nd)
        x_nd = x_nd - 0.1 * (gradients + pull)
    found = models(tmp_path / "run")
    expected = dict(zip(sorted(found), x_nd.numpy(), strict=True))
    for name, value in found.items():
        np.testing.assert_allclose(value.reshape(-1), expected[name], rtol=1e-10, err_msg=name)


def test_clients_send_what_a_message_takes(pool: RankPool, tmp_path: Path) -> None:
    run = [*quadratic(tmp_path), "algorithm.sampling.rate=0", "algorithm.gamma=0"]
    sent = {}
    for name in ("none", "int8"):
        folder = tmp_path / name
        pool.run(2, train, [*run, f"comm.compression={name}", f"run.dir={folder}"])
        summary = json.loads((folder / "summary.json").read_text())
        sent[name] = summary["bytes_per_client"]["up"], summary["bytes_sent"]
    # All 7 clients are linked with 6 others, in 20 rounds.
    assert sent["none"][0] == 20 * 6 * SIZE * 8
    assert sent["int8"][0] == 20 * 6 * (SIZE + 4)
    assert sent["int8"][1] == sent["none"][1], "ranks send whole models"


def test_swift_reads_compressed_models(pool: RankPool, tmp_path: Path) -> None:
    problem = write_quadratic(tmp_path / "problem.npz")
    run = [
        "task.name=quadratic", f"task.file={problem}", "run.dtype=float64", "run.rounds=40",
        "algorithm.name=swift", "comm.compression=int8", f"run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    assert pool.run(2, train, run) == [EXIT_DONE] * 2
    losses = [row["loss"] for row in rows(tmp_path / "run", "round")]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("algorithm.name=fedavg",), "algorithm.name=fedavg has other messages"),
        (("clock=virtual", "clock.policy=free", "clock.latency=0.2"), "clock.latency"),
        (("comm.mode=asynchronous",), "sends differences, all of which must arrive"),
        (("comm.compression_share=0.1",), "no effect with comm.compression=int8"),
    ],
)
def test_what_does_not_go_with_it_is_refused(more: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(None, ["comm.compression=int8", *more])
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
