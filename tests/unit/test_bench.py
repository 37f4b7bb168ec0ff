"""benchmarks/bench.py: its statistics by hand, and a tiny run."""

from __future__ import annotations

import weakref
from pathlib import Path

import bench
import numpy as np
import pandas as pd
import pytest
from bench_tables import Outcome, ranks_of, table
from benchmark_scripts import by_method, run_script
from grid_runs import train_once, with_best_rate
from study_tables import Result

import cobo_dist
from cobo_dist.algorithms.registry import ALGORITHMS
from cobo_dist.config import load_config
from cobo_dist.errors import EXIT_STOPPED, ConfigError, RunFailure
from cobo_dist.reports.comparison import alike, critical_difference, harmed, worst_tenth
from cobo_dist.reports.figures.ranks import draw_ranks, rank_note


def outcome(method: str, seed: int, *accuracies: float, steps: int = 5) -> Outcome:
    """A run with these accuracies of its clients, in %."""
    mean = np.array([np.mean(accuracies)])
    result = Result(method, 0.1, seed, np.array([100]), mean, 1.0, 0.5, None, None, 12.0)
    return Outcome(result, np.array(accuracies), steps, 3.0)


def test_the_critical_difference_of_nemenyis_table() -> None:
    """With 5 methods q is 2.728 at 0.05 (Demsar 2006): 2.728 sqrt(5 * 6 / (6 * 30)) = 1.114."""
    assert critical_difference(5, 30) == pytest.approx(2.728 * np.sqrt(30 / 180), abs=1e-3)
    assert critical_difference(2, 1) == pytest.approx(1.960, abs=1e-3)


def test_groups_that_do_not_differ_are_the_longest_ones() -> None:
    """With 1.0: {1, 1.5, 2} and {2, 3}; {1.5, 2} is a part of the first, and 4.5 differs from all."""
    assert alike([1.0, 1.5, 2.0, 3.0, 4.5], 1.0) == [(0, 2), (2, 3)]
    assert alike([1.0, 3.0], 1.0) == []


def test_the_worst_tenth_and_who_is_harmed() -> None:
    """Of 20 clients two are the worst tenth, of 8 one; equal accuracy is no harm."""
    assert worst_tenth(np.array([*range(20, 0, -1)], dtype=float)) == 1.5
    assert worst_tenth(np.array([7.0, 3.0, *[9.0] * 6])) == 3.0
    own, alone = {4: 50.0, 5: 60.0, 6: 70.0, 7: 80.0}, {4: 60.0, 5: 60.0, 6: 60.0, 7: 90.0}
    assert harmed(own, alone) == [4, 7]
    assert harmed(own, alone, higher=False) == [6]


def test_a_table_has_accuracy_worst_clients_and_harm_seed_by_seed() -> None:
    """FedAvg harms 1 of 2 clients with seed 0 and none with seed 1: 25%."""
    found = [
        *(outcome("local", seed, 40.0, 60.0) for seed in (0, 1)),
        outcome("fedavg", 0, 70.0, 50.0),
        outcome("fedavg", 1, 50.0, 70.0),
        *(outcome("apple", seed, 10.0, 20.0, steps=1) for seed in (0, 1)),
    ]
    rows = by_method(table(found, {"fedavg": "FedAvg"}))
    assert list(rows) == ["FedAvg", "local", "apple*"], "by accuracy, one local step marked"
    assert rows["FedAvg"]["harmed, %"] == "25"
    assert rows["FedAvg"]["accuracy, %"] == "60.0 ± 0.0"
    assert rows["FedAvg"]["worst 10%"] == "50.0 ± 0.0"
    assert rows["local"]["harmed, %"] == ""
    assert (rows["apple*"]["MB a client"], rows["apple*"]["seconds"]) == ("12", "3")


def test_ranks_leave_out_a_method_that_lacks_a_run() -> None:
    """Of task a: 1, 2.5, 2.5; of task b, where Oracle did not run: 2, 1."""
    found = {
        "a": [
            outcome("cobo", 0, 90.0), outcome("local", 0, 80.0), outcome("fedavg", 0, 80.0),
            outcome("oracle", 0, 95.0),
        ],
        "b": [outcome("cobo", 0, 70.0), outcome("local", 0, 60.0), outcome("fedavg", 0, 75.0)],
    }  # fmt: skip
    table_of_ranks = ranks_of(found)
    assert table_of_ranks.to_dict("list") == {
        "cobo": [1.0, 2.0],
        "local": [2.5, 3.0],
        "fedavg": [2.5, 1.0],
    }


def test_the_figures_numbers_stand_beside_it(tmp_path: Path) -> None:
    """Mean ranks 1 and 2 of two methods; 1.960 / sqrt(4) = 0.98 is less than their distance."""
    given = pd.DataFrame({"b": [2.0] * 4, "a": [1.0] * 4})
    draw_ranks(given, {}, tmp_path / "ranks.png")
    said = "2 methods, data sets x seeds = 4. Ranks that differ by more than 0.98 differ"
    assert said in rank_note(given)
    written = pd.read_csv(tmp_path / "ranks.csv")
    assert written["method"].tolist() == ["a", "b"]
    assert written["mean_rank"].tolist() == [1.0, 2.0]
    assert (tmp_path / "ranks.png").stat().st_size > 1000


@pytest.mark.parametrize("error", [RunFailure, ConfigError])
def test_a_rate_that_fails_is_passed_over(error: type[Exception]) -> None:
    """Of two rates one fails; where no rate works, the reason is raised."""

    def run(rate: float, seed: int) -> Outcome:
        if rate > 0.1:
            raise error("the loss is not finite")
        return outcome("local", seed, rate)

    found = list(with_best_rate((0.1, 0.3), (0, 1), 1, run))
    assert [(one.result.seed, one.accuracies_n.tolist()) for one in found] == [
        (0, [0.1]),
        (1, [0.1]),
    ]
    with pytest.raises(error, match="not finite"):
        list(with_best_rate((0.3, 1.0), (0,), 1, run))


def test_a_signal_ends_the_bench_and_is_no_failure_of_a_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*given: object) -> None:
        raise RunFailure("stopped by SIGTERM with a checkpoint", code=EXIT_STOPPED)

    monkeypatch.setattr(cobo_dist, "fit", stopped)
    with pytest.raises(SystemExit, match="75"):
        run_script(
            monkeypatch, bench, "--only", "digits", "--methods", "local", "--out", str(tmp_path)
        )


def test_the_data_of_a_run_are_gone_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's objects form cycles; a few large ones alone would not start a collection."""

    class Data:
        def __init__(self) -> None:
            self.own = self

    kept: list[weakref.ref[Data]] = []
    monkeypatch.setattr(cobo_dist, "fit", lambda *_: kept.append(weakref.ref(Data())))
    train_once(None, [], 1, tmp_path / "local", 0.1, 0)
    assert [one() for one in kept] == [None]


def test_every_registered_method_is_there() -> None:
    found = {method.algorithm for method in bench.METHODS.values()}
    assert found == set(ALGORITHMS)
    for name, method in bench.METHODS.items():
        config = bench.local_work(bench.TASKS["digits"], method.settings)
        assert config.algorithm.name == method.algorithm
        assert config.local.steps * config.run.rounds == 500, name
        assert (config.local.steps == 1) == config.algorithm.takes_one_step


def test_the_tasks_of_the_bench_share_local_work_and_method() -> None:
    assert set(bench.TASKS) == {
        "digits", "mnist5k_pathological", "mnist5k_dirichlet", "cifar100_pathological",
    }  # fmt: skip
    configs = [load_config(path, []) for path in bench.TASKS.values()]
    for config in configs:
        assert (config.local, config.algorithm) == (configs[0].local, configs[0].algorithm)


def test_it_runs_small_says_who_is_refused_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, figures = tmp_path / "runs", tmp_path / "figures"
    given = [
        "--only", "digits", "--methods", "local", "apple", "fedbn", "--seeds", "0", "--rates", "0.1",
        "--out", str(out), "--figures", str(figures), "--rounds",
    ]  # fmt: skip
    run_script(monkeypatch, bench, *given, "2")
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[0] == "digits"
    assert set(by_method("\n".join(lines[2:6]))) == {"Local", "APPLE*"}
    (refused,) = [line for line in lines if line.startswith("- ")]
    assert refused.startswith("- FedBN: refused: algorithm.name=fedbn keeps normalization layers")
    assert pd.read_csv(figures / "bench_ranks.csv")["mean_rank"].tolist() == [1.0, 2.0]
    apple = bench.Outcome.read(out / "digits/apple_lr0.1_s0", "apple", 0.1, 0)
    assert apple.result.rounds[-1] == 10, "as many local steps as 2 rounds of 5"
    assert len(apple.accuracies_n) == 8
    begun = {one: one.stat().st_mtime_ns for one in out.glob("*/*/summary.json")}
    assert len(begun) == 2
    run_script(monkeypatch, bench, *given, "2")
    assert capsys.readouterr().out == printed
    assert {one: one.stat().st_mtime_ns for one in begun} == begun
    given[given.index("--methods") + 1 : given.index("--seeds")] = ["local"]
    run_script(monkeypatch, bench, *given, "3")
    assert Outcome.read(out / "digits/local_lr0.1_s0", "local", 0.1, 0).result.rounds[-1] == 3


def test_data_that_lack_are_said_before_any_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--out", str(tmp_path / "runs"), "--only", "digits", "cifar100_pathological"]
    for more, line in (
        ([], "cifar100_pathological needs --data"),
        (["--data", str(tmp_path)], f"{tmp_path}/cifar100.npz"),
    ):
        with pytest.raises(SystemExit, match="2"):
            run_script(monkeypatch, bench, *given, *more)
        assert line in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
