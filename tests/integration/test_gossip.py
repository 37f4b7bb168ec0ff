"""A gossip algorithm as an author of a plug-in writes it: W is a directed ring."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from pool import RankPool
from problems import models, train_with, write_quadratic

from cobo_dist.algorithms.algorithm import Algorithm
from cobo_dist.algorithms.base import RoundResult
from cobo_dist.algorithms.local import local_step
from cobo_dist.comm.session import CommConfig, Session, open_session
from cobo_dist.comm.startup.launch_env import Launch
from cobo_dist.comm.transports.checked_transport import CheckedTransport
from cobo_dist.errors import RunFailure
from cobo_dist.maths.weights import Weights

N, ROUNDS = 7, 9


def ring(n: int) -> np.ndarray:
    """Return W in which client i listens to itself and to client i - 1."""
    return (0.75 * np.eye(n) + 0.25 * np.roll(np.eye(n), -1, axis=1)).astype(np.float32)


class Gossip(Algorithm):
    """A local step, then x_i <- 3/4 x_i + 1/4 x_(i-1)."""

    def first_weights(self) -> Weights:
        """Return this rank's rows of the ring."""
        mine = list(self.clients.ids)
        return Weights.of_rows(mine, ring(self.context.clients)[mine])

    def round(self, t: int) -> RoundResult:
        """Step, then mix."""
        losses_c, x_cd = local_step(self.clients, t), self.clients.x_cd
        for at, mixed in self.exchange.mix(self.weights, x_cd):
            x_cd[:, at] = mixed
        return RoundResult(losses_c)


class Claiming(Gossip):
    """Says that the ring is symmetric."""

    def first_weights(self) -> Weights:
        """Return this rank's rows of the ring."""
        mine = list(self.clients.ids)
        return Weights.of_rows(mine, ring(self.context.clients)[mine], symmetric=True)


class Skipping(Gossip):
    """Only rank 0 mixes in round 3; the other ranks go on."""

    def round(self, t: int) -> RoundResult:
        """Step, then mix."""
        if t == 2 and 0 not in self.clients.ids:
            return RoundResult(local_step(self.clients, t))
        return super().round(t)


def dense_gossip(problem: Path) -> np.ndarray:
    """The same with all clients in one array."""
    arrays = np.load(problem)
    x_nd = np.tile(arrays["start"], (N, 1))
    for _ in range(ROUNDS):
        x_nd = ring(N) @ (x_nd - 0.1 * arrays["curvature"][:, None] * (x_nd - arrays["centers"]))
    return x_nd


def arguments_for(folder: Path, *more: str) -> list[str]:
    problem = write_quadratic(folder.parent / "problem.npz", N)
    return [
        "task.name=quadratic", f"task.file={problem}", f"run.dir={folder}", "algorithm.name=local",
        f"run.rounds={ROUNDS}", "run.dtype=float64", "optimizer.lr=0.1", "run.eval_every=0", *more,
    ]  # fmt: skip


def gossip(session: Session, arguments: list[str], algorithm: type[Gossip] = Gossip) -> int:
    return train_with(session, arguments, algorithm)


@pytest.mark.parametrize("deterministic", ["false", "true"])
def test_a_directed_ring_gives_the_same_models_on_any_number_of_ranks(
    pool: RankPool, tmp_path: Path, deterministic: str
) -> None:
    found = []
    for ranks in (1, 2, 4):
        folder = tmp_path / str(ranks)
        arguments = arguments_for(folder, f"comm.deterministic={deterministic}")
        assert pool.run(ranks, gossip, arguments) == [0] * ranks
        found.append(np.stack([x_d for _, x_d in sorted(models(folder).items())]))
    for x_nd in found:
        np.testing.assert_allclose(x_nd, dense_gossip(tmp_path / "problem.npz"), rtol=0, atol=1e-12)
        if deterministic == "true":
            np.testing.assert_array_equal(x_nd, found[0])


def checked_gossip(session: Session, arguments: list[str], algorithm: type[Gossip]) -> str:
    checked = dataclasses.replace(session, transport=CheckedTransport(session.transport))
    try:
        gossip(checked, arguments, algorithm)
    except RunFailure as failure:
        return str(failure)
    return ""


@pytest.mark.parametrize(
    ("algorithm", "ranks", "words"),
    [
        pytest.param(Gossip, 2, "", id="right"),
        pytest.param(
            Claiming, 1,
            r"rank 0, exchange.mix at test_gossip.py:\d+: .* w\[1, 0\] is 0.25 and w\[0, 1\] is 0;",
            id="claims on 1 rank",
        ),
        pytest.param(
            Claiming, 4, r"exchange.mix at test_gossip.py:\d+: the weights say symmetric=True",
            id="claims on 4 ranks",
        ),
        pytest.param(
            Skipping, 2,
            r"rank 0 calls exchange.mix at test_gossip.py:\d+, "
            r"but rank 1 (begins round 4|gathers a record) at .*; this was in round 3$",
            id="skips",
        ),
    ],
)  # fmt: skip
def test_a_checked_run_ends_on_all_ranks_with_the_line_of_the_mistake(
    pool: RankPool, tmp_path: Path, algorithm: type[Gossip], ranks: int, words: str
) -> None:
    arguments = arguments_for(tmp_path / "run", "run.log_weights_every=0")
    found = pool.run_broken(ranks, checked_gossip, arguments, algorithm)
    assert len(set(found)) == 1, found
    assert bool(found[0]) == bool(words)
    assert re.search(words, found[0]), found[0]
    if words:
        status = json.loads((tmp_path / "run" / "status.json").read_text())
        assert (status["exit_code"], status["reason"]) == (1, found[0])


def test_a_session_of_one_rank_checks_too() -> None:
    launch = Launch("python", 0, 1, 0, 1, "127.0.0.1", 1)
    with open_session(launch, CommConfig(check=True), torch.device("cpu")) as session:
        assert isinstance(session.transport, CheckedTransport)
