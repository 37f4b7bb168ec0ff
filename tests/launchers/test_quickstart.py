"""launch/quickstart.sh: two runs, and last lines that say what was learned."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launching import BIN, environment

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The scripts, beside a .venv that has everything installed."""
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    (tmp_path / "setup.cfg").touch()
    (tmp_path / ".venv").mkdir()
    for path in Path(sys.prefix).iterdir():
        if not path.name.startswith("installed-"):
            (tmp_path / ".venv" / path.name).symlink_to(path)
    (tmp_path / ".venv/installed-plain").touch()
    return tmp_path


def quickstart(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = environment(PATH=f"{BIN}:{os.environ['PATH']}", PYTHONPATH=str(ROOT), RANKS="1")
    return subprocess.run(
        ["bash", "launch/quickstart.sh", *arguments], cwd=project, env=env, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_its_last_lines_say_what_was_learned(project: Path) -> None:
    """Local takes the task's and the run's settings, and not those of another algorithm."""
    small = ["run.rounds=4", "task.clusters=2", "task.test_size=80", "algorithm.rho=0.1"]
    done = quickstart(project, *small, "run.dir=runs/mine")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    title, sentence, last = done.stdout.splitlines()[-3:]
    assert title == "What was learned"
    assert "CoBo found 1 group of all 4 clients" in sentence
    assert "of 4 clients do better than alone" in sentence
    assert last == "open runs/mine/figures/index.html"
    assert (project / "runs/mine/figures/index.html").is_file()
    alone = json.loads((project / "runs/mine-local/summary.json").read_text())
    assert (alone["algorithm"], alone["rounds"], alone["clients"]) == ("local", 4, 4)


@pytest.mark.slow
def test_help_trains_nothing(project: Path) -> None:
    done = quickstart(project, "--help", "run.dir")
    assert done.returncode == 0, done.stderr
    assert "run.dir" in done.stdout
    assert not (project / "runs").exists()
