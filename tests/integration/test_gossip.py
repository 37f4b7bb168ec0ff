"""A gossip algorithm as an author of a plug-in writes it: W is a directed ring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pool import RankPool
from problems import models, train_with, write_quadratic

from cobo_dist.algorithms.base import Algorithm, RoundResult
from cobo_dist.algorithms.local import local_step
from cobo_dist.comm.session import Session
from cobo_dist.maths.weights import Weights

N, ROUNDS = 7, 9


def ring(n: int) -> np.ndarray:
    """Return W in which client i listens to itself and to client i + 1."""
    return (0.75 * np.eye(n) + 0.25 * np.roll(np.eye(n), -1, axis=1)).astype(np.float32)


class Gossip(Algorithm):
    """A local step, then x_i <- 3/4 x_i + 1/4 x_(i+1)."""

    user_notice = ""

    def __init__(self, config: Any, clients: Any, exchange: Any, context: Any) -> None:
        self.clients, self.exchange = clients, exchange
        self.weights = Weights.of_rows(clients.ids, ring(context.clients)[list(clients.ids)])

    def round(self, t: int) -> RoundResult:
        """Step, then mix."""
        losses_c, x_cd = local_step(self.clients, t), self.clients.x_cd
        for at, mixed in self.exchange.mix(self.weights, x_cd):
            x_cd[:, at] = mixed
        return RoundResult(losses_c)


def dense_gossip(problem: Path) -> np.ndarray:
    """The same with all clients in one array."""
    arrays = np.load(problem)
    x_nd = np.tile(arrays["start"], (N, 1))
    for _ in range(ROUNDS):
        x_nd = ring(N) @ (x_nd - 0.1 * arrays["curvature"][:, None] * (x_nd - arrays["centers"]))
    return x_nd


def gossip(session: Session, arguments: list[str]) -> int:
    return train_with(session, arguments, Gossip)


@pytest.mark.parametrize("deterministic", ["false", "true"])
def test_a_directed_ring_gives_the_same_models_on_any_number_of_ranks(
    pool: RankPool, tmp_path: Path, deterministic: str
) -> None:
    problem = write_quadratic(tmp_path / "problem.npz", N)
    found = []
    for ranks in (1, 2, 4):
        folder = tmp_path / str(ranks)
        arguments = [
            "task.name=quadratic", f"task.file={problem}", f"run.dir={folder}", "algorithm.name=local",
            f"run.rounds={ROUNDS}", "run.dtype=float64", "optimizer.lr=0.1", "run.eval_every=0",
            f"comm.deterministic={deterministic}",
        ]  # fmt: skip
        assert pool.run(ranks, gossip, arguments) == [0] * ranks
        found.append(np.stack([x_d for _, x_d in sorted(models(folder).items())]))
    for x_nd in found:
        np.testing.assert_allclose(x_nd, dense_gossip(problem), rtol=0, atol=1e-12)
        if deterministic == "true":
            np.testing.assert_array_equal(x_nd, found[0])
