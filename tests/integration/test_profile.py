"""Where a round's time goes: the timer, its rows in metrics.jsonl, the trace, the figure."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from pool import RankPool
from problems import QUIET, models, rows, train

from cobo_dist.cli.report import main as report
from cobo_dist.errors import ConfigError
from cobo_dist.phase_timer import PHASES, PhaseTimer
from cobo_dist.reports.reading import read_run

RUN = [
    "run.rounds=14", "run.eval_every=0", "task.test_size=80", "model.hidden=[8]", "log.profile=true",
    "run.threads=1", "run.engine=one_by_one", "log.flush_every=4",
]  # fmt: skip


def test_a_second_counts_once_and_to_the_innermost_span() -> None:
    timer = PhaseTimer()
    began = time.perf_counter()
    timer.take()
    with timer.span("mixing"):
        time.sleep(0.02)
        with timer.span("waiting"), timer.span("waiting"):
            time.sleep(0.05)
    taken = timer.take()
    whole = time.perf_counter() - began
    assert sum(taken.values()) <= whole + 1e-4
    assert 0.02 <= taken["mixing"] < 0.05 <= taken["waiting"]
    assert taken["gradients"] == 0.0
    assert sum(timer.take().values()) < 0.02


def test_a_timer_that_is_off_measures_nothing() -> None:
    timer = PhaseTimer.off()
    with timer.span("mixing"):
        time.sleep(0.01)
    assert timer.span("mixing") is timer.span("waiting")


@pytest.fixture(scope="module")
def profiled(gloo_pool: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profile") / "run"
    gloo_pool.run(2, train, [*RUN, "log.trace=2", f"run.dir={folder}"])
    return folder


def test_every_round_has_a_row_of_where_its_time_went(profiled: Path) -> None:
    found = rows(profiled, "profile")
    assert [row["round"] for row in found] == list(range(1, 15))
    seconds = {row["round"]: row["seconds"] for row in rows(profiled, "round")}
    for row in found:
        assert tuple(row["seconds"]) == PHASES
        spent = np.array([row["seconds"][kind] for kind in PHASES])
        assert spent.shape == (len(PHASES), 2)
        assert (spent >= 0).all()
        # A round's own seconds are all there, on rank 0 whose clock both are.
        assert spent[:, 0].sum() >= seconds[row["round"]] - 1e-3
    for kind in ("gradients", "waiting", "mixing"):
        assert sum(sum(row["seconds"][kind]) for row in found) > 0


def test_profiling_changes_no_number(profiled: Path, pool: RankPool, tmp_path: Path) -> None:
    pool.run(2, train, [*RUN, "log.profile=false", f"run.dir={tmp_path / 'run'}"])
    assert not rows(tmp_path / "run", "profile")
    for name, value in models(profiled).items():
        assert np.array_equal(value, models(tmp_path / "run")[name]), name


def test_the_trace_names_the_spans(profiled: Path) -> None:
    for rank in (0, 1):
        trace = json.loads((profiled / "profile" / f"rank_{rank:05d}.json").read_text())
        names = [event.get("name") for event in trace["traceEvents"]]
        assert names.count("gradients") >= 2  # rounds 11 and 12
        assert {"waiting", "mixing"} <= set(names)


def test_the_figure_has_a_bar_for_each_rank(
    profiled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report([str(profiled), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "profile.png").stat().st_size > 5000
    lines = (tmp_path / "profile.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * len(PHASES)
    assert lines[1].endswith(",4")  # rounds 11 to 14
    assert "Where a round&#39;s time goes" in (tmp_path / "index.html").read_text()


def test_malformed_profile_rows_are_refused(tmp_path: Path) -> None:
    from cobo_dist.cli.train import main

    assert main([*QUIET, *RUN, "run.rounds=1", f"run.dir={tmp_path / 'run'}"]) == 0
    path = tmp_path / "run" / "metrics.jsonl"
    good = path.read_text()
    for seconds, why in (
        ('{"gradients": 1.0}', r"seconds\.gradients is 1\.0"),
        ('{"gradients": [1], "mixing": [1, 2]}', "one list of all ranks for each kind"),
        ("[1]", r"seconds is \[1\]"),
    ):
        path.write_text(good + f'{{"event": "profile", "round": 1, "seconds": {seconds}}}\n')
        with pytest.raises(ConfigError, match=rf"metrics\.jsonl, line \d+: .*{why}"):
            read_run(tmp_path / "run")
