"""benchmarks/structures.py: its comparison of W with the right graph, and a tiny run."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import structures


def test_correlation_is_that_of_the_weights_between_two_clients() -> None:
    right = np.array([[1, 0.5, 0], [0.5, 1, 0.5], [0, 0.5, 1]])
    assert structures.correlation(right + 5 * np.eye(3), right) == pytest.approx(1.0)
    assert structures.correlation(1 - right, right) == pytest.approx(-1.0)
    assert structures.correlation(np.ones((3, 3)), right) is None


def test_it_runs_small_and_does_not_repeat_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After no round of training but two, W of the paper's update is still near its start at 1."""
    given = ["--only", "outlier", "--rounds", "2", "--seeds", "0", "--out", str(tmp_path / "runs")]
    monkeypatch.setattr(
        sys, "argv", ["structures.py", *given, "--figures", str(tmp_path / "figures")]
    )
    structures.main()
    printed = capsys.readouterr().out
    first, second = (block.splitlines() for block in printed.strip().split("\n\n"))
    assert first[0].startswith(
        "| structure | Local | FedAvg | CoBo, paper | CoBo, robust | Oracle |"
    )
    right, paper, distance = (float(one) for one in second[2].split("|")[2:5])
    assert right == pytest.approx(42 / 56, abs=1e-3)  # 7 linked clients, one alone
    assert paper > 0.9
    assert distance == pytest.approx(paper - right, abs=0.05)
    assert (tmp_path / "figures" / "structures_weights.png").exists()
    folders = {one: one.stat().st_mtime_ns for one in (tmp_path / "runs").glob("*/summary.json")}
    assert len(folders) == len(structures.METHODS)
    structures.main()
    assert capsys.readouterr().out == printed
    assert {one: one.stat().st_mtime_ns for one in folders} == folders
