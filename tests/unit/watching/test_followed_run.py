"""A run folder is read while it grows: what is new, and how its run stands."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from growing_run import GrowingRun
from report_runs import N, write_run

from cobo_dist.errors import ConfigError
from cobo_dist.reports.reading import read_run
from cobo_dist.reports.reading.events import MetricsReader
from cobo_dist.reports.reading.run import RunReader
from cobo_dist.watching.followed_run import FollowedRun
from cobo_dist.watching.watch_list import LAST_RUN_SECONDS, WatchList

NOBODY = 2**22 + 1  # above the largest process id
ROW = b'{"event": "round", "round": %d, "loss": 1.5}\n'


class Clock:
    """A clock that stands still until it is moved."""

    now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def growing(tmp_path: Path) -> GrowingRun:
    """A run that has begun."""
    return GrowingRun(tmp_path / "run", tmp_path / "pattern", 5)


def test_only_new_rows_are_read(tmp_path: Path) -> None:
    """Reading piece by piece gives what reading at once does, also where a piece ends within a row."""
    path = write_run(tmp_path / "run") / "metrics.jsonl"
    content = path.read_bytes()
    whole = MetricsReader(path)
    whole.read()
    grown = tmp_path / "grown.jsonl"
    grown.touch()
    reader = MetricsReader(grown)
    for start in range(0, len(content), 701):
        with grown.open("ab") as file:
            file.write(content[start : start + 701])
        reader.read()
    assert reader.metrics == whole.metrics
    assert reader.metrics.rounds["loss"]
    assert not reader.read(), "nothing is new"


def test_half_a_row_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(ROW % 1 + (ROW % 2)[:17])
    reader = MetricsReader(path)
    reader.read()
    assert reader.metrics.rounds["loss"] == {1: 1.5}
    with path.open("ab") as file:
        file.write((ROW % 2)[17:])
    reader.read()
    assert reader.metrics.rounds["loss"] == {1: 1.5, 2: 1.5}
    reader.end()
    assert reader.metrics.notes == []


def test_a_malformed_row_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(ROW % 1 + b"\n" + b'{"event": "round"}\n')
    with pytest.raises(ConfigError, match=r"metrics.jsonl, line 3: round is None"):
        MetricsReader(path).read()


@pytest.mark.parametrize("longer", [False, True])
def test_a_file_that_was_replaced_is_read_anew(tmp_path: Path, longer: bool) -> None:
    """A resumed run repeats rounds, and another run has others: nothing of the old rows stays."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(ROW % number for number in range(1, 11)))
    reader = MetricsReader(path)
    reader.read()
    last = 30 if longer else 4
    path.write_bytes(b"".join(ROW.replace(b"1.5", b"2.5") % number for number in range(3, last)))
    reader.read()
    assert reader.metrics.rounds["loss"] == dict.fromkeys(range(3, last), 2.5)


def test_files_are_read_again_once_they_change(
    growing: GrowingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[object] = []
    load = np.load
    monkeypatch.setattr(np, "load", lambda *rest, **more: (loads.append(1), load(*rest, **more))[1])
    reader = RunReader(growing.folder)
    first = reader.read()
    assert reader.read().weights is first.weights
    assert len(loads) == 1
    growing.go_on(7)
    again = reader.read()
    assert again.weights is not None
    assert (again.last_round, again.weights.rounds.tolist()) == (7, list(range(8)))
    assert again.evals == read_run(growing.folder).evals


def test_a_run_from_before_its_folder_until_its_end(tmp_path: Path) -> None:
    run = FollowedRun(tmp_path / "run")
    run.poll()
    assert (run.state, run.words) == ("waiting", "no such folder yet")
    assert not run.poll()
    growing = GrowingRun(tmp_path / "run", tmp_path / "pattern", 0)
    assert run.poll()
    assert (run.state, run.round, run.rounds) == ("running", 0, 20)
    growing.go_on(10, half_a_line=True)
    assert run.poll()
    assert (run.round, run.metric[0]) == (10, "accuracy (%)")
    assert run.metric[1][10] == pytest.approx(40.0)
    rate = run.seconds_per_round
    assert rate is not None
    assert run.seconds_left == pytest.approx(10 * rate)
    growing.end_the_line()
    growing.write({"event": "warning", "round": 10, "kind": "diverging", "message": "look"})
    assert run.poll()
    assert [row.message for row in run.warnings] == ["look"]
    growing.end()
    assert run.poll()
    assert (run.state, run.has_ended, run.round, run.seconds_left) == ("done", True, 20, None)


def test_a_run_that_is_overwritten_or_resumed(growing: GrowingRun, tmp_path: Path) -> None:
    run = FollowedRun(growing.folder)
    growing.end(75, "stopped by SIGTERM")
    run.poll()
    assert (run.state, run.words) == ("stopped", "stopped by SIGTERM")
    # Resumed: the log is a new file that ends earlier, and status.json is gone.
    (growing.folder / "status.json").unlink()
    metrics = growing.folder / "metrics.jsonl"
    rows = metrics.read_bytes().splitlines(keepends=True)
    draft = growing.folder / "metrics.jsonl.2.part"
    draft.write_bytes(b"".join(row for row in rows if json.loads(row)["round"] <= 2))
    draft.replace(metrics)
    run.poll()
    assert (run.state, run.round) == ("running", 2)
    # Overwritten.
    shutil.rmtree(growing.folder)
    run.poll()
    assert (run.state, run.run) == ("waiting", None)
    GrowingRun(growing.folder, tmp_path / "other", 1)
    run.poll()
    assert (run.state, run.round) == ("running", 1)


def test_how_runs_end(growing: GrowingRun) -> None:
    run = FollowedRun(growing.folder)
    growing.own(NOBODY)
    run.poll()
    assert (run.state, run.words) == ("failed", "its process has ended without a word")
    growing.end(1, "out of memory")
    run.poll()
    assert (run.state, run.words) == ("failed", "out of memory")


def test_a_run_on_another_host_lives_by_its_heartbeat(growing: GrowingRun) -> None:
    """Hosts' clocks may differ: only whether the heartbeat changes counts. Nothing is written."""
    clock = Clock()
    growing.own(NOBODY, "another machine", heartbeat=100.0)
    before = sorted(growing.folder.rglob("*"))
    run = FollowedRun(growing.folder, clock)
    run.poll()
    assert run.state == "running"
    clock.now = 61.0
    run.poll()
    assert (run.state, run.words) == ("silent", "no sign of life for 61 s")
    assert not run.has_ended
    growing.own(NOBODY, "another machine", heartbeat=105.0)
    run.poll()
    assert run.state == "running"
    assert sorted(growing.folder.rglob("*")) == before


def test_a_malformed_file_is_said_and_read_again(growing: GrowingRun) -> None:
    run = FollowedRun(growing.folder)
    run.poll()
    content = (growing.folder / "W.npz").read_bytes()
    (growing.folder / "W.npz").write_bytes(content[:100])
    run.poll()
    assert run.state == "unreadable"
    assert "W.npz is not a readable npz" in run.words
    assert run.run is not None, "what was known stays"
    (growing.folder / "W.npz").write_bytes(content)
    run.poll()
    assert run.state == "running"


def test_links_and_pipes_in_a_run_folder_are_not_followed(
    growing: GrowingRun, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text('{"event": "round", "round": 3, "loss": 12345.0}\n')
    (growing.folder / "metrics.jsonl").unlink()
    (growing.folder / "metrics.jsonl").symlink_to(secret)
    run = FollowedRun(growing.folder)
    run.poll()
    assert run.state == "unreadable"
    assert "it is a symbolic link" in run.words
    (growing.folder / "metrics.jsonl").unlink()
    os.mkfifo(growing.folder / "metrics.jsonl")
    run.poll()
    assert run.state == "waiting"


def test_a_folder_of_runs_may_get_more(tmp_path: Path) -> None:
    """Runs of a sweep are found as they start; links in its folder are not; then it ends after a while."""
    clock, sweep = Clock(), tmp_path / "sweep"
    watched = WatchList([sweep], clock)
    watched.poll()
    assert [run.state for run in watched.runs] == ["waiting"]
    first = GrowingRun(sweep / "a", tmp_path / "pattern", 3)
    (sweep / "link").symlink_to(write_run(tmp_path / "elsewhere"))
    (sweep / "logs").mkdir()
    watched.poll()
    assert [(run.title, run.round) for run in watched.runs] == [("a", 3)]
    followed = watched.runs[0]
    GrowingRun(sweep / "b", tmp_path / "pattern2", 1).end()
    first.end()
    watched.poll()
    assert [run.title for run in watched.runs] == ["a", "b"]
    assert watched.runs[0] is followed
    assert not watched.has_ended, "another run may start"
    clock.now = LAST_RUN_SECONDS + 1
    assert not watched.poll()
    assert watched.has_ended


def test_named_runs_end_with_the_last_of_them(growing: GrowingRun, tmp_path: Path) -> None:
    finished = write_run(tmp_path / "finished")
    watched = WatchList([finished, growing.folder, finished])
    watched.poll()
    assert [run.state for run in watched.runs] == ["done", "running"]
    assert not watched.has_ended
    growing.end()
    watched.poll()
    assert watched.has_ended
    assert watched.runs[0].run is not None
    assert watched.runs[0].run.weights is not None
    assert watched.runs[0].run.weights.clients == N
