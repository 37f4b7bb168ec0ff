"""Real processes: torchrun, mpirun, a refusal under a launcher, a rank that dies in the middle."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from launching import LAUNCHED_BY, TRAIN, environment, mpirun, said, start, torchrun
from problems import QUIET, models, rows, write_quadratic


def quadratic(folder: Path) -> list[str]:
    write_quadratic(folder / "problem.npz")
    return [*QUIET, "task.name=quadratic", "task.file=problem.npz", "run.rounds=8", "run.dir=out",
            "run.dtype=float64", "algorithm.sampling.name=all", "comm.deterministic=true",
            "comm.check=true"]  # fmt: skip


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The same run in this process: the result that every launcher must reproduce."""
    from cobo_dist.cli.train import main

    folder = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in list(os.environ):
            if name.startswith(LAUNCHED_BY):
                patch.delenv(name)
        assert main(quadratic(folder)) == 0
    return models(folder / "out")


def check_run(folder: Path, launcher: str, expected: dict[str, np.ndarray]) -> None:
    """Check that two ranks gave the result of one rank, and that env.json names the launcher."""
    out = folder / "out"
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["ranks"], summary["rounds"], summary["clients"]) == (2, 8, 7)
    assert summary["bytes_sent"] > 0
    env = json.loads((out / "env.json").read_text())
    assert env["launcher"] == launcher
    assert len(env["ranks"]) == 2
    assert json.loads((out / "status.json").read_text())["exit_code"] == 0
    assert len(rows(out, "round")) == 8
    found = models(out)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].tobytes() == value.tobytes(), name


def test_torchrun(tmp_path: Path, one_rank: dict[str, np.ndarray]) -> None:
    done = start([*torchrun(2), *quadratic(tmp_path)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert said(done.stderr) == []
    assert done.stdout.count("run folder") == 1, "only rank 0 prints"
    check_run(tmp_path, "torchrun", one_rank)


@pytest.mark.mpi
def test_mpirun(tmp_path: Path, one_rank: dict[str, np.ndarray]) -> None:
    done = start([*mpirun(2), "-m", TRAIN, *quadratic(tmp_path)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert said(done.stderr) == []
    assert done.stdout.count("run folder") == 1
    check_run(tmp_path, "mpirun", one_rank)


def test_a_refusal_under_torchrun_is_printed_once(tmp_path: Path) -> None:
    done = start([*torchrun(2), "run.round=5", "run.dir=out"], tmp_path)
    assert done.returncode == 1, "torchrun's own code for any failed worker"
    assert said(done.stderr) == ["error: run.round is not a known key; did you mean run.rounds?"], (
        done.stderr
    )
    traces = [line for line in done.stderr.splitlines() if "cobo_dist/" in line and "File" in line]
    assert traces == [], "no traceback of ours"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.mpi
def test_a_refusal_under_mpirun_is_printed_once_and_keeps_its_code(tmp_path: Path) -> None:
    done = start([*mpirun(2), "-m", TRAIN, "task.name=quadratic", "run.dir=out"], tmp_path)
    assert done.returncode == 2, done.stderr
    assert len(said(done.stderr)) == 1, done.stderr
    assert said(done.stderr)[0].startswith("error: task.file is not set")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_rounds(out: Path, ranks: list[subprocess.Popen[str]], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended = [rank.poll() for rank in ranks if rank.poll() is not None]
        assert not ended, f"a rank ended early with {ended}"
        if (out / "metrics.jsonl").exists() and '"event": "round"' in (
            out / "metrics.jsonl"
        ).read_text():
            return
        time.sleep(0.05)
    raise AssertionError("no round within a minute")


def start_by_hand(command: list[str], folder: Path) -> list[subprocess.Popen[str]]:
    """Start two ranks without a launcher, so that no launcher stops one when the other ends."""
    port = str(free_port())
    return [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env=environment(
                RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


THREADS = """
import contextlib, glob, sys
from cobo_dist.train import main
code = main(sys.argv[1:])
names = []
for path in glob.glob("/proc/self/task/*/comm"):
    with contextlib.suppress(OSError):  # a thread that ends while this reads: ENOENT or ESRCH
        names.append(open(path).read().strip())
print("left:", *sorted(name for name in names if "gloo" in name or "tcpstore" in name))
sys.exit(code)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are read from /proc")
def test_no_thread_of_the_process_group_outlives_the_run(tmp_path: Path) -> None:
    """One that does may ask for Python's lock while Python ends, and abort a run that was done.

    A module imported while ranks are connected can keep the group alive: `torch.distributed.nn` has
    the group of that moment as the default of its functions.
    """
    ranks = start_by_hand(["-c", THREADS, *quadratic(tmp_path)], tmp_path)
    try:
        said_by = [rank.communicate(timeout=60) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for out, err in said_by:
        assert out.splitlines()[-1].split() == ["left:"], err


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_is_killed_ends_the_run_at_once(tmp_path: Path, killed: int) -> None:
    """In the middle of a run of a million rounds. The other rank names the rank, its host and the round."""
    out = tmp_path / "out"
    arguments = [*quadratic(tmp_path), "run.rounds=1000000", "log.flush_every=1"]
    ranks = start_by_hand(["-m", TRAIN, *arguments], tmp_path)
    try:
        wait_for_rounds(out, ranks)
        ranks[killed].send_signal(signal.SIGKILL)
        moment = time.monotonic()
        _, stderr = ranks[1 - killed].communicate(timeout=60)
        assert time.monotonic() - moment < 20
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert ranks[1 - killed].returncode == 1
    lines = said(stderr)
    assert len(lines) == 1, stderr
    host = os.uname().nodename
    lost = f"rank {1 - killed} lost contact while "
    assert lines[0].startswith("error: " + (lost if killed else f"rank 1 on {host}: {lost}"))
    assert re.search(
        rf"in round \d+, since when nothing was heard of rank {killed} on {host}:", lines[0]
    )
    assert "Traceback" not in stderr
    status = json.loads((out / "status.json").read_text())
    assert (status["exit_code"], status["status"]) == (1, "failed")
    assert lines[0].endswith(status["reason"])
    assert status["reason"].startswith(lost)
    assert not (out / "summary.json").exists()
