"""Whether methods differ: the tests by hand and against scipy, and what the tables say in words."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from report_runs import N, write_run
from scipy import stats

from cobo_dist.reports.comparison import (
    harmed,
    holm,
    jain_index,
    least_p,
    ranks,
    seeds_needed,
    signed_rank_test,
    worst_tenth,
)
from cobo_dist.reports.grouping import Problem, group_runs
from cobo_dist.reports.reading import read_run
from cobo_dist.reports.report import Report
from cobo_dist.reports.tables.clients import clients_table
from cobo_dist.reports.tables.scores import group_results
from cobo_dist.reports.tables.significance import significance_table
from cobo_dist.reports.tables.table import Table


@pytest.mark.parametrize("count", [5, 12, 30])
def test_the_signed_rank_test_is_scipys_where_no_ranks_are_equal(count: int) -> None:
    values = np.random.default_rng(count).normal(0.4, 1.0, count)
    assert signed_rank_test(values) == pytest.approx(stats.wilcoxon(values, method="exact").pvalue)


def test_the_signed_rank_test_by_hand() -> None:
    """Ranks of 1, 1, -2 are 1.5, 1.5, 3: sums of signs 0 +-; of 8, |sum| >= 0 in all, so p = 1."""
    assert signed_rank_test([1.0, 1.0, -2.0]) == 1.0
    assert signed_rank_test([1.0, 1.0, 2.0]) == 0.25 == least_p(3)
    assert signed_rank_test([0.0, math.nan]) == 1.0
    assert signed_rank_test([0.0, 1.0, 2.0, 3.0, 4.0]) == 0.125, "a difference of 0 is left out"


def test_holm_and_the_seeds_that_it_takes() -> None:
    """0.01 * 4, 0.02 * 3, 0.03 * 2, and 0.04, which may not be below the one before."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    for count in (1, 2, 5, 20):
        assert (
            least_p(seeds_needed(count)) * count < 0.05 <= least_p(seeds_needed(count) - 1) * count
        )


def test_how_clients_fare_by_hand() -> None:
    assert worst_tenth([3.0, 1.0, 2.0]) == 1.0
    assert worst_tenth([3.0, 1.0, 2.0], higher=False) == 3.0
    assert jain_index([4.0, 2.0]) == pytest.approx(36 / (2 * 20))
    assert harmed({0: 1.0}, {0: 2.0, 1: 2.0}) is None, "other clients"
    table = ranks({"a": {"x": 1.0, "y": 2.0}, "b": {"x": 1.0, "y": 1.0, "z": 3.0}})
    assert table.to_dict("list") == {"x": [2.0, 1.5], "y": [1.0, 1.5]}


def problem_of(root: Path, seeds: int, gain: float = 0.1) -> Problem:
    """CoBo, a method that is `gain` worse for every client, and Local, with client 3 worse off with CoBo."""
    folders = []
    for seed in range(1, seeds + 1):
        steps = [0.01 * seed + 0.001 * i for i in range(N)]
        cobo = [0.7 + step for step in steps]
        local = [0.6] * N
        local[3] = 0.9
        folders += [
            write_run(root / f"cobo-s{seed}", "cobo", seed, finals=cobo),
            write_run(root / f"ditto-s{seed}", "ditto", seed, finals=[0.7 - gain] * N),
            write_run(root / f"local-s{seed}", "local", seed, finals=local),
        ]
    (problem,), notes = group_runs(map(read_run, folders))
    assert not notes
    return problem


def rows_of(table: Table | None) -> dict[str, list[str]]:
    assert table is not None
    return {row[0]: row[1:] for row in table.rows}


def test_three_seeds_are_too_few_and_the_table_says_so(tmp_path: Path) -> None:
    problem = problem_of(tmp_path, 3)
    table = significance_table(group_results(problem), problem.groups)
    rows = rows_of(table)
    assert list(rows) == ["Local", "Ditto"]
    assert rows["Ditto"][0] == "worse over clients; too few seeds"
    assert rows["Ditto"][2:] == ["3", "0.5", "0 / 8", "0.016"]  # 2 * 0.25, and 2 * 2 / 2^8
    assert table is not None
    assert "With 3 seeds no p over seeds can be below 0.25" in " ".join(table.notes)
    assert "7 seeds are needed" in " ".join(table.notes)


def test_a_difference_that_seeds_show(tmp_path: Path) -> None:
    """Seven seeds, all of one sign: p = 2 / 2^7, twice that with Holm's correction."""
    problem = problem_of(tmp_path, 7)
    table = significance_table(group_results(problem), problem.groups)
    row = rows_of(table)["Ditto"]
    assert row[0] == "worse"
    assert row[3] == f"{4 / 2**7:.2g}"
    # 0.6 - (0.7 + 0.01 * seed + 0.0035), mean over seeds 1 to 7
    assert row[1].startswith("-14.3 ± ")
    assert table is not None
    assert "seeds are needed" not in " ".join(table.notes)


def test_a_method_without_a_common_seed_is_named(tmp_path: Path) -> None:
    problem_of(tmp_path / "a", 2)
    write_run(tmp_path / "a" / "ifca-s9", "ifca", 9, finals=[0.5] * N)
    (problem,), _ = group_runs(read_run(one) for one in sorted((tmp_path / "a").iterdir()))
    table = significance_table(group_results(problem), problem.groups)
    assert "IFCA" not in rows_of(table)
    assert table is not None
    assert table.notes[-1] == "No run with a seed, rounds and clients of CoBo's: IFCA."


def test_harmed_clients_are_named(tmp_path: Path) -> None:
    """Client 3 is alone better off than with CoBo in both seeds; Ditto's clients all equal 0.6."""
    problem = problem_of(tmp_path, 2)
    table = clients_table(group_results(problem))
    rows = rows_of(table)
    assert rows["CoBo"][2:] == ["1", "3 (2)"]
    assert rows["Local"][2:] == ["-", "-"]
    assert rows["Ditto"][2:] == ["1", "3 (2)"]
    assert rows["Ditto"][1] == "1 ± 0"
    assert table is not None
    assert table.numbers is not None
    assert table.numbers["harmed_ids"].tolist() == [
        "",
        "seed 1: 3; seed 2: 3",
        "seed 1: 3; seed 2: 3",
    ]


def test_ranks_and_traffic_are_drawn_where_they_say_something(tmp_path: Path) -> None:
    """Six seeds of three methods: a critical difference of 1.35 is less than 2. Two seeds are too few."""
    for seeds, drawn in ((2, False), (6, True)):
        problem = problem_of(tmp_path / str(seeds), seeds)
        for run in (run for group in problem.groups for run in group.runs):
            summary = json.loads((run.path / "summary.json").read_text())
            sent = 0 if run.algorithm == "local" else 2_000_000
            summary["bytes_per_client"] = {"up": sent, "down": sent}
            (run.path / "summary.json").write_text(json.dumps(summary))
        folders = [run.path for group in problem.groups for run in group.runs]
        problems, _ = group_runs(map(read_run, folders))
        out = tmp_path / f"out{seeds}"
        out.mkdir()
        Report(problems).write(out, figure_1=False)
        assert (out / "ranks.png").exists() == drawn
        assert (out / "traffic.png").exists()
        lines = (out / "traffic.csv").read_text().splitlines()
        assert lines[0].startswith("method,quantity,megabytes_a_client,mean")
        sent = [float(line.split(",")[2]) for line in lines[1:]]
        assert sent == pytest.approx([0.0, 4.0, 4.0]), "20 rounds of 0.2 MB"
        assert "8 clients" in (out / "significance.md").read_text()
