"""`plan --try N`: real rounds on 1 and on 2 ranks, and what is refused."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from launching import said, start

from cobo_dist.cli import plan
from cobo_dist.planning.try_rounds import TriedRounds

SMALL = ["model.hidden=[18]", "run.rounds=40", "run.threads=1"]
TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc_per_node=2",
    "-m",
]


def seconds(text: str) -> dict[str, float]:
    """Return the measured rows of the text by name."""
    table = text.partition("seconds a round, measured")[2]
    found = re.findall(r"^ *([a-z0-9 ]+?) +([\d.e-]+)(?: +\d+%)?$", table, re.MULTILINE)
    return {name: float(number) for name, number in found}


def check(text: str, ranks: int, rounds: int) -> None:
    """Check what was measured: parts add up to the median, which makes up the total."""
    found = seconds(text)
    median, total = found.pop("median round"), found.pop("all 40 rounds")
    assert median > 0
    assert total == pytest.approx(40 * median, rel=0.01)
    assert sum(found.values()) == pytest.approx(median, rel=0.1)
    assert {"gradients", "midpoints"} <= set(found)
    assert ranks == 1 or "waiting" in found
    assert f"(rounds 2 to {rounds}, slowest of {ranks} rank" in text
    assert "sent by all ranks" in text


def test_one_rank_runs_them_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    every = "algorithm.sampling.name=all"
    assert plan.main(["ranks=1", "--try", "5", every, *SMALL]) == 0
    check(capsys.readouterr().out, 1, 5)
    assert plan.main(["ranks=1", "--try", "1", every, *SMALL]) == 0
    assert "(round 1, slowest of 1 rank on cpu" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("launcher", [[sys.executable, "-m"], TORCHRUN])
def test_two_ranks(tmp_path: Path, launcher: list[str]) -> None:
    """Started by plan itself, and by torchrun; rank 0 alone speaks."""
    more = ["ranks=2"] if launcher != TORCHRUN else []
    every = "algorithm.sampling.name=all"
    done = start([*launcher, "cobo_dist.plan", *more, "--try", "4", every, *SMALL], tmp_path)
    assert done.returncode == 0, done.stderr
    check(done.stdout, 2, 4)
    assert done.stdout.count("sent by all ranks") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_median_is_a_round_that_was_run() -> None:
    assert TriedRounds(1, 2, [4.0, 1.0, 3.0, 2.0], {}, "cpu", "one_by_one").median == 2.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--try", "0"], "--try 0 is no number of rounds; give 1 to run.rounds=40"),
        (["--try", "41"], "--try 41 is no number of rounds"),
        (["--try", "nan"], "--try nan is no number of rounds"),
        (["--try=-3"], "--try -3 is no number of rounds"),
        (["--try", "2.5"], "--try 2.5 is no number of rounds"),
        (["--try", "3", "clients=9"], "--try trains the task's own 8 clients, but clients=9 are made up"),
        (["--try", "3", "ranks=9"], "9 ranks for 8 clients"),
        (["--try", "3", "ranks=8"], "--try would start ranks=8 on 1 cores"),
        (["--try", "3", "comm.backend=mpi", "ranks=2"], "comm.backend=mpi needs ranks that mpirun started"),
    ],
)  # fmt: skip
def test_what_is_refused(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.setattr("cobo_dist.cli.plan._cores", lambda: 1)
    monkeypatch.setattr("cobo_dist.cli.plan.MAX_RANKS_PER_CORE", 4)
    assert plan.main([*arguments, *SMALL]) == 2
    captured = capsys.readouterr()
    complaints = [line for line in captured.err.splitlines() if not line.startswith("warning: ")]
    assert len(complaints) == 1
    assert words in complaints[0]
    assert captured.out == ""


def test_a_launcher_with_other_ranks_is_refused(tmp_path: Path) -> None:
    done = start([*TORCHRUN, "cobo_dist.plan", "ranks=4", "--try", "3", *SMALL], tmp_path)
    assert done.returncode != 0
    assert said(done.stderr) == [
        "error: ranks=4, but torchrun started 2 ranks, which --try uses; drop ranks= or start as many"
    ]


def test_more_ranks_than_cores_are_warned_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cobo_dist.cli.plan._cores", lambda: 1)
    monkeypatch.setattr("cobo_dist.cli.plan._start_ranks", lambda command, ranks: 0)
    assert plan.main(["--try", "3", "ranks=3", *SMALL]) == 0
    assert "warning: 3 ranks take turns on 1 cores" in capsys.readouterr().err
