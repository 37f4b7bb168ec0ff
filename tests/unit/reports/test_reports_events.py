"""Reports of runs whose clients join and leave: marked rounds, grey rows of W, absent results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from report_runs import SAME, N, write_run

from cobo_dist.errors import ConfigError
from cobo_dist.reports.figures import draw_over_rounds
from cobo_dist.reports.figures import events as figure_events
from cobo_dist.reports.grouping import Group, group_runs
from cobo_dist.reports.page import make_explorer
from cobo_dist.reports.reading import read_run
from cobo_dist.reports.reading.run import Run


def write_with_events(folder: Path) -> Path:
    """Client 7 joins before round 6, client 0 leaves before round 12; W of absent clients is 0."""
    run = write_run(folder)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]

    def absent(row: dict[str, object]) -> bool:
        r = int(str(row["round"]))
        return (row.get("client") == 7 and r < 6) or (row.get("client") == 0 and r >= 12)

    rows = [row for row in rows if not absent(row)]
    rows.append(
        {"event": "joined", "round": 6, "client": 7, "start": "mean", "models": 7, "first_model": 0}
    )
    rows.append({"event": "left", "round": 12, "client": 0})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = json.loads((run / "summary.json").read_text())
    for one in summary["per_client"]:
        one["cluster"] = 0
    summary["per_client"][0] = {"client": 0, "cluster": None, "loss": None, "accuracy": None}
    (run / "summary.json").write_text(json.dumps(summary))
    return run


def groups_of(run: Run) -> list[Group]:
    (problem,), _ = group_runs([run])
    return list(problem.groups)


def test_absent_clients_are_known_by_round(tmp_path: Path) -> None:
    run = read_run(write_with_events(tmp_path / "run"))
    assert run.events == ((6, 7, True), (12, 0, False))
    weights = run.weights
    assert weights is not None
    assert weights.absent is not None
    absent = [np.flatnonzero(away).tolist() for away in weights.absent]
    assert dict(zip(weights.rounds.tolist(), absent, strict=True)) == {
        0: [7], 1: [7], 2: [7], 4: [7], 7: [], 10: [], 15: [0], 20: [0],
    }  # fmt: skip
    last = ~np.eye(N, dtype=bool) & ~weights.absent[-1] & ~weights.absent[-1][:, None]
    within = weights.weights[-1][last & SAME].mean()
    assert weights.links["within"][20] == pytest.approx(float(within))
    assert run.summary is not None
    assert run.summary.per_client[0] == {}
    assert run.summary.per_client[1]["accuracy"] > 0


def test_the_slider_and_the_curves_show_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = read_run(write_with_events(tmp_path / "run"))
    groups = groups_of(run)
    explorer = make_explorer(groups, groups, "w")
    assert explorer is not None
    shown = explorer.data(1_000_000)["runs"][0]["weights"]
    places = [[shown["clients"][place] for place in one] for one in shown["absent"]]
    assert (places[0], places[-1]) == ([7], [0])
    labels: list[str] = []
    keep = figure_events.Axes.annotate

    def annotate(axes: object, text: str, *rest: object, **more: object) -> object:
        labels.append(text)
        return keep(axes, text, *rest, **more)

    monkeypatch.setattr(figure_events.Axes, "annotate", annotate)
    assert draw_over_rounds(groups, tmp_path)
    assert {"+7", "\u22120"} <= set(labels)


def test_an_unfinished_run_may_lack_clients_that_have_not_joined(tmp_path: Path) -> None:
    run = write_with_events(tmp_path / "run")
    (run / "summary.json").unlink()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    early = [row for row in lines if row["round"] < 6 or row["event"] == "left"]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in early))
    assert read_run(run).last_round == 5
    stranger = [*early, {"event": "left", "round": 5, "client": 8}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in stranger))
    with pytest.raises(ConfigError, match="tells of client 8, and"):
        read_run(run)
