"""A run does not depend on who watches: no error of the terminal reaches it."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from cobo_dist.cli.train import main
from cobo_dist.run_config import LogConfig
from cobo_dist.storage.schema import ProgressState
from cobo_dist.terminal import is_terminal, safe_terminal
from cobo_dist.tracking.progress import NullProgress, ProgressBar, final_table, open_display

NOBODY = ["> /dev/full", "> /dev/full 2> /dev/full", ">&- 2>&-", "<&- >&-", "| head -1"]
WRITES_MUCH = """
import sys
from cobo_dist.terminal import safe_terminal

@safe_terminal()
def main():
    with open(sys.argv[1], "w") as data:
        for number in range(20_000):
            print("line", number)
        print("error", file=sys.stderr, flush=True)
        sys.stdout.flush()
        data.write("kept")
    return 7

sys.exit(main())
"""


def in_shell(command: list[str], redirection: str) -> subprocess.CompletedProcess[str]:
    """Run a command with its output redirected; the exit code is the command's, not that of `head`."""
    line = f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}'
    return subprocess.run(["bash", "-c", line, "bash", *command], capture_output=True, text=True)


def on_terminal(script: str, **env: str) -> str:
    """Run a Python script on a terminal and return what it prints there."""
    screen, keyboard = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=keyboard, stdout=keyboard, stderr=keyboard,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "120"} | env,
    ):  # fmt: skip
        os.close(keyboard)
        shown = b""
        try:
            while piece := os.read(screen, 1 << 16):
                shown += piece
        except OSError:  # the end of a terminal on Linux
            os.close(screen)
    return shown.decode()


class Pieces(io.StringIO):
    """A stream that notes each call's text."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def write(self, text: str) -> int:
        self.pieces.append(text)
        return super().write(text)


def test_a_line_is_written_whole_as_ranks_share_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Pieces()
    monkeypatch.setattr("sys.stdout", shared)
    with safe_terminal():
        print("two", "words")
        print("a\nb", end="")
        assert shared.pieces == ["two words\n", "a\n"]
        print(flush=True)
        print("50%", end="\r", flush=True)
        print("no end", end="")
    assert shared.pieces == ["two words\n", "a\n", "b\n", "50%\r", "no end"]


@pytest.mark.parametrize("redirection", NOBODY)
def test_no_error_of_the_terminal_reaches_a_command(tmp_path: Path, redirection: str) -> None:
    script = tmp_path / "writes_much.py"
    script.write_text(WRITES_MUCH)
    done = in_shell([sys.executable, str(script), str(tmp_path / "data")], redirection)
    assert done.returncode == 7, done.stderr
    assert done.stderr in ("", "error\n"), "no word about the terminal"
    assert (tmp_path / "data").read_text() == "kept", "nothing is printed into the data"


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["> /dev/full 2> /dev/full", ">&- 2>&-", "| head -1"])
def test_training_goes_on_without_a_reader(tmp_path: Path, redirection: str) -> None:
    settings = ["run.rounds=3", "log.figures=false", "log.interval=0.001"]
    train = [sys.executable, "-m", "cobo_dist.train", f"run.dir={tmp_path / 'run'}", *settings]
    done = in_shell(train, redirection)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "run" / "summary.json").exists()


def test_submitting_goes_on_without_a_reader(tmp_path: Path) -> None:
    """An error of the terminal was taken for a refusal, exit code 2."""
    script = Path(__file__).parents[3] / "slurm" / "submit.py"
    command = [sys.executable, str(script), "--dry-run", f"run.dir={tmp_path / 'run'}"]
    done = in_shell(command, "> /dev/full")
    assert (done.returncode, done.stderr) == (0, "")


class BrokenStream(io.StringIO):
    """A stream whose reader has left."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("stream", [None, BrokenStream()])
def test_refusals_keep_their_exit_code(
    stream: io.StringIO | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setattr("sys.stderr", stream)
    assert main(["nonsense=1"]) == 2
    assert main(["--help"]) == 0
    assert sys.stdout is stream, "the stream is back"


def test_a_closed_stream_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    assert not is_terminal()
    display = open_display(LogConfig(), 10)
    assert isinstance(display, NullProgress)
    display.print("nobody reads this")


def test_text_that_the_encoding_lacks_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii"))
    with safe_terminal():
        print("0.5 ± 0.1")
        print("and more")
    assert written.getvalue() == b"0.5 \\xb1 0.1\nand more\n"


def test_brackets_and_colons_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    final_table([("[red]a[/red] [/]", ":smile:")], ("name", "value"))
    assert "[red]a[/red] [/]" in (shown := capsys.readouterr().out)
    assert ":smile:" in shown


SHOWS_ALL = """
from cobo_dist.run_config import LogConfig
from cobo_dist.storage.schema import ProgressState
from cobo_dist.tracking.progress import final_table, open_display
bar = open_display(LogConfig(), 2)
bar.update(ProgressState(round=1, loss=0.5))
bar.print("warning: 3 of 4")
bar.update(ProgressState(round=2, loss=0.5))
bar.close()
final_table([("loss", "0.5")], ("name", "value"))
"""
STYLE = re.compile(r"\x1b\[[0-9;]*m")


def test_no_color_leaves_neither_color_nor_bold() -> None:
    assert STYLE.search(on_terminal(SHOWS_ALL, NO_COLOR="")), "colors where they are not declined"
    shown = on_terminal(SHOWS_ALL, NO_COLOR="1")
    assert "2/2" in shown
    assert not STYLE.search(shown)


@pytest.mark.parametrize("terminal", [True, False])
def test_the_last_line_of_the_bar_is_printed_once(terminal: bool) -> None:
    screen = io.StringIO()
    bar = ProgressBar(40, Console(file=screen, force_terminal=terminal, width=120))
    bar.update(ProgressState(round=39, loss=0.2))
    bar.update(ProgressState(round=40, loss=0.1))
    bar.progress.refresh()  # as its thread does, a few times a second
    bar.close()
    bar.close()
    shown = screen.getvalue()
    assert shown.count("40/40") == 1
    assert shown.count("loss 0.1") == 1
    assert not shown.endswith("\n\n"), "no empty line for a second close"
