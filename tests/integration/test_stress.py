"""The parts of `python -m stress` at their smallest sizes."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from stress import fuzz, ranks
from stress.corruption import corruptions
from stress.endings import endings
from stress.kills import kills
from stress.launched import restarts
from stress.outcome import Outcome, show
from stress.owners import owners
from stress.problem import differences, rows
from stress.resuming import resuming
from stress.soak import soak


def check(outcomes: list[Outcome]) -> None:
    """Fail with the details of the outcomes that did not pass."""
    for one in outcomes:
        assert one.passed is not False, [one.action, one.observed, *one.details]


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Remove the variables of a launcher."""
    with ranks.environment():
        yield


def test_kills(tmp_path: Path) -> None:
    outcomes = kills(3, tmp_path, rounds=18, every=3)
    check(outcomes)
    assert outcomes[0].action.startswith("3 x SIGKILL")


def test_restarts_under_torchrun(tmp_path: Path) -> None:
    (one,) = restarts(1, tmp_path)
    check([one])
    assert "went on 1 times" in one.observed


def test_resuming(tmp_path: Path) -> None:
    check(resuming(tmp_path, (1, 2), 10))


def test_corruptions(tmp_path: Path) -> None:
    outcomes = corruptions(10, tmp_path)
    check(outcomes)
    assert outcomes[0].observed == "0 silent, 0 wrong of 10"
    assert "no checkpoint is good" in outcomes[1].line


def test_endings(tmp_path: Path) -> None:
    check(endings(tmp_path, ["nan", "asked", "full"], timeout=60.0, slack=60.0))


@pytest.mark.slow
def test_a_rank_0_that_was_stopped_blames_no_other(tmp_path: Path) -> None:
    check(endings(tmp_path, ["frozen-0"], timeout=6.0, slack=60.0))


@pytest.mark.slow
def test_owners_on_two_ranks(tmp_path: Path) -> None:
    """A successor on two ranks, of two ranks that were killed, and of two that wake up later."""
    check(owners(tmp_path, 60.0, ["stale", "zombie in a round"]))


def test_random_configs_and_malformed_files(tmp_path: Path) -> None:
    """Without the kinds that import the language libraries, which takes seconds."""
    check(fuzz.fuzz(24, 9, 24, tmp_path, kinds=("problem", "images", "checkpoint")))


def test_soak(tmp_path: Path) -> None:
    (one,) = soak(60, tmp_path)
    counts = re.findall(r"(\d+) and (\d+) open files", one.observed)
    assert all(int(count) for pair in counts for count in pair), one.observed
    assert "rank 1" in one.observed or "too few samples" in str(one.details)


# -- the helpers --------------------------------------------------------------------------------


def test_a_difference_is_found(tmp_path: Path) -> None:
    from stress.corruption import train
    from stress.problem import arguments, write_problem

    run = arguments(write_problem(tmp_path / "problem.npz"), 4, 2, "run.threads=1")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        code, said = train([*run, f"run.dir={tmp_path / name}", f"run.seed={seed}"])
        assert code == 0, said
    assert differences(tmp_path / "a", tmp_path / "b", 4) == []
    found = " ".join(differences(tmp_path / "a", tmp_path / "c", 4))
    assert "the model client_00000.safetensors differs" in found
    assert "the logs have" in found
    log = tmp_path / "b" / "metrics.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines + lines[-2:-1]))
    assert len(rows(tmp_path / "b")) == len(lines) + 1
    assert differences(tmp_path / "a", tmp_path / "b", 4) != []


def test_a_rank_that_does_not_end_is_killed_and_reported(tmp_path: Path) -> None:
    run = ranks.start([0], ["--version"], tmp_path, sizes={0: 1})
    assert run.end(60.0)[0].code == 0
    run = ranks.start(
        [0], ["run.rounds=1000000", f"run.dir={tmp_path / 'run'}"], tmp_path, sizes={0: 1}
    )
    run.signal(0, signal.SIGSTOP)
    assert run.end(1.0)[0].code is None


def test_escaped_exceptions_and_repeated_errors_are_complaints() -> None:
    def complaint(code: int | None, err: str, **more: bool) -> str:
        return fuzz.CaseResult(code, "", err, [], **more).complaint()

    assert (
        complaint(0, "")
        == complaint(2, "error: x\n")
        == complaint(1, "error: the loss became nan\n")
        == ""
    )
    assert complaint(None, "a hang")
    assert complaint(2, "")
    assert complaint(2, "error: x\nerror: y\n")
    assert complaint(2, "error: x\n", left=True)
    assert complaint(0, "", executed=True)
    assert complaint(1, "error: KeyError: 'x'\n")
    assert complaint(0, "Traceback (most recent call last):")


def test_the_table_shows_brackets_and_details(capsys: pytest.CaptureFixture[str]) -> None:
    show([Outcome("[red]", "a", "b", 1.0, False, "[/x]", ["why [y]"])], 150)
    said = capsys.readouterr().out
    for word in ("[red]", "[/x]", "FAILED", "[red]: why [y]"):
        assert word in said
