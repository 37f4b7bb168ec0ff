"""benchmarks/study.py: its statistics by hand, and a tiny run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import study
from benchmark_scripts import run_script
from study_tables import Result, interval, table


def result(method: str, seed: int, *accuracies: float) -> Result:
    """A run that was evaluated after rounds 100, 200, ..."""
    rounds = 100 * np.arange(1, len(accuracies) + 1)
    return Result(method, 0.1, seed, rounds, np.array(accuracies), 1.0, 0.5, None, 0.75, 12.0)


def test_a_method_is_compared_seed_by_seed_with_the_preset() -> None:
    """Gains of 1, 2 and 3: t = 2 sqrt(3), p = 0.074; 95% of Oracle's 80 is reached where there is 76."""
    found = table(
        [
            *(result("paper", seed, 50.0, 70.0) for seed in range(3)),
            *(result("robust", seed, 76.0, 71.0 + seed) for seed in range(3)),
            *(result("oracle", seed, 75.9, 80.0) for seed in range(3)),
        ],
        (100, 200),
    )
    head, _, paper, robust, oracle = (line.split("|")[1:-1] for line in found.splitlines())
    by_name = {
        row[0].strip(): dict(
            zip([one.strip() for one in head], [one.strip() for one in row], strict=True)
        )
        for row in (paper, robust, oracle)
    }
    assert by_name["paper"]["robust - it"] == "+2.0 ± 2.5"
    assert by_name["paper"]["p"] == "0.074"
    assert by_name["robust"]["robust - it"] == ""
    assert by_name["paper"]["100 rounds, %"] == "50.0 ± 0.0"
    assert [by_name[one]["rounds to 95% of Oracle"] for one in by_name] == [
        "-, -, -",
        "100, 100, 100",
        "200, 200, 200",
    ]
    assert by_name["oracle"]["F1 of links"] == "0.75"
    assert interval([3.0]) == "3.0"


def test_it_runs_small_chooses_a_rate_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    given = [
        "--only",
        "digits",
        "--methods",
        "local",
        "oracle",
        "--rounds",
        "3",
        "--seeds",
        "0",
        "1",
    ]
    places = ["--out", str(out), "--figures", str(tmp_path / "figures")]
    run_script(monkeypatch, study, *given, *places)
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[0] == "digits"
    assert lines[2].startswith("| method | lr | 3 rounds, % | loss |")
    assert (tmp_path / "figures" / "study_accuracy.png").exists()
    begun = {one: one.stat().st_mtime_ns for one in out.glob("*/*/summary.json")}
    rates = study.TASKS["digits"].rates
    assert len(begun) == 2 * 2 * len(rates), "all rates with both seeds"
    validation = {
        f"{rate:g}": sum(
            Result.read(
                out / "digits" / f"local_lr{rate:g}_s{seed}", "local", rate, seed
            ).validation
            for seed in (0, 1)
        )
        for rate in rates
    }
    chosen = lines[4].split("|")[2].strip()
    assert validation[chosen] == max(validation.values())
    run_script(monkeypatch, study, *given, *places)
    assert capsys.readouterr().out == printed
    assert {one: one.stat().st_mtime_ns for one in begun} == begun


def test_the_cifar_tasks_say_what_they_need(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run_script(monkeypatch, study, "--only", "cross-silo")
    assert "cross-silo needs --data" in capsys.readouterr().err
