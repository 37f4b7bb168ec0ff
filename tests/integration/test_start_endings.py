"""Ends of a run that has not begun: ranks that are killed or signaled while they connect or read data."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import environment

from stress import ranks
from stress.points import POINTS, points
from stress.problem import arguments, write_problem
from stress.ranks import Ended, free_port, wait_for

AT_IMPORT = """
import os, signal, sys, time
class Import:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), int(sys.argv[1]))
            time.sleep(60)
sys.meta_path.insert(0, Import())
from cobo_dist import train
sys.exit(train.main([]))
"""


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Remove the variables of a launcher."""
    with ranks.environment():
        yield


def hang(place: str) -> None:
    """Let a rank wait for ever as it reads data, and say in a file that it is there."""
    from cobo_dist.training import run

    def prepare(*args: object, **named: object) -> None:
        Path(place, f"reads_{os.environ['RANK']}").touch()
        time.sleep(600)

    if os.environ["RANK"] != "0":
        run.prepare = prepare  # type: ignore[assignment]


def one_line(ended: dict[int, Ended], code: int) -> str:
    """Return the only line that the ranks print, all of which end with this code."""
    assert {rank: one.code for rank, one in ended.items()} == dict.fromkeys(ended, code), ended
    lines = [line for one in ended.values() for line in one.err.splitlines()]
    assert len(lines) == 1, lines
    return lines[0]


def test_a_rank_killed_at_any_point_is_named_soon(tmp_path: Path) -> None:
    """One kill at each point, of ranks 0, 1, 2 in turn."""
    for outcome in points(len(POINTS), tmp_path):
        assert outcome.passed, outcome.details
        assert "1 of 1 named" in outcome.observed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_during_the_first_import(number: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AT_IMPORT, str(number)], cwd=tmp_path, env=environment(),
        capture_output=True, text=True, check=False, timeout=50,
    )  # fmt: skip
    name = signal.Signals(number).name
    assert done.returncode == 128 + number, done.stderr
    assert done.stderr.startswith(f"error: stopped by {name} before the first round; nothing was")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("which", [[0], [1], [0, 1, 2]])
def test_a_signal_while_data_are_read_ends_all_ranks(tmp_path: Path, which: list[int]) -> None:
    """Rank 0 waits for the others, which read data: neither of them is in a round."""
    run = ranks.start(
        3, [*arguments(write_problem(tmp_path / "p.npz"), 10, 5), f"run.dir={tmp_path / 'run'}"],
        tmp_path / "logs", fault=(hang, (str(tmp_path),)),
    )  # fmt: skip
    assert wait_for(lambda: len(list(tmp_path.glob("reads_*"))) == 2, run, 60.0)
    run.restart_clock()
    for rank in which:
        run.signal(rank, signal.SIGTERM)
    line = one_line(run.end(15.0), 128 + signal.SIGTERM)
    assert line.startswith("error: stopped by SIGTERM before the first round; nothing was saved")
    assert not (tmp_path / "run").exists()


def test_a_rank_that_dies_before_a_signal_is_the_cause(tmp_path: Path) -> None:
    """When a rank dies, launchers send SIGTERM to the others at once."""
    run = ranks.start(
        3, [*arguments(write_problem(tmp_path / "p.npz"), 10, 5), f"run.dir={tmp_path / 'run'}"],
        tmp_path / "logs", fault=(hang, (str(tmp_path),)),
    )  # fmt: skip
    assert wait_for(lambda: len(list(tmp_path.glob("reads_*"))) == 2, run, 60.0)
    run.restart_clock()
    for rank, number in ((1, signal.SIGKILL), (0, signal.SIGTERM), (2, signal.SIGTERM)):
        run.signal(rank, number)
    ended = run.end(15.0)
    assert ended.pop(1).code == -signal.SIGKILL
    assert "rank 1 on" in one_line(ended, 1)


def test_a_rank_that_reads_too_long_is_named(tmp_path: Path) -> None:
    more = ["comm.connect_timeout=4", f"run.dir={tmp_path / 'run'}"]
    run = ranks.start(
        2, [*arguments(write_problem(tmp_path / "p.npz"), 10, 5), *more],
        tmp_path / "logs", fault=(hang, (str(tmp_path),)),
    )  # fmt: skip
    line = one_line(run.end(30.0), 2)
    assert "rank 1 on" in line
    assert "did not finish reading data within 4 s" in line
    assert "comm.connect_timeout" in line


def test_a_resumed_run_stopped_before_its_first_round_goes_on_later(tmp_path: Path) -> None:
    """Nothing in its folder changes, and its checkpoint is the one that the next start goes on from."""
    run = [*arguments(write_problem(tmp_path / "p.npz"), 10, 5), f"run.dir={tmp_path / 'run'}"]
    ranks.finished(2, run, tmp_path / "logs")
    status = (tmp_path / "run" / "status.json").read_bytes()
    more = [*run, "run.rounds=20", "run.resume=auto"]
    again = ranks.start(2, more, tmp_path / "logs", fault=(hang, (str(tmp_path),)))
    assert wait_for(lambda: len(list(tmp_path.glob("reads_*"))) == 1, again, 60.0)
    again.signal(1, signal.SIGUSR1)
    one_line(again.end(30.0), 128 + signal.SIGUSR1)
    assert (tmp_path / "run" / "status.json").read_bytes() == status
    ranks.finished(2, more, tmp_path / "logs")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rounds"] == 20
    assert "goes on after round 10" in (tmp_path / "logs" / "0.out").read_text()


def test_nobody_can_reach_the_store_of_a_run_that_has_begun(tmp_path: Path) -> None:
    """At MASTER_PORT nothing listens any more, and the run goes on."""
    port, out = free_port(), tmp_path / "run"
    run = ranks.start(
        2, [*arguments(write_problem(tmp_path / "p.npz"), 10**6, 5), f"run.dir={out}", "comm.check=true"],
        tmp_path / "logs", port=port,
    )  # fmt: skip
    assert wait_for(lambda: list(out.glob("checkpoints/round-?????????")), run, 60.0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    run.signal(1, signal.SIGTERM)
    assert {one.code for one in run.end(60.0).values()} == {75}
