"""benchmarks/pfllib.py: a tiny run, and what it says where data lack."""

from __future__ import annotations

from pathlib import Path

import pfllib
import pytest
from benchmark_scripts import by_method, run_script
from vision_data import write_images

import cobo_dist


def test_a_method_of_one_step_has_an_epoch_of_rounds_in_place_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table has the best method first, what PFLlib published, and a line for each method refused."""
    monkeypatch.setattr(pfllib, "EPOCH", 3)
    monkeypatch.setattr(
        pfllib, "COMMON", (*pfllib.COMMON, "run.engine=one_by_one")
    )  # which needs no timing
    write_images(tmp_path / "cifar100.npz", 1000, 200, size=32, classes=100)
    out = tmp_path / "runs"
    given = ["--data", str(tmp_path), "--out", str(out), "--rounds", "1"]
    run_script(monkeypatch, pfllib, *given, "--methods", "local", "fedavg", "l2gd", "fedbn")
    title, _, *lines, _, refused = capsys.readouterr().out.strip().splitlines()
    assert title == "pathological, rounds: 1"
    assert refused.startswith("- FedBN: algorithm.name=fedbn keeps normalization layers")
    table = by_method("\n".join(lines))
    published = {name: row["published, 2,000 rounds"] for name, row in table.items()}
    assert published == {"Local": "", "FedAvg": "26.0", "L2GD": ""}
    best = [float(row["best, %"]) for row in table.values()]
    assert len(best) == 3
    assert best == sorted(best, reverse=True)
    rounds = {
        name: (cobo_dist.open_run(out / "pathological" / f"{name}_lr0.005_s0").summary or {})[
            "rounds"
        ]
        for name in ("local", "l2gd")
    }
    assert rounds == {"local": 1, "l2gd": 3}


def test_missing_data_are_said_before_any_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run_script(monkeypatch, pfllib, "--data", str(tmp_path), "--out", str(tmp_path / "runs"))
    assert f"{tmp_path}/cifar100.npz" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
