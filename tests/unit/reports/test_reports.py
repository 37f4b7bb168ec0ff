"""The report on two tasks: right numbers in the tables, the inputs in the CSVs, drawn figures."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import scipy.stats
from report_runs import FINALS, N, Report, T, assert_drawn, blocks, markdown_row, write_run


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """One report over both tasks: drawing is slow, so all tests of good input share it."""
    root = tmp_path_factory.mktemp("reports")
    folders = [
        write_run(root / f"digits-{algorithm}-s{seed}", algorithm, seed)
        for algorithm, seeds in FINALS.items()
        for seed in seeds
    ]
    stopped: dict[str, Any] = {"finished": False, "last": 12, "finals": [0.5] * N}
    folders.append(write_run(root / "digits-ditto-s1", "ditto", 1, **stopped))
    folders.append(write_run(root / "quadratic-cobo-s1", "cobo", 1, "quadratic"))
    out = root / "out"
    command = [sys.executable, "-m", "cobo_dist.report", *map(str, folders), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return Report(root, out, done.stdout)


def test_table_holds_hand_checked_numbers(report: Report) -> None:
    """cobo: 70, 73, 76 -> 73 ± 4.303 * 3 / sqrt(3); better than Local 7, 8, 6 of 8 -> 21/24 = 87.5%."""
    # method, seeds, accuracy, loss = 2 - accuracy, Imp.%, link accuracy, rounds, MB a round, seconds
    cobo = ["cobo", "3", "73.0 ± 7.5", "1.270 ± 0.075", "87.5", "75.0", "20", "3", "20.0"]
    assert markdown_row(report, "cobo") == cobo
    local = ["local", "3", "62.0 ± 5.0", "1.380 ± 0.050", "-", "-", "20", "3", "20.0"]
    assert markdown_row(report, "local") == local
    oracle = ["oracle", "3", "75.0 ± 2.5", "1.250 ± 0.025", "100.0", "-", "20", "3", "20.0"]
    assert markdown_row(report, "oracle") == oracle
    # A single seed has no interval.
    assert markdown_row(report, "fedavg")[1:5] == ["1", "20.0", "1.800", "0.0"]


def test_unfinished_run_shows_its_last_evaluation(report: Report) -> None:
    """Ditto stopped at round 12; last evaluated at 10: 0.1 + 10/20 * (0.5 - 0.1) = 30%."""
    ditto = markdown_row(report, "ditto")
    # No Imp.%: Local's clients are known at round 20 only by their last values.
    assert ditto[1:5] == ["1 (unfinished, round 12)", "30.0", "1.750", "-"]
    assert (ditto[6], ditto[8]) == ("12", "6.0")  # seconds: 12 rounds of 0.5
    assert max(report.curve("digits/accuracy.csv", "ditto", "accuracy")) == 10


def test_table_csv_keeps_all_digits_and_tasks_apart(report: Report) -> None:
    """The CSV has one row per task and method, empty where there is no number."""
    rows = {(row["task"], row["method"]): row for row in report.rows("table.csv")}
    methods = ["local", "fedavg", "ditto", "cobo", "oracle"]
    assert list(rows) == [*(("digits", method) for method in methods), ("quadratic", "cobo")]
    cobo = rows["digits", "cobo"]
    assert float(cobo["accuracy_percent_mean"]) == pytest.approx(73.0)
    assert float(cobo["accuracy_percent_std"]) == pytest.approx(3.0)
    assert float(cobo["accuracy_percent_ci95"]) == pytest.approx(4.30265 * math.sqrt(3), rel=1e-5)
    assert float(cobo["imp_percent"]) == pytest.approx(87.5)
    assert float(cobo["mb_per_round"]) == pytest.approx(3.0)
    assert float(cobo["best_mean"]) == pytest.approx(73.0), "accuracies rise to the end"
    assert cobo["by_examples_mean"] == cobo["best_by_examples_mean"] == "", "no sizes are logged"
    assert rows["digits", "ditto"]["unfinished_at_round"] == "12"
    assert rows["digits", "fedavg"]["accuracy_percent_std"] == ""
    assert rows["digits", "fedavg"]["accuracy_percent_ci95"] == ""
    quadratic = rows["quadratic", "cobo"]
    assert quadratic["accuracy_percent_mean"] == ""
    # No Local run of this task: the other task's Local must not be taken.
    assert quadratic["imp_percent"] == ""
    assert float(quadratic["loss_mean"]) == pytest.approx(2.0 - 0.70)


def test_accuracy_csv_equals_the_inputs(report: Report) -> None:
    """Means of the logged fractions over seeds 1, 2, 3, at the rounds that were evaluated."""
    curve = report.curve("digits/accuracy.csv", "cobo", "accuracy")
    assert list(curve) == [0, 5, 10, 15, 20]
    for number, (mean, std, half, seeds) in curve.items():
        values = [0.1 + number / T * (FINALS["cobo"][seed][0] - 0.1) for seed in (1, 2, 3)]
        assert mean == pytest.approx(np.mean(values))
        assert float(std) == pytest.approx(np.std(values, ddof=1))
        interval = scipy.stats.t.interval(0.95, 2, mean, scipy.stats.sem(values))
        assert (mean - float(half), mean + float(half)) == pytest.approx(interval)
        assert seeds == 3
    mean, std, half, seeds = report.curve("digits/accuracy.csv", "fedavg", "accuracy")[20]
    assert mean == pytest.approx(0.2)
    assert (std, half, seeds) == ("", "", 1)
    loss = report.curve("digits/loss.csv", "local", "loss")
    assert loss[20][0] == pytest.approx(2.0 - 0.62)


def test_weights_csv_equals_the_matrices(report: Report) -> None:
    """Every entry of every drawn round, under the clients' own numbers."""
    rows = report.rows("digits/weights_cobo_s2.csv")
    assert [int(n) for n in dict.fromkeys(row["round"] for row in rows)] == [1, 2, 7, 20]
    assert len(rows) == 4 * N * N
    for row in rows:
        expected = blocks(int(row["round"]))[int(row["i"]), int(row["j"])]
        assert np.float32(row["weight"]) == expected
    methods = list(dict.fromkeys(row["method"] for row in report.rows("digits/weights_all.csv")))
    # Only methods that learn W: Local's, FedAvg's and the oracle's say nothing.
    assert methods == ["ditto", "cobo"]


def test_graph_csv_tells_links_within_from_across(report: Report) -> None:
    """CoBo's links within clusters stay at 1; across they fall as 1 - 2t/T."""
    name = "digits/graph_cobo.csv"
    within = report.curve(name, "cobo", "within")
    across = report.curve(name, "cobo", "across")
    assert {mean for mean, *_ in within.values()} == {1.0}
    expected = {n: max(0.0, 1 - 2 * n / T) for n in (0, 1, 2, 4, 7, 10, 15, 20)}
    assert {n: mean for n, (mean, *_) in across.items()} == pytest.approx(expected)
    alignment = report.curve(name, "cobo", "alignment")
    # Rounds that drew no pair logged null: they are absent, not 0.
    assert list(alignment) == [n for n in range(1, T + 1) if n % 3]
    assert alignment[4][0] == pytest.approx(math.cos(4) / 4)
    # Weights that never move have no such figure.
    assert not list((report.out / "digits").glob("graph_[lfo]*"))


def test_decay_csv_holds_the_running_mean(report: Report) -> None:
    """After 2 rounds the mean consensus distance is (2.8 + 1.96) / 2 = 2.38."""
    each = report.curve("quadratic/decay.csv", "cobo", "consensus_distance")
    mean = report.curve("quadratic/decay.csv", "cobo", "consensus_distance_mean_to_round")
    assert each[2][0] == pytest.approx(1.96)
    assert mean[2][0] == pytest.approx(2.38)
    gradient = report.curve("quadratic/decay.csv", "cobo", "gradient_norm")
    assert gradient[20][0] == pytest.approx(9.0 * 0.8**20)


def test_every_figure_is_drawn_and_listed(report: Report) -> None:
    """Each PNG shows something, has a CSV beside it, is listed in the output, and is part of index.html."""
    images = sorted(report.out.rglob("*.png"))
    names = {str(image.relative_to(report.out)) for image in images}
    digits = {"accuracy", "loss", "graph_cobo", "graph_ditto", "weights_all", "weights_ditto_s1"}
    digits |= {f"weights_cobo_s{seed}" for seed in FINALS["cobo"]}
    graph = ("network", "tree", "map", "stability")
    digits |= {f"{name}_{method}" for name in graph for method in ("cobo", "ditto")}
    quadratic = {"loss", "decay", "graph", "weights", *graph}
    expected = {f"digits/{name}.png" for name in digits}
    assert names == expected | {f"quadratic/{name}.png" for name in quadratic}
    for image in images:
        assert_drawn(image)
        assert str(image.relative_to(report.out)) in report.printed
    page = (report.out / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == len(images)
    assert not re.search(r"(src|href)='(?!data:|#)", page)
    assert "73.0 ± 7.5" in page
    assert "73.0 ± 7.5" in report.printed


def test_cobo_has_its_color_in_the_curves(report: Report) -> None:
    """Both figures of curves have a thick line in CoBo's color."""
    for name in ("accuracy", "loss"):
        pixels = matplotlib.image.imread(report.out / "digits" / f"{name}.png")[..., :3]
        cobo = np.abs(pixels - np.array([0xD5, 0x5E, 0x00]) / 255).max(axis=-1) < 0.02
        assert 500 < cobo.sum() < 0.05 * cobo.size, name  # a line, and no more than one
