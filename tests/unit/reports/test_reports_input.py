"""Unusual runs in the report, and the refusal of folders that are no runs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_runs import N, Report, T, markdown_row, write_run

from cobo_dist.cli.report import main
from cobo_dist.reports.grouping.problems import group_runs
from cobo_dist.reports.reading import read_run
from cobo_dist.reports.tables.paper_tables import table_1
from cobo_dist.reports.tables.results import results_table
from cobo_dist.reports.tables.scores import group_results

NAN = float("nan")


# --- naming, grouping, unusual but valid input -------------------------------------------------


def test_settings_name_the_rows_that_differ(tmp_path: Path) -> None:
    """Two values of rho are two methods; another seed or folder is not."""
    runs = [
        read_run(write_run(tmp_path / f"{rho}-{seed}", seed=seed, rho=rho))
        for rho in (0.1, 0.5)
        for seed in (2, 1)
    ]
    (problem,), notes = group_runs(runs)
    assert [group.label for group in problem.groups] == ["cobo (rho=0.1)", "cobo (rho=0.5)"]
    assert [run.seed for run in problem.groups[0].runs] == [1, 2]
    assert notes == []


def test_many_settings_fit_names_and_tables(tmp_path: Path) -> None:
    """Two CoBos differ in ten settings: these share one column, and file names stay short."""
    out, runs = tmp_path / "out", []
    for value in (1, 2):
        settings = {f"a_setting_with_a_long_name_{i}": value for i in range(10)}
        runs.append(str(write_run(tmp_path / str(value), **settings)))
    assert main([*runs, "--out", str(out)]) == 0
    head = markdown_row(Report(tmp_path, out, ""), "method")
    assert head[:3] == ["method", "settings", "seeds"]
    drawn = sorted(out.glob("weights_cobo_*.png"))
    assert len(drawn) == 2
    assert max(len(path.name) for path in drawn) < 130


def test_same_seed_twice_counts_once(tmp_path: Path) -> None:
    """A repetition is no new sample: the finished run is kept, the other named."""
    cut = read_run(write_run(tmp_path / "cut", finished=False, last=10))
    whole = read_run(write_run(tmp_path / "whole"))
    (problem,), notes = group_runs([cut, whole])
    assert [run.path.name for run in problem.groups[0].runs] == ["whole"]
    assert len(notes) == 1
    assert str(cut.path) in notes[0]


def test_unfinished_seed_does_not_dilute_finished_ones(tmp_path: Path) -> None:
    """Seed 1 finished, seed 2 stopped at 10: the row is seed 1's and says so."""
    runs = [read_run(write_run(tmp_path / "1", seed=1))]
    runs.append(read_run(write_run(tmp_path / "2", seed=2, finished=False, last=10)))
    (problem,), _ = group_runs(runs)
    (row,) = group_results(problem)
    assert row.seeds == "1 (left out: seed 2 unfinished, round 10)"
    assert row.score("accuracy") == pytest.approx((70.0, NAN, NAN), nan_ok=True)


def test_unfinished_run_measured_on_a_part_says_so(tmp_path: Path) -> None:
    """Its last evaluation was on 50 examples, so it does not compare with a finished run."""
    local = write_run(tmp_path / "local", "local", part=50, finished=False, last=10)
    cobo = write_run(tmp_path / "cobo", part=50, finished=False, last=10)
    (problem,), _ = group_runs([read_run(local), read_run(cobo)])
    _, row = group_results(problem)
    assert row.seeds == "1 (unfinished, round 10, part of the test data)"
    # Both were measured at round 10 on such a part, so the clients do compare: 7 of 8 are better.
    assert row.mean("improved") == pytest.approx(87.5)
    whole = read_run(write_run(tmp_path / "whole", finished=False, last=10))
    (problem,), _ = group_runs([read_run(local), whole])
    _, row = group_results(problem)
    assert (row.mean("improved"), row.missing) == (None, (1,))


def test_resumed_run_may_measure_a_part_and_then_all(tmp_path: Path) -> None:
    """The later line of a round wins, in what it was measured on too."""
    run = write_run(tmp_path / "run", part=50)
    assert read_run(run).parts["test"] == {0: 50, 5: 50, 10: 50, 15: 50}
    event = {"event": "eval", "round": 15, "client": 0, "split": "test", "accuracy": 0.4}
    _append(run, event | {"whole": True, "examples": 100})
    assert list(read_run(run).parts["test"]) == [0, 5, 10]


def test_how_work_is_laid_out_is_no_setting(tmp_path: Path) -> None:
    """Another device, engine or logging interval makes no other method."""
    runs = [write_run(tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    config = (runs[0] / "config.yaml").read_text(encoding="utf-8")
    more = "  device: cuda\n  engine: vectorised\n  eval_every: 1\n"
    config = config.replace("  eval_every: 5\n", more) + "comm:\n  backend: nccl\n"
    (runs[0] / "config.yaml").write_text(config, encoding="utf-8")
    (problem,), _ = group_runs(map(read_run, runs))
    assert [(group.label, len(group.runs)) for group in problem.groups] == [("cobo", 2)]


def test_the_name_of_a_preset_is_no_setting(tmp_path: Path) -> None:
    """Only the keys that it stands for are: a run with them spelled out is the same method."""
    for seed, name in ((1, "preset: robust\n"), (2, "preset: ''\n")):
        folder = write_run(tmp_path / str(seed), seed=seed, start="zeros")
        with (folder / "config.yaml").open("a") as file:
            file.write(name)
    other = write_run(tmp_path / "ones", start="ones")
    (problem,), _ = group_runs(map(read_run, (tmp_path / "1", tmp_path / "2", other)))
    found = [(group.label, len(group.runs)) for group in problem.groups]
    assert found == [("cobo (start=ones)", 1), ("cobo (start=zeros)", 2)]


def test_w_of_several_sizes_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same task settings and 8 and 3 clients: a file of the task must have changed between."""
    eight, three = write_run(tmp_path / "eight", seed=1), write_run(tmp_path / "three", seed=2)
    for name in ("metrics.jsonl", "summary.json"):
        (three / name).unlink()
    (three / "metrics.jsonl").touch()
    np.savez(
        three / "W.npz", rounds=np.array([0, 1]), weights=np.stack([np.ones((3, 3)), np.eye(3)])
    )
    out = tmp_path / "out"
    assert main([str(eight), str(three), "--out", str(out)]) == 0
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"{three} has 3, {eight} has 8" in message
    # Each is drawn in its own size.
    assert (out / "weights_cobo_s1.csv").read_text().count("\n") == 1 + 4 * N * N
    assert (out / "weights_cobo_s2.csv").read_text().count("\n") == 1 + 2 * 3 * 3


# --- links --------------------------------------------------------------------------------------


def add_to_summary(run: Path, **values: Any) -> Path:
    """Change the summary of a fabricated run."""
    path = run / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return run


def test_a_method_that_links_nobody_shows_it(tmp_path: Path) -> None:
    """85.7% of Local's pairs are right, and F1 and adjusted Rand beside it are 0."""
    scores = {"link_accuracy": 24 / 28, "link_f1": 0.0, "adjusted_rand": 0.0, "clusters_found": 8}
    runs = [
        add_to_summary(write_run(tmp_path / "local", "local"), **scores),
        write_run(tmp_path / "cobo"),  # of an earlier version, which knew the accuracy only
    ]
    (problem,), _ = group_runs(map(read_run, runs))
    table = results_table(problem, group_results(problem))
    headings = ["link accuracy %", "link F1", "adjusted Rand", "clusters found"]
    at = [table.headings.index(heading) for heading in headings]
    assert [[row[k] for k in at] for row in table.rows] == [
        ["85.7", "0.00", "0.00", "8"], ["75.0", "-", "-", "-"],
    ]  # fmt: skip


def test_clusters_found_where_the_truth_is_unknown(tmp_path: Path) -> None:
    """No column for the agreement with unknown clusters."""
    run = write_run(tmp_path / "run", "fedavg")
    add_to_summary(run, cluster_match=None, link_accuracy=None, clusters_found=3)
    (problem,), _ = group_runs([read_run(run)])
    table = results_table(problem, group_results(problem))
    assert table.headings[4:6] == ["Imp.%", "clusters found"]
    assert table.rows[0][5] == "3"


def test_bytes_of_a_client_stand_beside_those_between_ranks(tmp_path: Path) -> None:
    """On one rank nothing is sent between ranks, and still a client would send 1 MB a round."""
    run = write_run(tmp_path / "one")
    each = {"up": 1e6 * T, "down": 2.5e6 * T}
    add_to_summary(run, ranks=1, bytes_sent=0, bytes_per_client=each)
    runs = [run, write_run(tmp_path / "local", "local")]  # the latter of an earlier version
    assert main([*map(str, runs), "--out", str(tmp_path / "out")]) == 0
    found = Report(tmp_path, tmp_path / "out", "")
    assert markdown_row(found, "method")[-3:-1] == [
        "MB sent a round", "MB a client and round, up / down",
    ]  # fmt: skip
    assert markdown_row(found, "cobo")[-3:-1] == ["0", "1 / 2.5"]
    assert markdown_row(found, "local")[-3:-1] == ["3", "-"]
    local, cobo = found.rows("table.csv")
    names = [f"mb_{way}_per_client_and_round" for way in ("up", "down")]
    assert [float(cobo[name]) for name in names] == [1.0, 2.5]
    assert [local[name] for name in names] == ["", ""]


# --- runs of different lengths -----------------------------------------------------------------


def test_runs_of_different_lengths_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """CoBo ran 1,000 rounds, Local 200: rounds in each table, a warning, no Imp.% across lengths."""
    out = tmp_path / "out"
    runs = [
        write_run(tmp_path / "cobo", "cobo", rounds=1000),
        write_run(tmp_path / "local", "local", rounds=200),
        write_run(tmp_path / "oracle", "oracle", rounds=200),
        write_run(tmp_path / "silo", "oracle", task="cross_silo"),
    ]
    assert main([*map(str, runs), "--out", str(out)]) == 0
    found = Report(tmp_path, out, "")
    warning = "differ in their number of rounds (200: Local, Oracle; 1000: CoBo)"
    printed = capsys.readouterr()
    assert f"warning: digits: these runs {warning}" in printed.err
    assert "cross_silo" not in printed.err
    for name in ("table.md", "table2.md", "index.html"):
        assert warning in (out / name).read_text(encoding="utf-8"), name
    rows = {(row["task"], row["method"]): row for row in found.rows("table.csv")}
    rounds = {method: rows["digits", method]["rounds"] for method in ("local", "cobo", "oracle")}
    assert rounds == {"local": "200", "cobo": "1000", "oracle": "200"}
    assert rows["digits", "cobo"]["imp_percent"] == ""
    assert float(rows["digits", "oracle"]["imp_percent"]) == 100.0
    assert markdown_row(found, "method")[-3] == "rounds"
    head, cobo = (markdown_row(found, name, "table2.md") for name in ("Method", "CoBo"))
    columns = dict(zip(head, cobo, strict=True))
    assert [columns[f"Digits (8 clients) {name}"] for name in ("rounds", "Imp.%")] == ["1000", "-"]
    assert not any(name.startswith("Cross-silo") and name.endswith("rounds") for name in head)
    reached = (out / "digits" / "reached.md").read_text(encoding="utf-8")
    assert "may just have been too short" in reached


def test_lengths_of_one_method_are_one_column(tmp_path: Path) -> None:
    """Four CoBos: two rates at two lengths. The best of its settings is that of each length."""
    runs = [
        write_run(tmp_path / f"{rounds}-{rho}", rho=rho, rounds=rounds, validation=rho)
        for rounds in (200, 1000)
        for rho in (0.1, 0.5)
    ]
    (problem,), notes = group_runs(map(read_run, runs))
    assert len(notes) == 1
    table = results_table(problem, group_results(problem))
    assert table.headings[:4] == ["method", "rho", "seeds", "validation accuracy %"]
    assert sorted((row[-3], row[1], row[3]) for row in table.rows) == [
        ("1000", "0.1", "10.0"), ("1000", "0.5", "**50.0**"),
        ("200", "0.1", "10.0"), ("200", "0.5", "**50.0**"),
    ]  # fmt: skip


def test_table_1_has_runs_of_one_length(tmp_path: Path) -> None:
    """A strategy that was run for more rounds than the others is not in their table."""
    runs = [
        write_run(tmp_path / name, rounds=rounds, sampling={"name": name, "rate": 1})
        for name, rounds in (("constant", 200), ("all", 300), ("mixed", 200))
    ]
    problems, _ = group_runs(map(read_run, runs))
    tables = table_1({problem: group_results(problem) for problem in problems})
    (table,) = tables
    assert table.numbers is not None
    assert table.numbers[["strategy", "rounds"]].values.tolist() == [
        ["constant", "200"], ["mixed", "200"],
    ]  # fmt: skip


def test_an_unfinished_run_is_marked_and_no_warning(tmp_path: Path) -> None:
    """A run under way has fewer rounds than a finished one, and its row says so."""
    whole = write_run(tmp_path / "whole", "local")
    cut = write_run(tmp_path / "cut", finished=False, last=10)
    (problem,), notes = group_runs([read_run(whole), read_run(cut)])
    assert notes == []
    assert [one.rounds for one in group_results(problem)] == ["20", "10"]


def test_lower_is_better_without_accuracy(tmp_path: Path) -> None:
    """In the quadratic task a client improves when its loss (2 - final) is lower."""
    local = write_run(tmp_path / "l", "local", task="quadratic", finals=[0.5] * N)
    cobo = write_run(tmp_path / "c", task="quadratic", finals=[0.6] * 2 + [0.4] * 6)
    (problem,), _ = group_runs([read_run(local), read_run(cobo)])
    _, row = group_results(problem)
    assert row.mean("improved") == pytest.approx(25.0)


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
    """A run that has just begun, with one client: no figure but W, nothing to crash on."""
    run = write_run(tmp_path / "run", finished=False)
    (run / "metrics.jsonl").write_text("")
    np.savez(run / "W.npz", rounds=np.array([0]), weights=np.ones((1, 1, 1), dtype=np.float32))
    assert main([str(run), "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("groups.csv", "groups.md", "groups.tex", "index.html"),
        *("table.csv", "table.md", "table.tex", "weights.csv", "weights.png"),
    ]
    assert "no groups: there is only one client" in (tmp_path / "out" / "groups.md").read_text()
    assert "1 (unfinished, round 0)" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_have_the_type_of_their_file(tmp_path: Path, dtype: type[np.floating[Any]]) -> None:
    run = write_run(tmp_path / "run")
    stored = np.full((1, 8, 8), 1 / 3, dtype)
    np.savez(run / "W.npz", rounds=np.array([0]), weights=stored)
    weights = read_run(run).weights
    assert weights is not None
    assert weights.weights.dtype == dtype
    assert np.array_equal(weights.weights, stored)
    assert weights.links["all pairs"][0] == float(dtype(1 / 3))


def test_several_runs_go_to_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --out; and a folder that is given twice is one run."""
    runs = [write_run(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 2))]
    for run in runs:
        (run / "metrics.jsonl").write_text("")
        (run / "W.npz").unlink()
    monkeypatch.chdir(tmp_path)
    assert main(["a", "b", str(runs[0])]) == 0
    assert "| cobo | 2 | 71.5 ± 19.1 |" in (tmp_path / "report" / "table.md").read_text()


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
    "whole is no truth value": (
        lambda r: _append(r, {"event": "eval", "round": 1, "client": 0, "whole": "yes"}),
        ("metrics.jsonl", "whole is 'yes'"),
    ),
    "W of another run": (
        lambda r: _save(r, rounds=ONE, weights=SQUARE),
        ("W.npz", "3 clients", "tell of 8"),
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


def test_nothing_to_report_on(capsys: pytest.CaptureFixture[str]) -> None:
    """No run folder and no --figure-1; an option that does not exist."""
    assert "no run folder is given; give RUN_DIR... or --figure-1" in refused([], capsys)
    assert "--figure-2 is no option; usage: " in refused(["--figure-2"], capsys)


def test_out_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--out, or a folder above it, is a file: refused by name and the file left alone."""
    run = write_run(tmp_path / "run")
    taken = tmp_path / "taken"
    taken.write_text("mine")
    assert "taken is a file" in refused([str(run), "--out", str(taken)], capsys)
    assert "taken" in refused([str(run), "--out", str(taken / "below")], capsys)
    assert taken.read_text() == "mine"


IMPORTED = """
import sys
from cobo_dist.report import main
try:
    code = main(sys.argv[1:])
except SystemExit as stopped:
    code = stopped.code
slow = [name for name in ("torch", "matplotlib", "pandas", "jinja2", "numpy") if name in sys.modules]
print(code, *slow, file=sys.stderr)
"""


@pytest.mark.parametrize(("argument", "loaded"), [("--help", "0"), ("nowhere", "2 numpy")])
def test_help_and_refusals_import_nothing_slow(argument: str, loaded: str, tmp_path: Path) -> None:
    """Help and the refusal of a wrong path come before the imports that take seconds."""
    command = [sys.executable, "-c", IMPORTED, argument]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr.splitlines()[-1] == loaded
