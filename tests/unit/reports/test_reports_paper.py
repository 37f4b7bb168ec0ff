"""The paper's tables and figures, from fabricated runs whose numbers are checked by hand."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_runs import N, Report, assert_drawn, markdown_row, write_run

from cobo_dist.cli.report import main
from cobo_dist.reports.figures.client_selection import PAIRS, Pair
from cobo_dist.reports.grouping.problems import Problem, group_runs
from cobo_dist.reports.reading import read_run
from cobo_dist.reports.selection import representatives, without_sampling_variants
from cobo_dist.reports.tables.paper_tables import table_1, table_2
from cobo_dist.reports.tables.results import results_table
from cobo_dist.reports.tables.scores import GroupResult, group_results

PAPER = {"data_fraction": 0.5, "clusters": 4, "clients_per_cluster": 2}

# method, sampling strategy -> the clients' final accuracies, by seed
SILO: dict[tuple[str, str], dict[int, list[float]]] = {
    ("local", ""): {1: [0.60] * N, 2: [0.62] * N},
    ("fedavg", ""): {1: [0.45] * N, 2: [0.38] * N},
    ("ditto", ""): {1: [0.66] * 6 + [0.5] * 2, 2: [0.66] * N},
    ("cobo", "constant"): {1: [0.70] * N, 2: [0.74] * N},
    ("cobo", "mixed"): {1: [0.75] * N},
    ("cobo", "all"): {1: [0.76] * N, 2: [0.78] * N},
}


def sampling(name: str) -> dict[str, Any]:
    """The algorithm's keys of a sampling strategy."""
    return {"sampling": {"name": name, "rate": 25.0 if name == "mixed" else 1.0}} if name else {}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Cross-silo with three of four strategies and two more numbers of clusters; language."""
    root = tmp_path_factory.mktemp("paper")
    runs = [
        write_run(
            root / f"silo-{name}-{strategy}-s{seed}",
            name,
            seed,
            "cross_silo",
            finals=finals,
            problem=PAPER,
            part=50,
            **sampling(strategy),
        )
        for (name, strategy), seeds in SILO.items()
        for seed, finals in seeds.items()
    ]
    for clusters, local, cobo in ((2, 0.62, 0.71), (8, 0.58, 0.72)):
        for name, final in (("local", local), ("cobo", cobo)):
            runs.append(
                write_run(
                    root / f"silo{clusters}-{name}",
                    name,
                    1,
                    "cross_silo",
                    finals=[final] * N,
                    problem=PAPER | {"clusters": clusters},
                    part=50,
                    **sampling("constant" if name == "cobo" else ""),
                )
            )
    # Two factors away from the main problem: a point of no panel.
    away = PAPER | {"clusters": 2, "data_fraction": 0.25}
    runs.append(write_run(root / "away", "local", 1, "cross_silo", problem=away))
    runs += [
        write_run(root / f"language-{name}", name, 1, "language", finals=[final] * N)
        for name, final in (("local", 0.6), ("cobo", 0.7))
    ]
    out = root / "out"
    assert main([*map(str, runs), "--out", str(out), "--figure-1"]) == 0
    return Report(root, out, "")


def results(runs: list[Path]) -> dict[Problem, list[GroupResult]]:
    """The rows of some runs by problem."""
    problems, _ = group_runs(map(read_run, runs))
    return {problem: group_results(problem) for problem in problems}


# --- tables ------------------------------------------------------------------------------------


def test_table_1_in_the_papers_order_and_words(report: Report) -> None:
    """Constant: 70, 74 -> 72 ± 12.706 * 2; all: 76, 78 -> 77 ± 12.706; the time-dependent was not run."""
    lines = (report.out / "table1.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    assert rows == [
        ["Sampling strategy", "Accuracy (%)", "Loss", "Seeds"],
        ["---", "---:", "---:", "---:"],
        ["Constant (O(1/n)), rate 1", "72.00 ± 25.41", "1.280 ± 0.254", "2"],
        ["Time-dependent (O(1/t))", "-", "-", "-"],
        ["Mixed, rate 25", "75.00", "1.250", "1"],
        ["No sampling (all pairs), rate 1", "77.00 ± 12.71", "1.230 ± 0.127", "2"],
    ]
    assert any("no run with algorithm.sampling.name=time" in line for line in lines)
    table = report.rows("table1.csv")
    assert [row["strategy"] for row in table] == ["constant", "mixed", "all"]
    assert float(table[2]["accuracy_percent_mean"]) == pytest.approx(77.0)
    assert table[1]["accuracy_percent_std"] == ""
    assert table[1]["accuracy_percent_ci95"] == ""


def test_table_2_joins_tasks_without_the_sampling_variants(report: Report) -> None:
    """Ditto beats Local in 6 and 8 of 8 clients: 87.5 -> 88%; '-' where a method was not run."""
    head = markdown_row(report, "Method", "table2.md")
    silo, language = "Cross-silo (8 clients) ", "Language models (8 clients) "
    assert head[1:] == [
        *(silo + name for name in ("acc. %", "loss", "Imp.%")),
        *(language + name for name in ("perplexity", "Imp.%")),
    ]
    rows = {name: markdown_row(report, name, "table2.md")[1:] for name in ("Ditto", "CoBo")}
    assert rows["Ditto"] == ["64.0 ± 25.4", "1.36 ± 0.25", "88", "-", "-"]
    # The constant strategy, the paper's default, and no other.
    assert rows["CoBo"] == ["72.0 ± 25.4", "1.28 ± 0.25", "100", "43.00", "100"]
    table = report.rows("table2.csv")
    assert [row["method"] for row in table] == ["Local", "FedAvg", "Ditto", "CoBo"]
    assert float(table[2]["cross_silo_imp_percent"]) == pytest.approx(87.5)
    assert table[2]["language_perplexity_mean"] == ""
    assert float(table[0]["language_perplexity_mean"]) == pytest.approx(50.0 - 10.0 * 0.6)
    text = (report.out / "table2.md").read_text(encoding="utf-8")
    assert (
        "with data_fraction=0.5, clusters=4; runs with other task settings have tables of their own"
        in text
    )


def test_every_problem_has_its_table(report: Report) -> None:
    """The main problem is the one with most methods; others are named by what sets them apart."""
    rows = report.rows("table.csv")
    assert list(dict.fromkeys(row["task"] for row in rows)) == [
        "cross_silo",
        "cross_silo (data_fraction=0.25, clusters=2)",
        *("cross_silo (clusters=2)", "cross_silo (clusters=8)", "language"),
    ]
    mine = [row["sampling.name"] for row in rows if row["task"] == "cross_silo"]
    assert mine == ["", "", "", "constant", "mixed", "all"]


def test_one_setting_finds_its_row_among_several(tmp_path: Path) -> None:
    """A task with only rho=0.5 is in the row of CoBo (rho=0.5); another rho has its own row."""
    runs = [write_run(tmp_path / f"digits-{rho}", rho=rho) for rho in (0.1, 0.5)]
    runs.append(write_run(tmp_path / "device", "cobo", 1, "cross_device", rho=0.5))
    runs.append(write_run(tmp_path / "silo", "cobo", 1, "cross_silo", rho=0.7))
    table = table_2(results(runs))
    assert table is not None
    cells = {row[0]: [cell != "-" for cell in row[1::3]] for row in table.rows}
    assert cells == {  # cross-silo, cross-device, digits
        "CoBo": [True, False, False],
        "CoBo (rho=0.1)": [False, False, True],
        "CoBo (rho=0.5)": [False, True, True],
    }


def test_one_method_on_one_task_is_no_table_2(tmp_path: Path) -> None:
    """Nothing to compare; and one strategy is no Table 1."""
    found = results([write_run(tmp_path / "run", **sampling("constant"))])
    assert table_2(found) is None
    assert table_1(found) == []


def test_sampling_families_keep_to_their_settings(tmp_path: Path) -> None:
    """Two rho times two strategies are two tables; without a constant run Table 2 shows mixed."""
    runs = [
        write_run(tmp_path / f"{rho}-{name}", rho=rho, **sampling(name))
        for rho in (0.1, 0.5)
        for name in ("all", "mixed")
    ]
    found = results(runs)
    assert [table.numbers is not None and len(table.numbers) for table in table_1(found)] == [2, 2]
    assert "CoBo (rho=0.1)" in table_1(found)[0].caption
    (problem,) = without_sampling_variants(list(found))
    assert [group.label for group in problem.groups] == ["cobo (rho=0.1)", "cobo (rho=0.5)"]
    assert {run.config["algorithm.sampling.name"] for g in problem.groups for run in g.runs} == {
        "mixed"
    }


def test_rounds_to_reach_levels(report: Report) -> None:
    """CoBo at round 15 has .1 + .75 * .6 - .05 = 50% and more; FedAvg gets to 40% in one seed."""
    head = markdown_row(report, "method", "cross_silo/reached.md")
    assert head[1:] == [f"at least {level}%" for level in (40, 50, 60, 70)]
    rows = {
        name: markdown_row(report, name, "cross_silo/reached.md")[1:]
        for name in ("Local", "FedAvg", "CoBo (sampling.name=constant, rate=1)")
    }
    assert rows["CoBo (sampling.name=constant, rate=1)"] == ["15 ± 0", "15 ± 0", "20 ± 0", "20 ± 0"]
    assert rows["Local"] == ["15 ± 0", "20 ± 0", "20 ± 0", "-"]
    assert rows["FedAvg"] == ["20 (1 of 2 seeds)", "-", "-", "-"]
    assert "a part of the test data" in (report.out / "cross_silo/reached.md").read_text()
    first = report.rows("cross_silo/reached.csv")[0]
    assert first == {
        **{"method": "local", "accuracy_percent": "40.0", "round_mean": "15.0"},
        **{"round_std": "0.0", "round_ci95": "0.0", "seeds_reached": "2", "seeds": "2"},
    }
    # Perplexities are to be at most a level.
    assert markdown_row(report, "method", "language/reached.md")[1].startswith("at most 4")


# --- figures -----------------------------------------------------------------------------------


def test_part_and_whole_of_the_test_data_are_kept_apart(report: Report) -> None:
    """Rounds 0 to 15 were measured on 50 examples, 20 on all: .36 = (.35 + .37)/2 at round 10."""
    rows = [row for row in report.rows("cross_silo/accuracy.csv") if row["method"] == "cobo"]
    assert [(row["round"], row["whole"]) for row in rows] == [
        *((number, "false") for number in ("0", "5", "10", "15")),
        ("20", "true"),
    ]
    assert float(rows[2]["mean"]) == pytest.approx(0.36)
    assert float(rows[4]["mean"]) == pytest.approx(0.72)
    methods = {row["method"] for row in report.rows("cross_silo/accuracy.csv")}
    # Neither the sampling variants nor the other problems are lines of this figure.
    assert methods == {"local", "fedavg", "ditto", "cobo"}
    assert_drawn(report.out / "cross_silo" / "accuracy.png")
    settings = {row["method"] for row in report.rows("cross_silo/accuracy_cobo.csv")}
    assert settings == {
        f"cobo (sampling.name={name}, rate={rate})"
        for name, rate in (("constant", 1), ("mixed", 25), ("all", 1))
    }


def test_factors_hold_the_final_values(report: Report) -> None:
    """Figure 2a: only the number of clusters varies; one line a method over three values."""
    rows = report.rows("cross_silo/factors.csv")
    assert {row["factor"] for row in rows} == {"task.clusters"}
    found = {(row["method"], float(row["value"])): float(row["mean"]) for row in rows}
    assert found == pytest.approx(
        {
            **{("local", 2.0): 0.62, ("local", 4.0): 0.61, ("local", 8.0): 0.58},
            **{("cobo", 2.0): 0.71, ("cobo", 4.0): 0.72, ("cobo", 8.0): 0.72},
        }
    )
    pixels = assert_drawn(report.out / "cross_silo" / "factors.png")
    cobo = np.abs(pixels - np.array([0xD5, 0x5E, 0x00]) / 255).max(axis=-1) < 0.02
    assert cobo.sum() > 200


def test_validation_data_choose_among_many_settings(tmp_path: Path) -> None:
    """rho=0.3 is best on validation data, rho=0.2 on the test data: CoBo is shown with 0.3."""
    values = {0.1: (0.5, 0.70), 0.2: (0.6, 0.75), 0.3: (0.8, 0.71), 0.4: (0.7, 0.72)}
    runs = [
        write_run(tmp_path / f"{rho}", rho=rho, validation=validation, finals=[test] * N)
        for rho, (validation, test) in values.items()
    ]
    ((problem, rows),) = results(runs).items()
    table = results_table(problem, rows)
    assert table.headings[:4] == ["method", "rho", "seeds", "validation accuracy %"]
    assert [row[3] for row in table.rows] == ["50.0", "60.0", "**80.0**", "70.0"]
    assert [group.title for group in representatives(problem)] == ["CoBo (rho=0.3)"]
    # Without validation data the test data must not choose: all are shown.
    plain = [write_run(tmp_path / f"plain-{rho}", rho=rho) for rho in values]
    ((problem, _),) = results(plain).items()
    assert len(representatives(problem)) == 4


def test_figure_1_needs_no_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A collaborates, B and C do not; the gradients are those of f_i = 1/2 ||x - mu_i||^2."""
    assert main(["--figure-1", "--out", str(tmp_path / "out")]) == 0
    assert "figure1.png, .csv" in capsys.readouterr().out
    assert_drawn(tmp_path / "out" / "figure1.png")
    with (tmp_path / "out" / "figure1.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["pair"], row["weight"]) for row in rows] == [
        *(("A", "up"), ("B", "down"), ("C", "down"))
    ]
    for row in rows:
        z = [(float(row[f"x1_{k}"]) + float(row[f"x2_{k}"])) / 2 for k in (0, 1)]
        first, second = (z[0] + 2.0, z[1]), (z[0] - 2.0, z[1])
        product = first[0] * second[0] + first[1] * second[1]
        assert float(row["inner_product"]) == pytest.approx(product)
        assert float(row["g2_0"]) == pytest.approx(second[0])


def test_gradients_are_opposed_inside_the_ball() -> None:
    """The dotted circle of Figure 1 is where the inner product changes its sign."""
    points = np.random.default_rng(0).uniform(-4.0, 4.0, (200, 2))
    for point in points:
        pair = Pair("X", np.stack([point + 1.0, point - 1.0]), (0.0, 0.0))
        assert (pair.direction == "down") == (np.linalg.norm(point) < 2.0)
    assert [pair.direction for pair in PAIRS] == ["up", "down", "down"]


def test_no_local_run_is_said(tmp_path: Path) -> None:
    """Seed 2 has no Local: its clients are left out of Imp.%, and a note names it."""
    runs = [write_run(tmp_path / "local", "local", 1)]
    runs += [write_run(tmp_path / f"cobo{seed}", "cobo", seed) for seed in (1, 2)]
    runs.append(write_run(tmp_path / "oracle", "oracle", 2))
    ((problem, rows),) = results(runs).items()
    table = results_table(problem, rows)
    shares = dict(zip(("local", "cobo", "oracle"), (row[4] for row in table.rows), strict=True))
    assert shares == {"local": "-", "cobo": "87.5", "oracle": "-"}
    (note,) = [note for note in table.notes if "Imp.%" in note]
    assert re.search(r"for: CoBo, seed 2 left out; Oracle, seed 2\.$", note)
    ((problem, rows),) = results(runs[1:]).items()
    assert any("no run of Local" in note for note in results_table(problem, rows).notes)
