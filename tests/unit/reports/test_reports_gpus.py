"""The figure of the GPUs: what the rows `gpu` say, over rounds and by rank."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from report_runs import Report, assert_drawn, write_run

from cobo_dist.report import main

RANKS, ROUNDS = 4, range(2, 21, 2)


def write_gpus(folder: Path, ranks: int = RANKS, asked: bool = True) -> Path:
    """Give a fabricated run rows of GPUs; not `asked`: NVML, which knows load and power, is missing."""
    rng = np.random.default_rng(0)
    lines = []
    for r in ROUNDS:
        busy = (0.9 - 0.08 * np.arange(ranks) - 0.5 / r + 0.02 * rng.random(ranks)).round(3)
        row = {
            **{"event": "gpu", "round": r},
            **{
                "allocated": [2e9 + 1e8 * rank for rank in range(ranks)],
                "reserved": [3.3e9] * ranks,
            },
            "utilisation": busy.tolist() if asked else [None] * ranks,
            "power": (150 + 400 * busy).round(1).tolist() if asked else [None] * ranks,
        }
        lines.append(json.dumps(row) + "\n")
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write("".join(lines))
    return folder


def report_on(tmp_path: Path, *runs: Path) -> Report:
    out = tmp_path / "out"
    assert main([*map(str, runs), "--out", str(out)]) == 0
    return Report(tmp_path, out, "")


def test_each_rank_is_drawn_over_the_rounds(tmp_path: Path) -> None:
    first = write_gpus(write_run(tmp_path / "cobo"))
    second = write_gpus(write_run(tmp_path / "local", "local"), ranks=1)
    found = report_on(tmp_path, first, second, write_run(tmp_path / "oracle", "oracle"))
    rows = found.rows("gpus.csv")
    assert len(rows) == len(ROUNDS) * (RANKS + 1)
    row = next(one for one in rows if (one["rank"], one["round"]) == ("3", "20"))
    assert (float(row["allocated"]), float(row["reserved"])) == (2.3e9, 3.3e9)
    assert 0.6 < float(row["utilisation"]) < 0.7
    both = assert_drawn(found.out / "gpus.png")
    page = (found.out / "index.html").read_text(encoding="utf-8")
    assert "The GPU of each rank" in page
    alone = assert_drawn(report_on(tmp_path, first).out / "gpus.png")
    assert len(both) > 1.5 * len(alone), "a row of panels for each method"


def test_what_no_gpu_said_has_no_panel(tmp_path: Path) -> None:
    whole = assert_drawn(
        report_on(tmp_path, write_gpus(write_run(tmp_path / "a"))).out / "gpus.png"
    )
    memory = write_gpus(write_run(tmp_path / "b"), asked=False)
    drawn = assert_drawn(report_on(tmp_path, memory).out / "gpus.png")
    assert drawn.shape[1] < 0.6 * whole.shape[1]


def test_a_run_on_the_cpu_has_no_figure(tmp_path: Path) -> None:
    found = report_on(tmp_path, write_run(tmp_path / "cobo"))
    assert not (found.out / "gpus.png").exists()
    assert "The GPU of each rank" not in (found.out / "index.html").read_text(encoding="utf-8")


def test_a_run_that_was_resumed_on_other_ranks_shows_the_last_ones(tmp_path: Path) -> None:
    folder = write_gpus(write_run(tmp_path / "cobo"))
    row = {"event": "gpu", "round": 22, **{name: [1.0, 0.5] for name in ("allocated", "reserved")}}
    row |= {"utilisation": [1.0, 0.5], "power": [300, 200]}
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    assert [one["round"] for one in report_on(tmp_path, folder).rows("gpus.csv")] == ["22", "22"]


def test_lists_of_different_lengths_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"event": "gpu", "round": 3, "allocated": [1], "reserved": [1, 2]}
    row |= {"utilisation": [None], "power": [1]}
    folder = write_run(tmp_path / "cobo")
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    assert main([str(folder), "--out", str(tmp_path / "out")]) == 2
    assert "not one list of all ranks each" in capsys.readouterr().err
