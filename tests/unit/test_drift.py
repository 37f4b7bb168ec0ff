"""benchmarks/drift.py: its table and figure, and a tiny run; what reports measure of a change of clusters."""

from __future__ import annotations

from pathlib import Path

import drift
import numpy as np
import pytest
from benchmark_scripts import run_script
from page_data import weights_on
from PIL import Image
from problems import QUIET

from cobo_dist.cli.report import main as report
from cobo_dist.cli.train import main as train
from cobo_dist.reports.reading import Run, Weights, read_run
from cobo_dist.reports.tables.drift import (
    false_partings,
    link_accuracies,
    regret,
    rounds_until_right,
)
from cobo_dist.storage.schema import Method

CLUSTERS = np.array([0, 0, 0, 1, 1])
MOVED = np.array([1, 0, 0, 1, 1])  # client 0, before round 11


def run_of(
    snapshots: dict[int, np.ndarray],
    accuracy: dict[int, float] | None = None,
    rows: dict[int, float] | None = None,
    seed: int = 0,
) -> Run:
    """Return a run whose client 0 changes cluster before round 11."""
    weights = Weights(
        np.array(list(snapshots)), np.stack(list(snapshots.values())), CLUSTERS,
        switches=(11,), later_clusters=MOVED[None],
    )  # fmt: skip
    return Run(
        path=Path("run"), config={"run.seed": seed}, evals={("test", "accuracy"): {None: accuracy or {}}},
        rounds={"link_accuracy": rows or {}}, parts={}, weights=weights, summary=None, notes=(),
        method=Method(learns_weights=True),
    )  # fmt: skip


def block(clusters: np.ndarray) -> np.ndarray:
    return np.equal.outer(clusters, clusters).astype(np.float32)


def test_links_are_right_by_the_clusters_of_their_round() -> None:
    """Of 20 ordered pairs, client 0 has 2 wrong links and lacks 2 after it moved, both ways."""
    run = run_of({5: block(CLUSTERS), 10: block(CLUSTERS), 15: block(CLUSTERS), 20: block(MOVED)})
    assert link_accuracies(run) == {5: 1.0, 10: 1.0, 15: pytest.approx(12 / 20), 20: 1.0}
    assert rounds_until_right(run) == 10.0
    assert rounds_until_right(run_of({5: block(MOVED), 15: block(CLUSTERS)})) is None
    # Rows know every round, so they say it sooner than the next snapshot.
    assert rounds_until_right(run_of({20: block(MOVED)}, rows={10: 1.0, 13: 0.9, 14: 0.95})) == 4.0


def test_only_links_between_clients_that_stay_are_false_partings() -> None:
    parted = block(MOVED)
    parted[1, 2] = 0.2  # one way is enough
    assert false_partings(run_of({10: block(CLUSTERS), 15: block(MOVED)})) == 0.0
    assert false_partings(run_of({10: block(CLUSTERS), 15: parted, 20: block(MOVED)})) == 1.0
    # What was not linked before the change cannot be parted.
    assert false_partings(run_of({10: np.eye(5, dtype=np.float32), 15: parted})) == 0.0


def test_regret_is_the_area_below_the_best_bound_of_the_same_seed_after_the_change() -> None:
    w = {0: block(CLUSTERS)}
    run = run_of(w, {0: 0.0, 10: 0.2, 20: 0.5, 30: 0.9})
    bounds = [
        run_of(w, {0: 0.9, 10: 0.9, 20: 0.9, 30: 0.9}),
        run_of(w, {10: 0.9, 20: 0.4, 30: 0.9}),
        run_of(w, {10: 1.0, 20: 1.0, 30: 1.0}, seed=1),
    ]
    # Evaluations 20 and 30 follow the change: gaps of 0.4 and 0, 10 rounds apart.
    assert regret(run, bounds, drift.accuracy) == pytest.approx(2.0)
    assert regret(run, bounds[2:], drift.accuracy) is None


def test_it_runs_small_and_does_not_repeat_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        drift, "SETTINGS", (*drift.SETTINGS, "run.eval_every=2", "model.hidden=[8]")
    )
    given = ["--only", "Oracle", "CoBo, margin 0", "--rounds", "8", "--seeds", "0", "1"]
    where = ["--out", str(tmp_path / "runs"), "--figures", str(tmp_path / "figures")]
    run_script(monkeypatch, drift, *given, *where)
    printed = capsys.readouterr().out
    assert printed.count("| Oracle |") == printed.count("| CoBo, margin 0 |") == 2
    at_once, staggered = (
        read_run(tmp_path / f"runs/{way}_Oracle_8_s1") for way in ("at_once", "staggered")
    )
    assert at_once.switches == (4,)
    assert 4 <= staggered.switches[0] <= staggered.switches[-1] <= 6
    assert regret(at_once, [at_once], drift.accuracy) == 0.0
    image = np.asarray(Image.open(tmp_path / "figures/drift_accuracy.png").convert("RGB"))
    assert image.std() > 10
    written = {one: one.stat().st_mtime_ns for one in (tmp_path / "runs").glob("*/summary.json")}
    run_script(monkeypatch, drift, *given, *where)
    assert written == {one: one.stat().st_mtime_ns for one in written}


def test_a_report_has_the_table_and_figures_with_the_clusters_of_each_round(tmp_path: Path) -> None:
    small = [
        *QUIET, "run.rounds=8", "run.eval_every=2", "run.log_weights_every=2", "model.hidden=[6]",
        "task.drift=[{round: 5, clients: [0], cluster: 1}]",
    ]  # fmt: skip
    for name in ("oracle", "cobo"):
        assert train([*small, f"algorithm.name={name}", f"run.dir={tmp_path / name}"]) == 0
    assert (
        report([str(tmp_path / "oracle"), str(tmp_path / "cobo"), "--out", str(tmp_path / "out")])
        == 0
    )
    text = (tmp_path / "out/drift.md").read_text()
    assert "| method | regret | rounds until links are right | false partings |" in text.replace(
        "  ", " "
    )
    page = (tmp_path / "out/index.html").read_text()
    assert weights_on(page)[-1]["later"] == [[5, [1, 0, 1, 1, 2, 2, 3, 3]]]
    run = read_run(tmp_path / "cobo")
    assert run.weights is not None
    within = run.weights.links["within"]
    assert set(within) == {0, 2, 4, 6, 8}
    last, clusters = run.weights.weights[-1], np.array([1, 0, 1, 1, 2, 2, 3, 3])
    same = np.equal.outer(clusters, clusters) & ~np.eye(8, dtype=bool)
    assert within[8] == pytest.approx(float(last[same].mean()))
