"""What a person sees: plain lines in a file, a bar on a terminal, TensorBoard when asked."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from cobo_dist.cli.train import main
from cobo_dist.run_config import LogConfig
from cobo_dist.storage.schema import ProgressState
from cobo_dist.tracking import progress
from cobo_dist.tracking.progress import (
    NullProgress,
    PlainProgress,
    ProgressBar,
    human_bytes,
    open_display,
)

NOW = ProgressState(round=40, loss=0.1234, metric="test accuracy 0.901", pairs=3.5, bytes=1.5e6)


def test_plain_lines_come_every_so_often_and_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    timer = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: timer[0])
    lines = PlainProgress(rounds=100, interval=10.0)
    for second in range(1, 31):
        timer[0] = 100.0 + second
        lines.update(ProgressState(round=second))
    timer[0] = 131.0
    lines.update(ProgressState(round=100, loss=0.5))
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in printed] == [
        "round 10/100",
        "round 20/100",
        "round 30/100",
        "round 100/100",
    ]
    assert "90 s left" in printed[0], "ten rounds took ten seconds, ninety are left"
    assert "loss 0.5 " in printed[-1]


def test_the_bar_shows_all_figures_and_prints_above_itself() -> None:
    screen = io.StringIO()
    bar = ProgressBar(100, Console(file=screen, force_terminal=True, width=120))
    bar.update(NOW)
    bar.print("warning: look here")
    bar.progress.refresh()
    bar.close()
    shown = screen.getvalue()
    for words in ("40/100", "loss 0.1234", "test accuracy 0.901", "pairs 3.5", "1.5 MB/round"):
        assert words in shown
    assert "warning: look here" in shown


def test_the_display_fits_where_output_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
    assert isinstance(open_display(LogConfig(), 10), PlainProgress)
    assert isinstance(open_display(LogConfig(progress="none"), 10), NullProgress)
    bar = open_display(LogConfig(progress="bar"), 10)
    bar.close()
    assert isinstance(bar, ProgressBar)


def test_bytes_for_people() -> None:
    assert [human_bytes(b) for b in (0, 999, 1500, 2.5e6, 3e9, 4e12)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.5 MB",
        "3.0 GB",
        "4.0 TB",
    ]


def test_tensorboard_holds_the_rows(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code = main(
        [
            f"run.dir={folder}", "run.rounds=12", "run.eval_every=6", "log.tensorboard=true",
            "log.figures=false", "log.progress=none",
        ]
    )  # fmt: skip
    assert code == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    accuracy = events.Scalars("test/accuracy")
    assert [event.step for event in accuracy] == [0, 6, 12]
    losses = events.Scalars("round/loss")
    assert [event.step for event in losses] == list(range(1, 13))
    assert all(math.isfinite(event.value) for event in losses)
