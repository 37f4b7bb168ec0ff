"""The report: right numbers in the tables, the inputs in the CSVs, drawn figures, clear refusals.

All run folders here are fabricated. n = 8 clients in 4 clusters of 2, T = 20 rounds.
"""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import yaml

from cobo_dist.report import main
from cobo_dist.reports.grouping import group_runs
from cobo_dist.reports.reading import read_run
from cobo_dist.reports.series import over_seeds, running_mean, running_median, spread_rounds
from cobo_dist.reports.table import make_rows

N, T, EVERY = 8, 20, 5
CLUSTERS = np.array([0, 1, 2, 3, 0, 1, 2, 3])  # not in order: heat maps have to sort them
SAME = CLUSTERS[:, None] == CLUSTERS[None, :]
NAN = float("nan")

# Final accuracy of the average client, by seed, and how many of the 8 clients beat their Local.
FINALS = {
    "local": {1: (0.60, 0), 2: (0.62, 0), 3: (0.64, 0)},
    "fedavg": {1: (0.20, 0)},
    "cobo": {1: (0.70, 7), 2: (0.73, 8), 3: (0.76, 6)},
    "oracle": {1: (0.74, 8), 2: (0.75, 8), 3: (0.76, 8)},
}


def client_accuracies(algorithm: str, seed: int) -> list[float]:
    """Eight accuracies with the mean of `FINALS` of which the stated number beat Local's."""
    mean, better = FINALS[algorithm][seed]
    local = FINALS["local"][seed][0]
    if algorithm == "local" or better in (0, N):
        return [mean] * N
    worse = local - 0.1
    return [(mean * N - worse * (N - better)) / better] * better + [worse] * (N - better)


def blocks(number: int) -> np.ndarray:
    """W of CoBo after `number` rounds: all ones at first, the true clusters from T/2 on."""
    return np.where(SAME, 1.0, max(0.0, 1.0 - 2.0 * number / T)).astype(np.float32)


MATRICES: dict[str, Callable[[int], np.ndarray]] = {
    "local": lambda _: np.eye(N, dtype=np.float32),
    "fedavg": lambda _: np.ones((N, N), dtype=np.float32),
    "cobo": blocks,
    "oracle": lambda _: SAME.astype(np.float32),
}


def write_run(
    folder: Path,
    algorithm: str = "cobo",
    seed: int = 1,
    task: str = "digits",
    *,
    finals: list[float] | None = None,
    last: int = T,
    finished: bool = True,
    **settings: Any,
) -> Path:
    """Fabricate one run folder. `last` is the last round on record; `settings` are algorithm keys."""
    folder.mkdir(parents=True)
    config = {
        "run": {"seed": seed, "dir": str(folder), "rounds": T, "eval_every": EVERY},
        "task": {"name": task, "clients": N},
        "algorithm": {"name": algorithm, "rho": 0.01, **settings},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    finals = finals or client_accuracies(algorithm, seed)
    quadratic = task == "quadratic"

    def measured(number: int, client: int | None) -> dict[str, float]:
        reached = number / T  # accuracies rise in a straight line from 0.1
        final = sum(finals) / N if client is None else finals[client]
        loss = 2.0 - reached * final
        return (
            {"loss": loss}
            if quadratic
            else {"loss": loss, "accuracy": 0.1 + reached * (final - 0.1)}
        )

    events: list[dict[str, Any]] = []
    for number in range(last + 1):
        if number:
            events.append(round_event(number, algorithm, quadratic))
        if number % EVERY == 0:
            for client in [*range(N), None]:
                place = {"event": "eval", "round": number, "client": client, "split": "test"}
                events.append({**place, "model": "personal", **measured(number, client)})
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    logged = [number for number in (0, 1, 2, 4, 7, 10, 15, 20) if number <= last]
    weights = np.stack([MATRICES.get(algorithm, blocks)(number) for number in logged])
    np.savez(folder / "W.npz", rounds=np.array(logged), weights=weights, clusters=CLUSTERS)
    if finished:
        summary = {
            **{"task": task, "algorithm": algorithm, "seed": seed, "rounds": T, "clients": N},
            **{"ranks": 2, "seconds": 10.0 * seed, "bytes_sent": 3_000_000 * T},
            "final": measured(T, None),
            "per_client": [{"client": i, **measured(T, i)} for i in range(N)],
            "cluster_match": 0.75 if algorithm == "cobo" else None,
        }
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def round_event(number: int, algorithm: str, quadratic: bool) -> dict[str, Any]:
    """The line of one round."""
    event = {
        **{"event": "round", "round": number, "seconds": 0.5, "pairs": 4, "messages": 8},
        **{"bytes_sent": 3_000_000, "loss": 2.0 / number, "weights_at_1": 0.2},
        "alignment": math.cos(number) / number if algorithm == "cobo" and number % 3 else None,
        "weights_at_0": min(1.0, number / 10),
        "components": min(4, 1 + number // 3),
    }
    if quadratic:
        event |= {"consensus_distance": 4.0 * 0.7**number, "gradient_norm": 9.0 * 0.8**number}
    return event


@dataclass(frozen=True)
class Report:
    """What one call of the door left."""

    runs: Path
    out: Path
    printed: str

    def rows(self, name: str) -> list[dict[str, str]]:
        """The rows of a CSV in the report."""
        with (self.out / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def curve(self, name: str, method: str, quantity: str) -> dict[int, tuple[float, str, int]]:
        """One curve of a CSV: round -> mean, std as written, seeds."""
        return {
            int(row["round"]): (float(row["mean"]), row["std"], int(row["seeds"]))
            for row in self.rows(name)
            if (row["method"], row["quantity"]) == (method, quantity)
        }


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


def markdown_row(report: Report, method: str) -> list[str]:
    """The cells of the first Markdown row of a method."""
    for line in (report.out / "table.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == method:
            return cells
    raise AssertionError(f"no row {method}")


def test_table_holds_hand_checked_numbers(report: Report) -> None:
    """cobo: 70, 73, 76 -> 73 ± 3; clients better than Local 7, 8, 6 of 8 -> 21/24 = 87.5%."""
    # method, seeds, accuracy, loss = 2 - accuracy, Imp.%, links right, MB a round, seconds
    cobo = ["cobo", "3", "73.0 ± 3.0", "1.270 ± 0.030", "87.5", "75.0", "3", "20.0"]
    assert markdown_row(report, "cobo") == cobo
    local = ["local", "3", "62.0 ± 2.0", "1.380 ± 0.020", "-", "-", "3", "20.0"]
    assert markdown_row(report, "local") == local
    oracle = ["oracle", "3", "75.0 ± 1.0", "1.250 ± 0.010", "100.0", "-", "3", "20.0"]
    assert markdown_row(report, "oracle") == oracle
    # A single seed shows no deviation.
    assert markdown_row(report, "fedavg")[1:5] == ["1", "20.0", "1.800", "0.0"]


def test_unfinished_run_shows_its_last_evaluation(report: Report) -> None:
    """Ditto stopped at round 12; last evaluated at 10: 0.1 + 10/20 * (0.5 - 0.1) = 30%."""
    ditto = markdown_row(report, "ditto")
    # No Imp.%: Local's clients are known at round 20 only by their last values.
    assert ditto[1:5] == ["1 (unfinished, round 12)", "30.0", "1.750", "-"]
    assert ditto[7] == "6.0"  # seconds: 12 rounds of 0.5
    assert max(report.curve("digits/accuracy.csv", "ditto", "accuracy")) == 10


def test_table_csv_keeps_all_digits_and_tasks_apart(report: Report) -> None:
    """The CSV has one row per task and method, empty where there is no number."""
    rows = {(row["task"], row["method"]): row for row in report.rows("table.csv")}
    methods = ["local", "fedavg", "ditto", "cobo", "oracle"]
    assert list(rows) == [*(("digits", method) for method in methods), ("quadratic", "cobo")]
    cobo = rows["digits", "cobo"]
    assert float(cobo["accuracy_percent_mean"]) == pytest.approx(73.0)
    assert float(cobo["accuracy_percent_std"]) == pytest.approx(3.0)
    assert float(cobo["imp_percent"]) == pytest.approx(87.5)
    assert float(cobo["mb_per_round"]) == pytest.approx(3.0)
    assert rows["digits", "ditto"]["unfinished_at_round"] == "12"
    assert rows["digits", "fedavg"]["accuracy_percent_std"] == ""
    quadratic = rows["quadratic", "cobo"]
    assert quadratic["accuracy_percent_mean"] == ""
    # No Local run of this task: the other task's Local must not be taken.
    assert quadratic["imp_percent"] == ""
    assert float(quadratic["loss_mean"]) == pytest.approx(2.0 - 0.70)


def test_accuracy_csv_equals_the_inputs(report: Report) -> None:
    """Means of the logged fractions over seeds 1, 2, 3, at the rounds that were evaluated."""
    curve = report.curve("digits/accuracy.csv", "cobo", "accuracy")
    assert list(curve) == [0, 5, 10, 15, 20]
    for number, (mean, std, seeds) in curve.items():
        values = [0.1 + number / T * (FINALS["cobo"][seed][0] - 0.1) for seed in (1, 2, 3)]
        assert mean == pytest.approx(np.mean(values))
        assert float(std) == pytest.approx(np.std(values, ddof=1))
        assert seeds == 3
    mean, std, seeds = report.curve("digits/accuracy.csv", "fedavg", "accuracy")[20]
    assert mean == pytest.approx(0.2)
    assert (std, seeds) == ("", 1)
    loss = report.curve("digits/loss.csv", "local", "loss")
    assert loss[20][0] == pytest.approx(2.0 - 0.62)


def test_weights_csv_equals_the_matrices(report: Report) -> None:
    """Every entry of every drawn round, under the clients' own numbers."""
    rows = report.rows("digits/weights_cobo_s2.csv")
    assert [int(n) for n in dict.fromkeys(row["round"] for row in rows)] == [0, 1, 2, 7, 20]
    assert len(rows) == 5 * N * N
    for row in rows:
        expected = blocks(int(row["round"]))[int(row["i"]), int(row["j"])]
        assert np.float32(row["weight"]) == expected
    methods = list(dict.fromkeys(row["method"] for row in report.rows("digits/weights_all.csv")))
    assert methods == ["local", "fedavg", "ditto", "cobo", "oracle"]


def test_graph_csv_tells_links_within_from_across(report: Report) -> None:
    """CoBo's links within clusters stay at 1; across they fall as 1 - 2t/T."""
    name = "digits/graph_cobo.csv"
    within = report.curve(name, "cobo", "within")
    across = report.curve(name, "cobo", "across")
    assert {mean for mean, _, _ in within.values()} == {1.0}
    expected = {n: max(0.0, 1 - 2 * n / T) for n in (0, 1, 2, 4, 7, 10, 15, 20)}
    assert {n: mean for n, (mean, _, _) in across.items()} == pytest.approx(expected)
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
    """Each PNG has ink in it and a CSV beside it, is printed, and lies inside index.html."""
    images = sorted(report.out.rglob("*.png"))
    names = {str(image.relative_to(report.out)) for image in images}
    digits = {"accuracy", "loss", "graph_cobo", "graph_ditto", "weights_all", "weights_ditto_s1"}
    digits |= {f"weights_{method}_s{seed}" for method in FINALS for seed in FINALS[method]}
    quadratic = {"loss", "decay", "graph", "weights"}
    expected = {f"digits/{name}.png" for name in digits}
    assert names == expected | {f"quadratic/{name}.png" for name in quadratic}
    for image in images:
        pixels = matplotlib.image.imread(image)[..., :3]  # [height, width, 3] in [0, 1]
        assert min(pixels.shape[:2]) > 250, image
        assert len(np.unique(pixels.sum(axis=-1))) > 20, image
        assert 0.01 < (pixels.min(axis=-1) < 0.9).mean() < 0.9, image
        assert image.with_suffix(".csv").is_file()
        assert str(image.relative_to(report.out)) in report.printed
    page = (report.out / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == len(images)
    assert not re.search(r"(src|href)='(?!data:)", page)
    assert "73.0 ± 3.0" in page
    assert "73.0 ± 3.0" in report.printed


def test_cobo_has_its_colour_in_the_curves(report: Report) -> None:
    """The thick CoBo line is there in its own colour, in both figures of curves."""
    for name in ("accuracy", "loss"):
        pixels = matplotlib.image.imread(report.out / "digits" / f"{name}.png")[..., :3]
        cobo = np.abs(pixels - np.array([0xD5, 0x5E, 0x00]) / 255).max(axis=-1) < 0.02
        assert cobo.sum() > 500, name


# --- naming, grouping, awkward but legal input -------------------------------------------------


def test_settings_name_the_rows_that_differ(tmp_path: Path) -> None:
    """Two values of rho are two methods; another seed or folder is not."""
    runs = [
        read_run(write_run(tmp_path / f"{rho}-{seed}", seed=seed, rho=rho))
        for rho in (0.1, 0.5)
        for seed in (2, 1)
    ]
    tasks, notes = group_runs(runs)
    assert [group.label for group in tasks["digits"]] == ["cobo (rho=0.1)", "cobo (rho=0.5)"]
    assert [run.seed for run in tasks["digits"][0].runs] == [1, 2]
    assert notes == []


def test_same_seed_twice_counts_once(tmp_path: Path) -> None:
    """A repetition is no new sample: the finished run is kept, the other named."""
    cut = read_run(write_run(tmp_path / "cut", finished=False, last=10))
    whole = read_run(write_run(tmp_path / "whole"))
    tasks, notes = group_runs([cut, whole])
    assert [run.path.name for run in tasks["digits"][0].runs] == ["whole"]
    assert len(notes) == 1
    assert str(cut.path) in notes[0]


def test_unfinished_seed_does_not_dilute_finished_ones(tmp_path: Path) -> None:
    """Seed 1 finished, seed 2 stopped at 10: the row is seed 1's and says so."""
    runs = [read_run(write_run(tmp_path / "1", seed=1))]
    runs.append(read_run(write_run(tmp_path / "2", seed=2, finished=False, last=10)))
    (row,) = make_rows(group_runs(runs)[0]["digits"])
    assert row.cells()[1:3] == ["1 (left out: seed 2 unfinished, round 10)", "70.0"]


def test_lower_is_better_without_accuracy(tmp_path: Path) -> None:
    """In the quadratic task a client improves when its loss (2 - final) is lower."""
    local = write_run(tmp_path / "l", "local", task="quadratic", finals=[0.5] * N)
    cobo = write_run(tmp_path / "c", task="quadratic", finals=[0.6] * 2 + [0.4] * 6)
    _, row = make_rows(group_runs([read_run(local), read_run(cobo)])[0]["quadratic"])
    assert row.improved == pytest.approx(25.0)


def test_nan_gaps_and_repeated_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """NaN in lines, weights and results; a resumed run's repeated rounds: the later line wins."""
    run = write_run(tmp_path / "run", finals=[0.7] * N)
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        for number, value in ((5, NAN), (10, None), (15, 0.9)):
            event = {"event": "eval", "round": number, "client": None, "split": "test"}
            file.write(json.dumps({**event, "loss": value, "accuracy": value}) + "\n")
        file.write(json.dumps({"event": "warning", "round": 3, "kind": "k", "message": "m"}) + "\n")
    with np.load(run / "W.npz") as stored:
        arrays = dict(stored)
    arrays["weights"][-1, 0, 1] = NAN
    np.savez(run / "W.npz", **arrays)
    summary = json.loads((run / "summary.json").read_text())
    summary["final"] = {"loss": NAN, "accuracy": NAN}
    (run / "summary.json").write_text(json.dumps(summary))
    assert main([str(run)]) == 0
    report = Report(run, run / "figures", capsys.readouterr().out)
    assert markdown_row(report, "cobo")[2:4] == ["nan", "nan"]
    curve = report.curve("accuracy.csv", "cobo", "accuracy")
    assert [math.isnan(curve[number][0]) for number in (0, 5, 10, 15)] == [False, True, True, False]
    assert curve[15][0] == 0.9


def test_one_client_one_matrix_no_evaluation(tmp_path: Path) -> None:
    """A run that has just begun, with one client: nothing to draw but W, nothing to crash on."""
    run = write_run(tmp_path / "run", finished=False)
    (run / "metrics.jsonl").write_text("")
    np.savez(run / "W.npz", rounds=np.array([0]), weights=np.ones((1, 1, 1), dtype=np.float32))
    assert main([str(run), "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("index.html", "table.csv", "table.md", "weights.csv", "weights.png")
    ]
    assert "1 (unfinished, round 0)" in (tmp_path / "out" / "table.md").read_text()


def test_several_runs_go_to_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --out; and a folder that is given twice is one run."""
    runs = [write_run(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 2))]
    for run in runs:
        (run / "metrics.jsonl").write_text("")
        (run / "W.npz").unlink()
    monkeypatch.chdir(tmp_path)
    assert main(["a", "b", str(runs[0])]) == 0
    assert "| cobo | 2 | 71.5 ± 2.1 |" in (tmp_path / "report" / "table.md").read_text()


def test_torn_last_line_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that is being written is read up to its last whole line."""
    run = write_run(tmp_path / "run", finished=False, last=10)
    whole = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(whole + b'{"event": "round", "rou')
    (run / "W.npz").unlink()
    assert main([str(run), "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    lines = whole.count(b"\n")
    assert f"metrics.jsonl, line {lines + 1} is torn" in captured.err
    assert "unfinished, round 10" in (tmp_path / "out" / "table.md").read_text()


# --- refusals ----------------------------------------------------------------------------------


def _cut_line(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    lines[6] = lines[6][:20] + "\n"
    (run / "metrics.jsonl").write_text("".join(lines))


def _append(run: Path, event: object) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n")


def _save(run: Path, **arrays: Any) -> None:
    np.savez(run / "W.npz", **arrays)


ONE, TWO = np.array([0]), np.array([0, 1])
SQUARE = np.ones((1, 3, 3), dtype=np.float32)

# name -> what is done to a good run, and what the one line must name
BAD: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no config": (lambda r: (r / "config.yaml").unlink(), ("no run folder", "config.yaml")),
    "no metrics": (lambda r: (r / "metrics.jsonl").unlink(), ("no run folder", "metrics.jsonl")),
    "torn YAML": (lambda r: (r / "config.yaml").write_text("a: [1\nb: {"), ("config.yaml", "YAML")),
    "no algorithm": (
        lambda r: (r / "config.yaml").write_text("run: {seed: 1}\ntask: {name: digits}\n"),
        ("config.yaml", "algorithm.name"),
    ),
    "torn in the middle": (_cut_line, ("metrics.jsonl, line 7", "not JSON")),
    "not an event": (lambda r: _append(r, [1]), ("metrics.jsonl, line", "`event`")),
    "no round": (lambda r: _append(r, {"event": "round"}), ("metrics.jsonl", "round is None")),
    "text for a number": (
        lambda r: _append(r, {"event": "eval", "round": 1, "client": None, "accuracy": "high"}),
        ("metrics.jsonl", "accuracy is 'high'"),
    ),
    "W is no npz": (
        lambda r: (r / "W.npz").write_bytes(b"PK\x03\x04 no"),
        ("W.npz", "not a readable"),
    ),
    "W is empty": (lambda r: (r / "W.npz").write_bytes(b""), ("W.npz", "not a readable")),
    "W holds objects": (
        lambda r: _save(r, rounds=ONE, weights=np.array([{}], dtype=object)),
        ("W.npz", "not a readable"),
    ),
    "W has no weights": (lambda r: _save(r, rounds=ONE), ("W.npz", "`weights`")),
    "W is not square": (
        lambda r: _save(r, rounds=ONE, weights=SQUARE[:, 1:]),
        ("W.npz", "(1, 2, 3)"),
    ),
    "rounds do not fit": (lambda r: _save(r, rounds=TWO, weights=SQUARE), ("W.npz", "(2,)")),
    "clusters do not fit": (
        lambda r: _save(r, rounds=ONE, weights=SQUARE, clusters=TWO),
        ("W.npz", "clusters", "(2,)", "3 clients"),
    ),
    "summary is torn": (
        lambda r: (r / "summary.json").write_text('{"rounds": 2'),
        ("summary.json",),
    ),
    "summary lacks a key": (
        lambda r: (r / "summary.json").write_text('{"final": {}, "rounds": 2, "seconds": 1}'),
        ("summary.json", "bytes_sent"),
    ),
}


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a refusal."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("name", BAD)
def test_bad_run_is_refused_by_name(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each malformed run ends with exit 2 and one line that names file and fault; nothing written."""
    good = write_run(tmp_path / "good", seed=2)
    run = write_run(tmp_path / "bad")
    spoil, words = BAD[name]
    spoil(run)
    message = refused([str(good), str(run), "--out", str(tmp_path / "out")], capsys)
    for word in (str(run), *words):
        assert word in message
    assert not (tmp_path / "out").exists()


def test_folder_that_does_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong path, and a file in place of a folder."""
    assert "nowhere does not exist" in refused([str(tmp_path / "nowhere")], capsys)
    (tmp_path / "file").touch()
    assert "file is a file, not a run folder" in refused([str(tmp_path / "file")], capsys)


def test_out_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--out, or a folder above it, is a file: refused by name and the file left alone."""
    run = write_run(tmp_path / "run")
    taken = tmp_path / "taken"
    taken.write_text("mine")
    assert "taken is a file" in refused([str(run), "--out", str(taken)], capsys)
    assert "taken" in refused([str(run), "--out", str(taken / "below")], capsys)
    assert taken.read_text() == "mine"


def test_refusing_needs_no_matplotlib(tmp_path: Path) -> None:
    """A wrong path is answered before the slow import, and importing the door does no work."""
    code = (
        "import sys; from cobo_dist.report import main; code = main([sys.argv[1]]); "
        "sys.exit(code if 'matplotlib' not in sys.modules else 99)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "nowhere")]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 2


# --- the arithmetic of series --------------------------------------------------------------------


def test_over_seeds_counts_who_has_the_round() -> None:
    """Rounds that one seed lacks are averaged over the rest; a NaN is not averaged away."""
    curve = over_seeds([{0: 1.0, 5: 2.0, 10: NAN}, {0: 3.0, 10: 1.0}])
    assert curve.rounds.tolist() == [0, 5, 10]
    np.testing.assert_allclose(curve.mean, [2.0, 2.0, NAN])
    np.testing.assert_allclose(curve.std, [math.sqrt(2.0), NAN, NAN])
    assert curve.seeds.tolist() == [2, 1, 2]


def test_running_mean_and_median() -> None:
    """Mean from the first round on; median over the finite values of a centred window."""
    assert running_mean({1: 4.0, 2: 2.0, 3: 0.0}) == {1: 4.0, 2: 3.0, 3: 2.0}
    smooth = running_median(np.array([1.0, 9.0, 2.0, NAN, 4.0]), 3)
    np.testing.assert_allclose(smooth, [5.0, 2.0, 5.5, 3.0, 4.0])


@pytest.mark.parametrize(
    ("logged", "shown"),
    [
        ([0], [0]),
        ([0, 50, 100], [0, 50, 100]),
        ([0, 300, 1000, 5000, 15000, 20000, 40000], [0, 300, 1000, 5000, 40000]),
        (list(range(0, 101, 10)), [0, 10, 20, 50, 100]),
    ],
)
def test_spread_rounds(logged: list[int], shown: list[int]) -> None:
    """First, last, and steps of about equal ratio between."""
    assert spread_rounds(logged) == shown
