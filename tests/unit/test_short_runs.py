"""benchmarks/short_runs.sh: its settings fit the configs, for every name that it takes."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from cobo_dist.sweeps.axes import read_axes
from cobo_dist.sweeps.grid import Run, expand

ROOT = Path(__file__).parents[2]
SCRIPT = "benchmarks/short_runs.sh"
NAMES = (
    "dirichlet_cifar100", "mnist5k_pathological", "regression", "natural_clients", "lstm_text",
    "vit_dirichlet",
)  # fmt: skip


def started(tmp_path: Path, name: str) -> tuple[int, list[list[str]]]:
    """Run the script with a `python` that notes its arguments; return exit code and arguments."""
    notes = tmp_path / "notes"
    notes.touch()
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\nfor word; do printf "%s\\n" "$word"; done >> {notes}; echo >> {notes}\n'
    )
    python.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "DATA": "somewhere"}
    done = subprocess.run(["bash", SCRIPT, name], cwd=ROOT, env=env, capture_output=True, text=True)
    return done.returncode, [block.split("\n") for block in notes.read_text().split("\n\n")[:-1]]


def runs_of(command: list[str]) -> list[Run]:
    """The runs of a sweep that was started so."""
    assert command[:3] == ["-m", "cobo_dist.sweep", "--config"], shlex.join(command)
    return expand([str(ROOT / command[3])], read_axes([w for w in command[4:] if "=" in w]))


@pytest.mark.parametrize("name", NAMES)
def test_all_methods_try_the_same_learning_rates(tmp_path: Path, name: str) -> None:
    code, (baselines, evidence, seeds, report) = started(tmp_path, name)
    assert code == 0
    runs = runs_of(baselines)
    methods = {run.config.algorithm.name for run in runs}
    assert methods >= {"local", "fedavg", "cobo"}
    assert ("oracle" in methods) == (name == "lstm_text")
    better = runs_of(evidence)
    assert {run.config.algorithm.model_dump()["selection"] for run in better} == {"evidence"}
    rates = {run.config.optimizer.lr for run in better}
    assert len(runs) == len(methods) * len(rates) == 2 * len(methods)
    for run in (*runs, *better):
        assert run.config.optimizer.lr in rates
        assert (run.seed, run.config.run.eval_splits) == (0, ("validation", "test"))
    assert "seed=0,1,2" in seeds
    assert report[:2] == ["-m", "cobo_dist.report"]


def test_another_name_is_refused(tmp_path: Path) -> None:
    assert started(tmp_path, "digits") == (2, [])
