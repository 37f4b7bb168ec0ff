"""Clients that join and leave: on any number of ranks, resumed, and with every algorithm."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from methods import settings_of, write_problem
from pool import RankPool
from problems import models, rows, train
from resuming import assert_same, stopped

from cobo_dist.algorithms.base import RoundResult
from cobo_dist.algorithms.registry import ALGORITHMS
from cobo_dist.comm.session import Session
from cobo_dist.errors import EXIT_STOPPED
from cobo_dist.training.trainer import Trainer

STARTS = ("common", "mean", "best_component", "nearest")


def write_events(folder: Path, *events: tuple[int, int, str]) -> Path:
    file = folder / "events.csv"
    lines = [f"{r},{client},{event}" for r, client, event in events]
    file.write_text("\n".join(["round,client,event", *lines, ""]))
    return file


def quadratic(folder: Path, *events: tuple[int, int, str]) -> list[str]:
    """Return the arguments of a run with 7 clients in 3 clusters and these events."""
    problem = write_problem(folder)
    return [
        "task.name=quadratic", f"task.file={problem}", "run.dtype=float64", "optimizer.lr=0.2",
        "algorithm.gamma=0.5", "run.rounds=12", "run.eval_every=4", "run.log_weights_every=4",
        "optimizer.momentum=0.5", f"membership={write_events(folder, *events)}",
    ]  # fmt: skip


EVENTS = ((5, 1, "join"), (5, 6, "join"), (7, 2, "leave"), (9, 2, "join"), (9, 3, "leave"))


@pytest.mark.parametrize("start", STARTS)
def test_any_number_of_ranks_gives_the_same_bits(
    pool: RankPool, tmp_path: Path, start: str
) -> None:
    run = [
        *quadratic(tmp_path, *EVENTS), f"membership.start={start}", "membership.weights=component",
        "membership.sampling_factor=5", "membership.sampling_rounds=3", "algorithm.sampling.rate=3",
        "comm.deterministic=true",
    ]  # fmt: skip
    for ranks in (1, 2, 3):
        pool.run(ranks, train, [*run, f"run.dir={tmp_path / str(ranks)}"])
    assert_same(tmp_path / "1", tmp_path / "2")
    assert_same(tmp_path / "1", tmp_path / "3")
    joined = rows(tmp_path / "1", "joined")
    assert [(row["round"], row["client"], row["start"]) for row in joined] == [
        (5, 1, start), (5, 6, start), (9, 2, "own")
    ]  # fmt: skip
    assert [(row["round"], row["client"]) for row in rows(tmp_path / "1", "left")] == [
        (7, 2),
        (9, 3),
    ]


@pytest.mark.parametrize("r", [4, 5, 8])
def test_a_run_killed_around_events_resumes_to_the_same_bits(
    pool: RankPool, tmp_path: Path, r: int
) -> None:
    run = [
        *quadratic(tmp_path, *EVENTS), "membership.start=best_component", "comm.deterministic=true",
        "membership.sampling_factor=5", "log.flush_every=1", "algorithm.margin=1",
    ]  # fmt: skip
    pool.run(2, train, [*run, f"run.dir={tmp_path / 'whole'}"])
    broken = [*run, f"run.dir={tmp_path / 'broken'}"]
    assert pool.run(2, stopped, broken, 1, r, 15) == [EXIT_STOPPED] * 2
    pool.run(1, train, [*broken, "run.resume=auto"])
    assert_same(tmp_path / "whole", tmp_path / "broken")


def test_clients_that_move_between_ranks_change_no_number(pool: RankPool, tmp_path: Path) -> None:
    run = [*quadratic(tmp_path, *EVENTS), "membership.start=nearest", "comm.deterministic=true"]
    pool.run(1, train, [*run, f"run.dir={tmp_path / 'one'}"])
    moving = ["comm.placement=adaptive", "comm.placement_every=2", f"run.dir={tmp_path / 'moving'}"]
    pool.run(3, train, [*run, *moving])
    for name, value in models(tmp_path / "one").items():
        assert np.array_equal(value, models(tmp_path / "moving")[name]), name


def models_by_round(session: Session, arguments: list[str]) -> list[np.ndarray]:
    """Train on one rank; return all models [n, d] before training and after each round."""
    found = []
    keep = Trainer._round

    def recorded(self: Trainer, t: int) -> RoundResult:
        found.extend([] if found else [self.learner.clients.x_cd.numpy().copy()])
        result = keep(self, t)
        found.append(self.learner.clients.x_cd.numpy().copy())
        return result

    with mock.patch.object(Trainer, "_round", recorded):
        assert train(session, arguments) == 0
    return found


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_survives_joins_and_leaves(
    pool: RankPool, tmp_path: Path, name: str
) -> None:
    """Absent models rest, results are of members, and a client that returns is in it again."""
    events = write_events(
        tmp_path, (2, 1, "join"), (3, 4, "leave"), (4, 4, "join"), (4, 0, "leave")
    )
    run = [
        "task.name=digits", "model.hidden=[4]", "data.batch_size=16", "run.rounds=4", "run.eval_every=2",
        "log.flush_every=1", "run.engine=one_by_one", *settings_of(name), f"membership={events}",
        f"run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    (x,) = pool.run(1, models_by_round, run)
    assert np.array_equal(x[0][1], x[1][1]), "it has not joined"
    assert np.array_equal(x[2][4], x[3][4]), "it is away in round 3"
    assert np.array_equal(x[3][0], x[4][0]), "it has left"
    assert not np.array_equal(x[3][2], x[4][2])
    assert np.isfinite(x).all()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [one["loss"] is None for one in summary["per_client"]] == [True] + [False] * 7
    losses = [one["loss"] for one in summary["per_client"][1:]]
    assert summary["final"]["loss"] == pytest.approx(np.mean(losses))
    evaluated = {row["client"] for row in rows(tmp_path / "run", "eval") if row["round"] == 0}
    assert evaluated == {None, 0, *range(2, 8)}
    weights = np.load(tmp_path / "run" / "W.npz")["weights"]
    assert not np.concatenate([weights[0, 1], weights[0, :, 1]]).any()
    assert not np.concatenate([weights[-1, 0], weights[-1, :, 0]]).any()
