"""Reports on virtual time: curves over seconds, seconds to a target, and what clients do at first."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from report_runs import write_run

from cobo_dist.cli.report import main
from cobo_dist.reports.figures.virtual_time import spans
from cobo_dist.storage.schema import TimelineRow


def with_seconds(folder: Path, seconds: float) -> Path:
    """Give a fabricated run rounds of so many virtual seconds, and a timeline of the first two."""
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row["event"] == "round":
            row["virtual_seconds"] = seconds * row["round"]
    rows += [
        json.loads(row.to_json())
        for row in (
            TimelineRow(round=1, virtual_seconds=seconds, begins=[0, 1], acts=[0], work=[seconds], waits=[]),
            TimelineRow(
                round=2, virtual_seconds=2 * seconds, begins=[], acts=[1], work=[2 * seconds], waits=[0]
            ),
        )
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_report_has_virtual_seconds_where_runs_have_them(tmp_path: Path) -> None:
    """Seeds whose rounds last 2 and 4 seconds: at each round, 3 seconds on average."""
    runs = [with_seconds(write_run(tmp_path / str(seed), seed=seed), 2.0 * seed) for seed in (1, 2)]
    runs.append(write_run(tmp_path / "local", "local"))
    out = tmp_path / "report"
    assert main([*map(str, runs), "--out", str(out)]) == 0
    drawn = read_csv(out / "seconds.csv")
    assert {row["method"] for row in drawn} == {"cobo"}
    assert {float(row["round"]) for row in drawn} == {0, 5, 10, 15, 20}
    for row in drawn:
        assert float(row["virtual_seconds"]) == pytest.approx(3.0 * float(row["round"]))
    reached = read_csv(out / "reached.csv")
    found = [row for row in reached if row["method"] == "cobo" and row["round_mean"]]
    assert found
    for row in found:
        rounds = float(row["round_mean"])  # of both seeds, or of one alone
        seconds = float(row["virtual_seconds_mean"]) / rounds
        assert 2.0 <= seconds <= 4.0
    assert {row["virtual_seconds_mean"] for row in reached if row["method"] == "local"} == {""}
    text = (out / "reached.md").read_text()
    assert " s)" in text
    assert "In parentheses: its end in virtual seconds" in text
    page = (out / "index.html").read_text()
    assert "over virtual seconds" in page
    assert "What clients do in the first rounds of virtual time" in page
    does = [(row["client"], row["does"], row["end"]) for row in read_csv(out / "timeline_cobo.csv")]
    assert ("1", "works", "4.0") in does
    assert ("0", "waits", "4.0") in does


def test_without_virtual_time_a_report_says_nothing_of_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert main([str(run), "--out", str(tmp_path / "report")]) == 0
    files = {path.name for path in (tmp_path / "report").iterdir()}
    assert not {one for one in files if one.startswith(("seconds", "timeline"))}
    assert "virtual" not in (tmp_path / "report" / "reached.md").read_text()


def test_spans_are_work_waits_and_meetings() -> None:
    """Client 1 works for 3 s; client 0 for 1 s, and waits for it: at first within its round."""
    timeline = {
        1: TimelineRow(
            round=1, virtual_seconds=3, begins=[0, 1], acts=[0, 1], work=[1, 3], waits=[], met=[[0, 1]]
        ),
        2: TimelineRow(round=2, virtual_seconds=4, begins=[0, 1], acts=[0], work=[1], waits=[]),
        3: TimelineRow(round=3, virtual_seconds=5, begins=[], acts=[], work=[], waits=[0]),
    }  # fmt: skip
    found = {tuple(row) for row in spans(timeline).itertuples(index=False)}
    assert found == {
        (0, "works", 0.0, 1.0, ""),
        (0, "waits", 1.0, 3.0, ""),
        (1, "works", 0.0, 3.0, ""),
        (0, "meets", 0.0, 3.0, 1),
        (0, "works", 3.0, 4.0, ""),
        (0, "waits", 4.0, 5.0, ""),
        (1, "works", 3.0, 5.0, ""),
    }
