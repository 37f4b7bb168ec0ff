"""Ends of a run with NCCL: no rank waits for kernels that wait for a peer, and each says why it ended."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_nccl import install

from cobo_dist.comm.startup.start_guard import REPEATED_SIGNAL_SECONDS
from stress import ranks
from stress.problem import arguments, write_problem
from stress.ranks import Run, wait_for

LATEST_SECONDS = 15.0
FAULT_ROUND = 6


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Remove the variables of a launcher."""
    with ranks.environment():
        yield


def start(tmp_path: Path, fault: str, rank: int, *more: str) -> Run:
    """Start three ranks; one of them comes to the fault."""
    run = arguments(write_problem(tmp_path / "p.npz"), 200, 5, *more, f"run.dir={tmp_path / 'run'}")
    where = (install, (fault, rank, FAULT_ROUND, str(tmp_path)))
    return ranks.start(3, run, tmp_path / "logs", fault=where)


def aborted(tmp_path: Path) -> list[int]:
    """Return the ranks that aborted their group."""
    return sorted(int(path.name.removeprefix("aborted_")) for path in tmp_path.glob("aborted_*"))


def test_a_run_without_a_fault_ends_well(tmp_path: Path) -> None:
    run = start(tmp_path, "none", 0, "run.rounds=8")
    assert {one.code for one in run.end(60.0).values()} == {0}
    assert aborted(tmp_path) == []
    assert "timeout: 120.0" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raises", ["failed in round 6: ValueError: a bug"]),
        ("memory", ["failed in round 6: out of memory on the GPU", "run.engine=one_by_one"]),
        ("gpu", ["failed in round 6: the GPU failed", "illegal memory access", "nvidia-smi"]),
    ],
)
def test_a_rank_that_fails_says_why(
    tmp_path: Path, fault: str, words: list[str], rank: int
) -> None:
    run = start(tmp_path, fault, rank)
    ended = run.end(60.0)
    assert {one.code for one in ended.values()} == {1}
    lines = [line for one in ended.values() for line in one.said]
    reason = json.loads((tmp_path / "run" / "status.json").read_text())["reason"]
    for word in words:
        assert word.removeprefix("failed in round 6: ") in reason
        if rank:
            assert any(word in line and f"rank {rank} on" in line for line in lines), lines
    assert not any("run.threads" in line or "lost contact" in line for line in lines), lines
    assert aborted(tmp_path) == [0, 1, 2]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_is_named(tmp_path: Path, rank: int) -> None:
    run = start(tmp_path, "killed", rank)
    run.wait(60.0, [rank])
    run.restart_clock()
    ended = run.end(LATEST_SECONDS)
    assert ended.pop(rank).code == -signal.SIGKILL
    assert {one.code for one in ended.values()} == {1}
    lines = [line for one in ended.values() for line in one.said]
    assert len(lines) == 1, lines
    assert f"nothing was heard of rank {rank} on" in lines[0]
    assert "in round 6" in lines[0]
    assert aborted(tmp_path) == sorted(ended)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_stopped_is_named(tmp_path: Path, rank: int) -> None:
    """It keeps its connections, so comm.timeout decides, and nothing beside it takes long."""
    run = start(tmp_path, "stopped", rank, "comm.timeout=4")
    others = [one for one in range(3) if one != rank]
    assert wait_for((tmp_path / "fault").exists, run, 60.0)
    run.restart_clock()
    run.wait(LATEST_SECONDS, others)
    run.signal(rank, signal.SIGCONT)
    ended = run.end(60.0)
    assert {one.code for one in ended.values()} == {1}
    lines = [line for one in others for line in ended[one].said]
    assert any(f"nothing was heard of rank {rank} on" in line for line in lines), lines
    assert min(ended[one].seconds for one in others) > 4.0
    assert max(ended[one].seconds for one in others) < LATEST_SECONDS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_while_a_peer_is_late_stops_the_run_in_order(tmp_path: Path, number: int) -> None:
    run = start(tmp_path, "late", 1)
    assert wait_for((tmp_path / "fault").exists, run, 60.0)
    run.signal(0, number)
    ended = run.end(60.0)
    assert {one.code for one in ended.values()} == {75}
    assert json.loads((tmp_path / "run" / "status.json").read_text())["exit_code"] == 75


def test_a_second_sigterm_ends_a_rank_that_waits_for_a_late_peer(tmp_path: Path) -> None:
    run = start(tmp_path, "blocked", 1)
    assert wait_for((tmp_path / "fault").exists, run, 60.0)
    for rank in (0, 1):
        run.signal(rank, signal.SIGTERM)
    time.sleep(REPEATED_SIGNAL_SECONDS[signal.SIGTERM] + 1.0)
    run.restart_clock()
    for rank in (0, 1):
        run.signal(rank, signal.SIGTERM)
    ended = run.end(LATEST_SECONDS)
    assert [ended[rank].code for rank in (0, 1)] == [143, 143]
    assert max(one.seconds for one in ended.values()) < LATEST_SECONDS


def test_a_rank_in_an_uninterruptible_call_ends_when_another_dies(tmp_path: Path) -> None:
    run = start(tmp_path, "blocked", 1)
    assert wait_for((tmp_path / "fault").exists, run, 60.0)
    run.signal(2, signal.SIGKILL)
    run.restart_clock()
    ended = run.end(LATEST_SECONDS)
    assert [ended[rank].code for rank in range(3)] == [1, 1, -signal.SIGKILL]
    assert "rank 2 on" in ended[0].said[0]
