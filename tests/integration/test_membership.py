"""Clients that join and leave: on any number of ranks, resumed, and with every algorithm."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from methods import settings_of, write_problem
from pool import RankPool
from problems import models, rows, train, train_and_weights, write_quadratic
from resuming import assert_same, stopped

from cobo_dist.algorithms.base import Newcomers, RoundResult
from cobo_dist.algorithms.registry import ALGORITHMS
from cobo_dist.comm.session import Session
from cobo_dist.config import load_config
from cobo_dist.errors import EXIT_STOPPED, ConfigError
from cobo_dist.planning.dry_run import DryRun
from cobo_dist.tasks.registry import build_task
from cobo_dist.training.preparation import refuse_unfit
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
        "comm.check=true",
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


def test_events_before_round_1_and_of_all_but_one_client(pool: RankPool, tmp_path: Path) -> None:
    """Who joins before round 1 is in the run from the start; a single client finds nobody to be like."""
    events = [(1, client, "leave") for client in range(5)] + [
        (1, 6, "join"),
        (3, 5, "leave"),
        (4, 0, "join"),
    ]
    for start in STARTS:
        run = [
            *quadratic(tmp_path, *events),
            f"membership.start={start}",
            "comm.deterministic=true",
        ]
        for ranks in (1, 3):
            pool.run(ranks, train, [*run, f"run.dir={tmp_path / f'{start}{ranks}'}"])
        assert_same(tmp_path / f"{start}1", tmp_path / f"{start}3")
        evaluated = {
            row["client"] for row in rows(tmp_path / f"{start}1", "eval") if not row["round"]
        }
        assert evaluated == {None, 5, 6}


def test_a_plan_counts_the_clients_of_each_round(pool: RankPool, tmp_path: Path) -> None:
    """While W keeps its start, what 2 ranks send in each round is what the plan says."""
    run = [
        *quadratic(tmp_path, (5, 1, "join"), (7, 2, "leave"), (9, 3, "leave")), "algorithm.gamma=0",
        "algorithm.sampling.rate=3", f"run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    pool.run(2, train, run)
    config = load_config(None, run)
    task = build_task(config.task, config.model, config.data, 0, torch.float64)
    dry_run = DryRun(config, task, 2)
    sent = {row["round"]: row["bytes_sent"] for row in rows(tmp_path / "run", "round")}
    planned = {r: dry_run.round(r, r - 1).total for r in sent}
    assert planned == sent
    assert len(set(sent.values())) > 1


# -- by hand -----------------------------------------------------------------------------------------

ETA = 0.25
BY_HAND = (
    "run.dtype=float64", f"optimizer.lr={ETA}", "optimizer.momentum=0", "algorithm.rho=0",
    "algorithm.gamma=1", "algorithm.sampling.name=all", "run.eval_every=0",
)  # fmt: skip


def write_two_clusters(folder: Path) -> Path:
    """Two clients around (4, 0), two around (-4, 0), and one at (-3, 1) that starts between them."""
    centers = np.array([[4.0, 0.5], [4.0, -0.5], [-4.0, 1.0], [-4.0, -1.0], [-3.0, 1.0]])
    path = folder / "two.npz"
    np.savez(
        path, centers=centers, curvature=np.array([1.0, 1.5, 1.0, 0.5, 1.0]), start=np.zeros(2)
    )
    return path


def start_of(problem: Path, client: int, after_d: np.ndarray) -> np.ndarray:
    """Return the model from which one gradient step leads to `after_d`."""
    arrays = np.load(problem)
    a, center = arrays["curvature"][client], arrays["centers"][client]
    return (after_d - ETA * a * center) / (1.0 - ETA * a)


@pytest.mark.parametrize("start", STARTS)
def test_newcomers_start_as_computed_by_hand(pool: RankPool, tmp_path: Path, start: str) -> None:
    """W has parted the two clusters by round 4, so they are its components."""
    problem = write_two_clusters(tmp_path)
    run = [
        "task.name=quadratic", f"task.file={problem}", *BY_HAND, "run.rounds=4",
        f"membership={write_events(tmp_path, (4, 4, 'join'))}", f"membership.start={start}",
        f"run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    (x,) = pool.run(1, models_by_round, run)
    arrays, before = np.load(problem), x[3][:4]
    a, centers = arrays["curvature"], arrays["centers"]
    means = {
        "left": before[2:].mean(axis=0),
        "all": before.mean(axis=0),
        "right": before[:2].mean(0),
    }
    losses = {name: np.sum((one - centers[4]) ** 2) for name, one in means.items()}
    own = a[:4, None] * (before - centers[:4])
    there = a[4] * (before - centers[4])
    cosines = (own * there).sum(1) / np.linalg.norm(own, axis=1) / np.linalg.norm(there, axis=1)
    expected = {
        "common": np.zeros(2),
        "mean": means["all"],
        "best_component": means[min(losses, key=losses.__getitem__)],
        "nearest": before[int(cosines.argmax())],
    }[start]
    np.testing.assert_allclose(start_of(problem, 4, x[4][4]), expected, rtol=0, atol=1e-12)
    assert not np.allclose(expected, means["all"]) or start == "mean"
    (row,) = rows(tmp_path / "run", "joined")
    models_of = {"common": (0, None), "mean": (4, 0), "best_component": (2, 2), "nearest": (1, 2)}
    assert (row["models"], row["first_model"]) == models_of[start]


@pytest.mark.parametrize("weights", ["ones", "zeros"])
def test_a_newcomer_gets_its_row_and_column(pool: RankPool, tmp_path: Path, weights: str) -> None:
    first = {"ones": "zeros", "zeros": "ones"}[weights]
    run = [
        "task.name=quadratic", f"task.file={write_two_clusters(tmp_path)}", *BY_HAND, "run.rounds=3",
        "algorithm.sampling.rate=0", f"algorithm.start={first}", f"membership.weights={weights}",
        f"membership={write_events(tmp_path, (2, 3, 'join'))}",
    ]  # fmt: skip
    found = [
        np.concatenate(pool.run(r, train_and_weights, [*run, f"run.dir={tmp_path / str(r)}"]))
        for r in (1, 2)
    ]
    expected = np.full((5, 5), float(first == "ones"))
    expected[3] = expected[:, 3] = float(weights == "ones")
    off = ~np.eye(5, dtype=bool)
    for w in found:
        assert np.array_equal(w[off], expected[off])


def test_first_weights_of_newcomers_are_symmetric() -> None:
    company = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]], dtype=bool)
    new = Newcomers(np.array([3, 4, 5]), np.array([False, False, False]), company, "component")
    w = np.full((6, 6), np.nan)
    for ids in ([0, 3, 4], [1, 2, 5]):
        at, others, values = new.entries(ids, 6)
        w[np.array(ids)[at], others] = values
    expected = np.array([[1, 1, 0, 0, 0, 1], [0, 0, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0]], dtype=float)
    off = ~np.eye(6, dtype=bool)
    assert np.array_equal(w[3:][off[3:]], expected[off[3:]])
    assert np.array_equal(w[off], w.T[off], equal_nan=True)
    assert np.isnan(w[:3, :3]).all()
    back = Newcomers(np.array([3, 4]), np.array([True, False]), company[:2], "ones")
    at, others, values = back.entries(range(6), 6)
    assert {
        (i, j) for i, j in zip(at.tolist(), others.tolist(), strict=True) if 4 not in (i, j)
    } == set()
    assert values.all()


def test_a_newcomer_of_fedavg_gets_the_common_model(pool: RankPool, tmp_path: Path) -> None:
    problem = write_two_clusters(tmp_path)
    run = [
        "task.name=quadratic", f"task.file={problem}", "run.dtype=float64", f"optimizer.lr={ETA}",
        "optimizer.momentum=0", "algorithm.name=fedavg", "run.rounds=3", f"run.dir={tmp_path / 'run'}",
        f"membership={write_events(tmp_path, (3, 4, 'join'))}",
    ]  # fmt: skip
    (x,) = pool.run(1, models_by_round, run)
    arrays, common = np.load(problem), x[2][0]
    stepped = common - ETA * arrays["curvature"][:, None] * (common - arrays["centers"])
    np.testing.assert_allclose(x[3], np.tile(stepped.mean(axis=0), (5, 1)), rtol=0, atol=1e-12)
    (row,) = rows(tmp_path / "run", "joined")
    assert row["start"] == "group"


def test_leaving_changes_no_bit_of_clients_without_a_link(pool: RankPool, tmp_path: Path) -> None:
    problem = write_two_clusters(tmp_path)
    run = [
        "task.name=quadratic", f"task.file={problem}", *BY_HAND, "algorithm.rho=0.1", "run.rounds=9",
        "comm.deterministic=true",
    ]  # fmt: skip
    events = write_events(tmp_path, (5, 2, "leave"), (5, 3, "leave"), (5, 4, "leave"))
    pool.run(2, train, [*run, f"run.dir={tmp_path / 'all'}"])
    pool.run(2, train, [*run, f"membership={events}", f"run.dir={tmp_path / 'half'}"])
    whole, half = models(tmp_path / "all"), models(tmp_path / "half")
    same = {name: np.array_equal(value, half[name]) for name, value in whole.items()}
    assert list(same.values()) == [True, True, False, False, False]


def test_pairs_of_newcomers_are_drawn_more_often(pool: RankPool, tmp_path: Path) -> None:
    problem = write_quadratic(tmp_path / "problem.npz", 12, 3, clusters=2)
    run = [
        "task.name=quadratic", f"task.file={problem}", "run.rounds=60", "membership.sampling_rounds=30",
        f"membership={write_events(tmp_path, (21, 5, 'join'), (21, 7, 'join'))}",
    ]  # fmt: skip
    drawn = {}
    for factor in (1, 12):
        folder = tmp_path / str(factor)
        pool.run(1, train, [*run, f"membership.sampling_factor={factor}", f"run.dir={folder}"])
        drawn[factor] = [row["pairs"] for row in rows(folder, "round")]
    more = np.subtract(drawn[12], drawn[1])
    assert not more[:20].any()
    assert not more[50:].any()
    # At 12 times 1/12 every pair of the two is drawn: 2 * 10 + 1 of them.
    assert min(drawn[12][20:50]) >= 21


REFUSALS = {
    "participation.count=8": "participation.count=8, but in round 1 only 7 clients are in the run",
    "membership.leaves=1": "both say who joins and leaves",
    "membership.file=none.csv": "membership.file=none.csv does not exist",
    "run.rounds=3": "line 2: round 4 comes after the last, run.rounds=3",
    "membership.start=nearby": "membership.start='nearby' is none of common, mean, best_component, nearest",
    "membership.sampling_factor=2 algorithm.name=fedavg": "algorithm.name=fedavg draws none here; drop it",
    "membership.sampling_factor=0.5": "membership.sampling_factor=0.5 is refused",
    "participation.dropout=1": "participation.dropout=1 is refused",
    "participation.trace=TRACE": "no client of the run is available in round 1",
}


def checked(arguments: list[str]) -> None:
    config = load_config(None, arguments)
    refuse_unfit(config, build_task(config.task, config.model, config.data, 0, torch.float32))


@pytest.mark.parametrize("argument", REFUSALS)
def test_scenarios_that_do_not_fit_the_run_are_refused(tmp_path: Path, argument: str) -> None:
    events = write_events(tmp_path, (4, 1, "join"))
    trace = tmp_path / "trace.csv"
    spans = [f"{client},{1 if client == 1 else 2},9" for client in range(8)]
    trace.write_text("\n".join(["client,from,to", *spans]))
    arguments = [
        "run.rounds=9",
        f"membership={events}",
        *argument.replace("TRACE", str(trace)).split(),
    ]
    with pytest.raises(ConfigError) as caught:
        checked(arguments)
    assert REFUSALS[argument] in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_another_file_of_events_is_another_run(pool: RankPool, tmp_path: Path) -> None:
    run = [*quadratic(tmp_path, *EVENTS), "log.flush_every=1", f"run.dir={tmp_path / 'run'}"]
    assert pool.run(1, stopped, run, 0, 4, 15) == [EXIT_STOPPED]
    write_events(tmp_path, *EVENTS[:-1])
    with pytest.raises(AssertionError, match="was written with other data"):
        pool.run(1, train, [*run, "run.resume=auto"])
    write_events(tmp_path, *EVENTS)
    moved = (tmp_path / "events.csv").rename(tmp_path / "moved.csv")
    again = [one for one in run if not one.startswith("membership=")]
    pool.run(1, train, [*again, f"membership={moved}", "run.resume=auto"])


@pytest.mark.parametrize("name", ["cobo", "fedavg", "ditto", "ifca", "validation_based"])
def test_failing_and_unavailable_clients_on_any_number_of_ranks(
    pool: RankPool, tmp_path: Path, name: str
) -> None:
    trace = tmp_path / "trace.csv"
    spans = [f"{client},{1 + client % 3},{9 - client % 2}" for client in range(7)]
    trace.write_text("\n".join(["client,from,to", *spans, "6,10,12", "5,10,12"]))
    run = [
        *quadratic(tmp_path, (5, 1, "join")), *settings_of(name), "participation.dropout=0.3",
        f"participation.trace={trace}", "comm.deterministic=true",
    ]  # fmt: skip
    run = [one for one in run if name == "cobo" or not one.startswith("algorithm.gamma")]
    for ranks in (1, 2):
        pool.run(ranks, train, [*run, f"run.dir={tmp_path / str(ranks)}"])
    assert_same(tmp_path / "1", tmp_path / "2")
