"""What tests of methods share: Example 2 in one array, and runs of a method on several numbers of ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from pool import RankPool
from problems import models, train_and_weights, write_quadratic

RANKS = (1, 2, 3)


class DenseClients:
    """Clients of Example 2 with exact gradients a_i (x - mu_i), all models in one array `x` [n, d]."""

    def __init__(self, problem: Path, eta: float) -> None:
        arrays = np.load(problem)
        self.centers, self.a, self.start = arrays["centers"], arrays["curvature"], arrays["start"]
        self.n, self.eta = len(self.a), eta
        self.x = np.tile(self.start, (self.n, 1))

    def gradient(self, i: int, point_d: np.ndarray) -> np.ndarray:
        return self.a[i] * (point_d - self.centers[i])

    def loss(self, i: int, point_d: np.ndarray) -> float:
        return 0.5 * self.a[i] * float(np.sum((point_d - self.centers[i]) ** 2))

    def local_work(
        self,
        i: int,
        point_d: np.ndarray,
        steps: int,
        more: Callable[[np.ndarray], np.ndarray] = np.zeros_like,
    ) -> np.ndarray:
        """Return the model after gradient steps from a point, each with `more(x)` added to its gradient."""
        for _ in range(steps):
            point_d = point_d - self.eta * (self.gradient(i, point_d) + more(point_d))
        return point_d


def write_problem(folder: Path, clients: int = 7, size: int = 5, clusters: int = 3) -> Path:
    """Write a problem for `DenseClients` and `check_method`."""
    return write_quadratic(folder / "problem.npz", clients, size, clusters=clusters)


def trained(
    pool: RankPool, problem: Path, folder: Path, ranks: int, *arguments: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the final models [n, d] and W [n, n] of a run in float64."""
    run = [
        "task.name=quadratic", f"task.file={problem}", "run.dtype=float64", f"run.dir={folder}", *arguments
    ]  # fmt: skip
    weights = pool.run(ranks, train_and_weights, run)
    return np.stack(list(models(folder).values())), np.concatenate(weights)


def check_method(
    pool: RankPool,
    problem: Path,
    folder: Path,
    expected: tuple[np.ndarray, np.ndarray],
    *arguments: str,
) -> None:
    """Models and W on 1, 2 and 3 ranks are the expected ones, and bitwise the same when deterministic."""
    for deterministic in (False, True):
        found = [
            trained(
                pool, problem, folder / f"{deterministic}{ranks}", ranks, *arguments,
                f"comm.deterministic={str(deterministic).lower()}",
            )
            for ranks in RANKS
        ]  # fmt: skip
        for x, w in found:
            np.testing.assert_allclose(x, expected[0], rtol=0, atol=1e-10)
            np.testing.assert_allclose(w, expected[1], rtol=0, atol=1e-10)
            if deterministic:
                assert np.array_equal(x, found[0][0])
                assert np.array_equal(w, found[0][1])


NEEDS = {
    "fedprox": ("local.steps=2",),
    "feddrift": ("algorithm.period=2",),  # so that short runs compare losses
    "fedrep": ("local.steps=2",),
    "fedbn": ("model.norm=batch",),
    "fedsa_lora": ("algorithm.shared=[1.weight]",),
    "ffa_lora": ("algorithm.frozen=[1.weight]",),
    "pens": ("algorithm.best=1",),  # with 3 clients in a round
    "scaffold": ("optimizer.name=sgd", "optimizer.momentum=0"),
}
"""Settings without which an algorithm refuses to start, or does nothing of its own in a short run."""

SPLIT_MODELS = ("fedper", "fedrep", "fedbabu", "lg_fedavg", "fedbn", "fedsa_lora", "ffa_lora")
"""Methods that share a part of the model, so that Example 2 has none for them: its model is one vector."""


def settings_of(name: str) -> list[str]:
    """Return the arguments of an algorithm, to follow others."""
    return [f"algorithm.name={name}", *NEEDS.get(name, ())]
