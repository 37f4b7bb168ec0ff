"""What a terminal shows of runs that go on."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from growing_run import GrowingRun
from report_runs import SAME, N
from rich.console import Console

from cobo_dist.cli.watch import main
from cobo_dist.watching.followed_run import FollowedRun
from cobo_dist.watching.terminal_view import line, shrink, sparkline, view

NOWHERE = float("nan")


@pytest.fixture
def growing(tmp_path: Path) -> GrowingRun:
    """A run at round 12 of 20."""
    return GrowingRun(tmp_path / "run", tmp_path / "pattern", 12)


def test_a_narrow_terminal_has_whole_names(tmp_path: Path) -> None:
    """Names matter more than a bar."""
    growing = GrowingRun(tmp_path / "digits-cobo-s0", tmp_path / "pattern", 12)
    text = shown(FollowedRun(growing.folder), width=80)
    assert text.splitlines()[1].startswith("digits-cobo-s0 ")
    assert "s/round" not in text


def shown(*runs: FollowedRun, width: int = 130, height: int = 40, color: bool = False) -> str:
    """What a terminal of that size gets."""
    system = "truecolor" if color else None
    console = Console(
        file=io.StringIO(),
        width=width,
        height=height,
        color_system=system,
        force_terminal=True,
        markup=False,
    )
    for run in runs:
        run.poll()
    console.print(view(runs, console))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 100, 130])
def test_a_run_has_one_row_and_a_picture_of_w(growing: GrowingRun, width: int) -> None:
    text = shown(FollowedRun(growing.folder), FollowedRun(growing.folder / "later"), width=width)
    lines = [one.rstrip() for one in text.splitlines()]
    assert all(len(one) <= width for one in lines)
    (row,) = [one for one in lines if one.startswith("run ") and "running" in one]
    assert "12/20" in row
    (title,) = [one for one in lines if one.startswith("W of run, round 12")]
    assert title.endswith("mean weight within clusters 1.00, across clusters 0.00")
    matrix = lines[lines.index(title) + 1 :][: 3 * N]
    # Clients by cluster: pairs of clients are dark blocks on the diagonal.
    assert matrix[0] == ". . . ██████"
    assert matrix[6].startswith(" " * 12 + ". . . ██████")
    assert lines[-1] == "later: waiting: no such folder yet"


def test_a_wide_terminal_has_curves(growing: GrowingRun) -> None:
    text = shown(FollowedRun(growing.folder), width=130)
    (row,) = [one for one in text.splitlines() if one.startswith("run ") and "running" in one]
    assert "accuracy (%) 40" in row
    assert "▁▄█" in row or "▁▅█" in row, "rounds 0, 5 and 10"


def test_colors_are_half_blocks(growing: GrowingRun) -> None:
    """Two rows a line: white and dark of the scale, and grey for a client's weight for itself."""
    text = shown(FollowedRun(growing.folder), color=True)
    assert "▀" in text
    assert "38;2;214;238;255" in text
    assert "48;2;110;110;110" in text


def test_many_runs_leave_space_for_w(growing: GrowingRun, tmp_path: Path) -> None:
    """Those that go on first; the others are counted."""
    others = [FollowedRun(tmp_path / f"later{i}") for i in range(30)]
    text = shown(*others, FollowedRun(growing.folder), height=20)
    rows = text.splitlines()
    assert rows[1].startswith("run ")
    assert "more: 21 waiting" in text
    assert sum(one.startswith("later") and "waiting  " in one for one in rows) == 9


def test_messages_cannot_move_the_cursor(growing: GrowingRun) -> None:
    """A warning with the control characters of a terminal is text."""
    message = "\x1b[2J\x07[red]see\nbelow"
    growing.write({"event": "warning", "round": 12, "kind": "notice", "message": message})
    text = shown(FollowedRun(growing.folder))
    assert "\x1b" not in text
    assert "[2J [red]see below" in text
    run = FollowedRun(growing.folder)
    run.poll()
    assert line(run).endswith("1 warnings, the last:  [2J [red]see below")


def test_sparkline() -> None:
    assert sparkline({i: float(i) for i in range(8)}) == "▁▂▃▄▅▆▇█"
    assert sparkline({i: 1.0 for i in range(100)}, width=10) == "▁" * 10
    assert sparkline({1: NOWHERE}) == sparkline({}) == ""


def test_shrink() -> None:
    """Means of cells, where a client's weight for itself does not count."""
    matrix = SAME.astype(float)
    np.testing.assert_array_equal(np.isnan(shrink(matrix, N)), np.eye(N, dtype=bool))
    halves = shrink(np.kron(np.eye(2), np.ones((4, 4))), 2)
    np.testing.assert_allclose(halves, np.eye(2))
    assert shrink(np.ones((10, 10)), 4).shape == (4, 4)
    single = shrink(np.ones((1, 1)), 4)
    assert np.isnan(single).all()


def test_without_a_terminal_lines_are_printed(
    growing: GrowingRun, capsys: pytest.CaptureFixture[str]
) -> None:
    growing.end(1, "out of memory")
    assert main([str(growing.folder)]) == 1
    (printed,) = capsys.readouterr().out.splitlines()
    assert printed.startswith("run: failed (out of memory)  round 12/20  loss ")
    growing.end()
    assert main([str(growing.folder)]) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no run folder is given; give RUN..."),
        (["run", "--port", "80"], "are for --serve; add it"),
        (["run", "--interval", "0"], "--interval is 0; give more than 0 seconds"),
        (["run", "--serve", "--port", "70000"], "cannot listen at 127.0.0.1, port 70000"),
        (["run", "--serve", "--host", "203.0.113.7"], "cannot listen at 203.0.113.7, port 0"),
        (["run", "--whatever"], "--whatever is no option"),
    ],
)
def test_refusals_are_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert says in printed


def test_ctrl_c_ends_it_without_a_traceback(tmp_path: Path) -> None:
    """In a process of its own, which waits for a run that never comes."""
    command = [sys.executable, "-m", "cobo_dist.watch", str(tmp_path / "run")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "run: waiting (no such folder yet)\n"
        os.kill(process.pid, 2)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")
