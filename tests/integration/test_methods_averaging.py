"""Methods that average whole models, parts of them, or their changes: each against a twin on one array.

The twins are written from the papers: in numpy for Example 2, in plain torch for methods that split a model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from methods import DenseClients, check_method, trained
from pool import RankPool
from problems import QUIET, write_quadratic

from cobo_dist.cli import plan
from cobo_dist.cli.train import main
from cobo_dist.maths import seeds

N, ETA, ROUNDS = 7, 0.1, 6
EXAMPLES = np.array([3, 1, 2, 5, 1, 4, 2])  # also the steps of an epoch of each client
ONES = np.ones((N, N))


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("problem")
    return write_quadratic(folder / "problem.npz", N, 5, clusters=3, examples=EXAMPLES)


def taking_part(t: int, count: int = N) -> list[int]:
    return seeds.permutation(seeds.key(0, "clients", t), N).tolist()[:count]


def run(problem: Path, folder: Path, *more: str) -> list[str]:
    return [
        "task.name=quadratic", f"task.file={problem}", "run.dtype=float64", f"run.rounds={ROUNDS}",
        f"run.dir={folder}", *more,
    ]  # fmt: skip


Refused = Callable[..., str]


@pytest.fixture
def refused(problem: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Start a run that must be refused in one line, which is returned; nothing may be written."""

    def check(*arguments: str, quadratic: bool = True) -> str:
        folder = tmp_path / "refused"
        task = run(problem, folder) if quadratic else [f"run.dir={folder}"]
        assert main([*QUIET, *task, *arguments]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert not folder.exists()
        return line

    return check


# -- FedProx -------------------------------------------------------------------------------------------


def dense_fedprox(problem: Path, mu: float, work: list[int], count: int, sizes: Any) -> np.ndarray:
    dense = DenseClients(problem, ETA)
    for t in range(ROUNDS):
        x, part = dense.x[0], taking_part(t, count)
        ys = [dense.local_work(i, x, work[i], lambda y, x=x: mu * (y - x)) for i in part]
        dense.x[:] = np.average(ys, axis=0, weights=[sizes[i] for i in part])
    return dense.x


@pytest.mark.parametrize(
    ("more", "work", "count", "sizes"),
    [
        (["local.steps=3"], [3] * N, N, [1] * N),
        (
            ["local.epochs=1", "participation.count=3", "algorithm.weighting=examples"],
            EXAMPLES.tolist(),
            3,
            EXAMPLES,
        ),
    ],
    ids=["steps", "epochs of some, by examples"],
)
def test_fedprox(
    pool: RankPool, problem: Path, tmp_path: Path, more: list[str], work: list[int], count: int,
    sizes: Any,
) -> None:  # fmt: skip
    expected = dense_fedprox(problem, 0.7, work, count, sizes), ONES
    check_method(
        pool, problem, tmp_path, expected, "algorithm.name=fedprox", "algorithm.mu=0.7",
        f"run.rounds={ROUNDS}", *more,
    )  # fmt: skip


def test_fedprox_without_a_pull_is_fedavg(pool: RankPool, problem: Path, tmp_path: Path) -> None:
    """And the pull counts: with it, models are others."""
    steps = ["local.steps=3", f"run.rounds={ROUNDS}"]
    fedavg, none, some = (
        trained(pool, problem, tmp_path / str(number), 2, *steps, *one)[0]
        for number, one in enumerate(
            (
                ["algorithm.name=fedavg"],
                ["algorithm.name=fedprox", "algorithm.mu=0"],
                ["algorithm.name=fedprox", "algorithm.mu=0.1"],
            )
        )
    )
    assert np.array_equal(fedavg, none)
    assert np.abs(fedavg - some).max() > 1e-4


@pytest.mark.parametrize("command", ["train", "plan"])
def test_fedprox_with_one_step_is_refused(
    refused: Refused, problem: Path, tmp_path: Path, command: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Also where an epoch is one batch for every client; a run that one client's epoch saves is none."""
    ones = write_quadratic(tmp_path / "ones.npz", N)  # one example each
    cases = {
        "local.steps=1": ["algorithm.mu=0.1"],
        "local.epochs=1": ["local.epochs=1", f"task.file={ones}"],
    }
    for given, more in cases.items():
        if command == "train":
            line = refused("algorithm.name=fedprox", *more)
        else:
            assert (
                plan.main([*run(problem, tmp_path), "algorithm.name=fedprox", "ranks=2", *more])
                == 2
            )
            (line,) = capsys.readouterr().err.strip().splitlines()
        assert "algorithm.mu=0.1 is FedAvg" in line
        assert f"raise {given}, or set algorithm.name=fedavg" in line
    fine = run(problem, tmp_path / "run", "algorithm.name=fedprox", "local.epochs=1")
    assert main([*QUIET, *fine]) == 0
