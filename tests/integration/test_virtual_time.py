"""Virtual time: CoBo with each policy, against an event clock in one array, on any number of ranks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dense_virtual_time import dense_adpsgd, dense_cobo, dense_swift
from methods import check_method, trained, write_problem
from pool import RankPool
from problems import models, rows, train

N, ROUNDS = 7, 24
VIRTUAL = ["clock.name=virtual", f"run.rounds={ROUNDS}", "run.eval_every=0"]
COBO = ["algorithm.gamma=0.3", "algorithm.rho=0.2", "optimizer.lr=0.1", "optimizer.momentum=0"]
GIVEN = {"rho": 0.2, "gamma": 0.3, "eta": 0.1}
SLOW = [1.0, 1.0, 4.0, 1.0, 1.5, 1.0, 2.0]
CASES: dict[str, tuple[list[str], dict[str, object]]] = {
    "free": (["clock.policy=free"], {}),
    "bounded": (["clock.policy=bounded", "clock.staleness=1"], {"ahead": 1}),
    "old models count less": (["clock.policy=free", "clock.discount=sqrt"], {"discount": True}),
    "late": (["clock.policy=free", "clock.latency=2.6"], {"delays": [2.6] * N}),
    "late and less": (
        ["clock.policy=free", "clock.latency=1.7", "clock.discount=sqrt"],
        {"delays": [1.7] * N, "discount": True},
    ),
    "short ticks": (
        ["clock.policy=bounded", "clock.staleness=2", "clock.tick=0.3", "clock.latency=0.4"],
        {"ahead": 2, "tick": 0.3, "delays": [0.4] * N},
    ),
}  # fmt: skip


def write_trace(folder: Path, seconds: list[float]) -> Path:
    path = folder / "trace.csv"
    lines = [f"{client},{one}" for client, one in enumerate(seconds)]
    path.write_text("\n".join(["client,seconds", *lines]) + "\n")
    return path


@pytest.mark.parametrize("coupling", ["explicit", "capped"])
@pytest.mark.parametrize("case", CASES)
def test_cobo_is_that_of_an_event_clock(
    pool: RankPool, tmp_path: Path, case: str, coupling: str
) -> None:
    problem, (keys, more) = write_problem(tmp_path, N), CASES[case]
    x, w, logged = dense_cobo(
        problem, ROUNDS, SLOW, **GIVEN, **({"tick": 1.0} | more), capped=coupling == "capped"
    )
    trace = f"clock.trace={write_trace(tmp_path, SLOW)}"
    check_method(
        pool, problem, tmp_path, (x, w),
        *VIRTUAL, *COBO, *keys, trace, f"algorithm.coupling={coupling}",
    )  # fmt: skip
    found = [
        (row["virtual_seconds"], row["staleness_max"], row["staleness_mean"])
        for row in rows(tmp_path / "True2", "round")
    ]
    np.testing.assert_allclose(np.array(found), np.array(logged))
    summary = json.loads((tmp_path / "True2" / "summary.json").read_text())
    assert summary["virtual_seconds"] == pytest.approx(logged[-1][0])


EQUAL = ["clock.policy=sync", "clock.policy=free", "clock.policy=bounded clock.staleness=0"]


@pytest.mark.parametrize("policy", EQUAL)
def test_equal_speeds_and_no_latency_are_the_rounds_without_a_clock(
    pool: RankPool, tmp_path: Path, policy: str
) -> None:
    given = [f"run.rounds={ROUNDS}", "run.dtype=float32", *COBO, "comm.deterministic=true"]
    problem = write_problem(tmp_path, N)
    x, w = trained(pool, problem, tmp_path / "rounds", 2, *given)
    same_x, same_w = trained(
        pool, problem, tmp_path / "virtual", 2, *given, "clock.name=virtual", *policy.split()
    )
    assert np.array_equal(x, same_x)
    assert np.array_equal(w, same_w)
    assert [row["virtual_seconds"] for row in rows(tmp_path / "virtual", "round")] == [
        float(r) for r in range(1, ROUNDS + 1)
    ]
    mine, theirs = (
        [
            {
                k: v
                for k, v in row.items()
                if k not in ("seconds", "virtual_seconds") and "stale" not in k
            }
            for row in rows(tmp_path / folder, "round")
        ]
        for folder in ("rounds", "virtual")
    )
    assert mine == theirs


def test_a_synchronous_round_lasts_as_long_as_its_slowest_client_works_and_sends(
    pool: RankPool, tmp_path: Path
) -> None:
    """A model of 5 numbers in float32 takes 20 bytes: 2 s at 10 bytes a second."""
    problem = write_problem(tmp_path, N)
    folder = tmp_path / "run"
    arguments = [
        "task.name=quadratic", f"task.file={problem}", f"run.dir={folder}", "run.rounds=6",
        "participation.count=3", "clock.name=virtual", "clock.slow_clients=[2]", "clock.slow_factor=5",
        "clock.latency=0.25", "clock.bandwidth=1e-5",
    ]  # fmt: skip
    assert pool.run(1, train, arguments) == [0]
    acts = [row["acts"] for row in rows(folder, "timeline")]
    lasts = [2.25 + (5.0 if 2 in one else 1.0) for one in acts]
    assert {len(one) for one in acts} == {3}
    assert len(set(lasts)) == 2
    found = [row["virtual_seconds"] for row in rows(folder, "round")]
    np.testing.assert_allclose(found, np.cumsum(lasts))
    assert {row["staleness_max"] for row in rows(folder, "round")} == {0}


def test_the_timeline_says_what_clients_do(pool: RankPool, tmp_path: Path) -> None:
    """Client 2 takes three times as long, and others may be one round of work ahead."""
    problem, folder = write_problem(tmp_path, 4), tmp_path / "run"
    arguments = [
        "task.name=quadratic", f"task.file={problem}", f"run.dir={folder}", "run.rounds=7",
        "clock.name=virtual", "clock.policy=bounded", "clock.staleness=1", "clock.slow_clients=2",
        "clock.slow_factor=3", "algorithm.sampling.name=all",
    ]  # fmt: skip
    assert pool.run(2, train, arguments) == [0, 0]
    found = rows(folder, "timeline")
    fast = [0, 1, 3]
    assert [row["virtual_seconds"] for row in found] == [1, 2, 3, 4, 6, 7, 9]
    assert [row["acts"] for row in found] == [fast, fast, [2], fast, [2], fast, [2]]
    assert [row["waits"] for row in found] == [[], [], fast, [], fast, [], fast]
    assert found[0]["begins"] == [0, 1, 2, 3]
    assert found[3]["begins"] == [0, 1, 2, 3]
    pairs = [[0, 1], [0, 3], [1, 3]]
    assert [row["met"] for row in found] == [pairs, pairs, [], pairs, [], pairs, []]


def test_a_client_that_acts_alone_moves_no_other(pool: RankPool, tmp_path: Path) -> None:
    problem, folder = write_problem(tmp_path, N), tmp_path
    found = []
    for rounds in (4, 5):
        keys = ["clock.name=virtual", "clock.policy=free", f"run.rounds={rounds}", *COBO]
        trace = write_trace(tmp_path, [10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0])
        run = folder / str(rounds)
        trained(pool, problem, run, 2, *keys, f"clock.trace={trace}", "clock.tick=1")
        found.append(np.stack(list(models(run).values())))
    moved = (found[0] != found[1]).any(axis=1)
    assert moved.tolist() == [False, False, False, False, True, False, False]


@pytest.mark.parametrize("graph", ["complete", "ring"])
@pytest.mark.parametrize("ahead", [None, 1])
def test_adpsgd_steps_from_where_the_work_began(
    pool: RankPool, tmp_path: Path, ahead: int | None, graph: str
) -> None:
    problem = write_problem(tmp_path, N)
    x = dense_adpsgd(problem, ROUNDS, SLOW, eta=0.1, ahead=ahead, graph=graph)
    policy = "free" if ahead is None else f"bounded clock.staleness={ahead}"
    check_method(
        pool, problem, tmp_path, (x, np.ones((N, N))), *VIRTUAL, *f"clock.policy={policy}".split(),
        "algorithm.name=adpsgd", f"algorithm.graph={graph}", "optimizer.lr=0.1", "optimizer.momentum=0",
        f"clock.trace={write_trace(tmp_path, SLOW)}",
    )  # fmt: skip
    met = [row["met"] for row in rows(tmp_path / "True2", "timeline")]
    assert [len(one) for one in met] == [
        len(row["acts"]) for row in rows(tmp_path / "True2", "timeline")
    ]


SWIFT: dict[str, tuple[list[str], dict[str, object]]] = {
    "complete": ([], {"every": 1, "ring": False}),
    "ring, every third": (
        ["algorithm.graph=ring", "algorithm.every=3"], {"every": 3, "ring": True}
    ),
    "late and less": (
        ["algorithm.graph=ring", "clock.latency=1.7", "clock.discount=sqrt"],
        {"every": 1, "ring": True, "delay": 1.7, "discount": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SWIFT)
def test_swift_averages_with_what_it_holds(pool: RankPool, tmp_path: Path, case: str) -> None:
    problem, (keys, more) = write_problem(tmp_path, N), SWIFT[case]
    x = dense_swift(problem, ROUNDS, SLOW, eta=0.1, **more)
    check_method(
        pool, problem, tmp_path, (x, np.ones((N, N))), *VIRTUAL, "clock.policy=free", *keys,
        "algorithm.name=swift", "optimizer.lr=0.1", "optimizer.momentum=0",
        f"clock.trace={write_trace(tmp_path, SLOW)}",
    )  # fmt: skip


def test_clients_that_join_and_leave_have_speeds_too(pool: RankPool, tmp_path: Path) -> None:
    """Client 6 joins before round 9, and client 2, the slowest, leaves before round 15."""
    events = tmp_path / "events.csv"
    events.write_text("round,client,event\n9,6,join\n15,2,leave\n")
    problem, trace = write_problem(tmp_path, N), write_trace(tmp_path, SLOW)
    keys = [
        *VIRTUAL, *COBO, "clock.policy=bounded", "clock.staleness=1", "clock.latency=1.5",
        f"clock.trace={trace}", f"membership={events}", "membership.start=mean",
        "comm.deterministic=true",
    ]  # fmt: skip
    found = [trained(pool, problem, tmp_path / str(ranks), ranks, *keys) for ranks in (1, 2, 3)]
    for x, w in found[1:]:
        assert np.array_equal(x, found[0][0])
        assert np.array_equal(w, found[0][1])
    shown = rows(tmp_path / "3", "timeline")
    acts = [set(row["acts"]) for row in shown]
    assert not any(6 in one for one in acts[:8])
    assert not any(2 in one for one in acts[14:])
    assert any(6 in one for one in acts[8:])
    assert 6 in shown[8]["begins"]
    assert [row["waits"] for row in shown[16:]] == [
        [i for i in row["waits"] if i != 2] for row in shown[16:]
    ]
    assert all(acts)
