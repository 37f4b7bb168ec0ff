"""What a wheel and a source archive hold, and the console scripts of an installed wheel."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from launching import environment, mpirun, said, start
from slurm_cluster import wait_for

from cobo_dist import __version__
from cobo_dist.project_files import project_files

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("train", "report", "plan", "prepare", "doctor", "sweep", "init", "watch")
QUIET = ["log.figures=false", "run.eval_every=0", "run.checkpoint_every=0"]
IGNORED = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", "__pycache__", "*.egg-info", "build", "dist", "runs", "report",
    "shared", ".hypothesis",
)  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a source archive of a copy of the project, and a wheel of the archive; return their folder."""
    copy = tmp_path_factory.mktemp("build") / "project"
    shutil.copytree(ROOT, copy, ignore=IGNORED)
    done = start([sys.executable, "-m", "build", "--no-isolation"], copy)
    assert done.returncode == 0, done.stdout + done.stderr
    return copy / "dist"


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a folder of its own; return it. Its scripts are in `bin`."""
    folder = tmp_path_factory.mktemp("installed")
    options = ["--quiet", "--no-deps", "--no-index", "--no-compile", "--target", str(folder)]
    wheel = next(built.glob("*.whl"))
    done = start([sys.executable, "-m", "pip", "install", *options, str(wheel)], folder)
    assert done.returncode == 0, done.stderr
    return folder


def call(
    command: list[str | Path], installed: Path, folder: Path, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a command with the installed package, from another folder than the checkout."""
    return start(list(map(str, command)), folder, **variables(installed), **more)


def variables(installed: Path) -> Mapping[str, str]:
    """Return the variables with which the installed package and its scripts are found first."""
    path = f"{installed / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {"PYTHONPATH": str(installed), "PATH": path}


def test_a_wheel_has_every_file_of_the_package(built: Path) -> None:
    """The wheel comes from the archive, so the archive has what a build needs."""
    held = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "cobo_dist").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    laid_out = {f"cobo_dist/project/{file}" for file in project_files(ROOT)}
    assert {"cobo_dist/py.typed", "cobo_dist/reports/figures/report.mplstyle"} <= held
    assert "cobo_dist/reports/page/templates/report.html.j2" in held
    assert {f"cobo_dist/project/{name}" for name in (
        "configs/quickstart.yaml", "configs/paper/cross_silo_cobo.yaml", "launch/torchrun.sh",
        "slurm/train.sbatch", "slurm/submit.py",
    )} <= laid_out  # fmt: skip
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if ".dist-info/" not in name} == held | laid_out


def test_an_archive_has_tests_and_docs(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        names = {name.partition("/")[2] for name in content.getnames()}
    wanted = {"README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "docs/USAGE.md", "launch/test.sh",
              "tests/conftest.py", "examples/from_python.py", "benchmarks/traffic.py",
              "stress/__main__.py"}  # fmt: skip
    assert wanted <= names
    assert not any("__pycache__" in name or name.endswith(".pyc") for name in names)


def test_an_index_takes_both(built: Path) -> None:
    files = [str(file) for file in sorted(built.iterdir())]
    done = start([sys.executable, "-m", "twine", "check", "--strict", *files], built)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2


def test_the_version_stands_in_the_citation() -> None:
    found = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert found
    assert found[1] == __version__


# -- console scripts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_script_that_names_itself(
    name: str, installed: Path, tmp_path: Path
) -> None:
    done = call([f"cobo-{name}", "--help"], installed, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"usage: cobo-{name} " in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_exit_codes_are_those_of_the_module(installed: Path, tmp_path: Path) -> None:
    """0 done, 2 refused, 75 stopped by a signal with a checkpoint."""
    done = call(["cobo-train", *QUIET, "run.rounds=1", "run.dir=a"], installed, tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(installed) in json.loads((tmp_path / "a" / "env.json").read_text())["command"][0]
    refused = call(["cobo-train", "run.rounds=-1"], installed, tmp_path)
    assert refused.returncode == 2
    assert len(said(refused.stderr)) == 1
    arguments = [*QUIET, "run.rounds=1000000", "run.dir=b", "log.flush_every=1"]
    training = subprocess.Popen(
        [installed / "bin" / "cobo-train", *arguments],
        cwd=tmp_path,
        env=environment(**variables(installed)),
    )
    try:
        log = tmp_path / "b" / "metrics.jsonl"
        wait_for(lambda: log.exists() and log.stat().st_size > 0, 60, "the first round")
        training.send_signal(signal.SIGTERM)
        assert training.wait(60) == 75
    finally:
        training.kill()
        training.wait()


def test_torchrun_starts_the_script(installed: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    arguments = ["--no-python", "cobo-train", *QUIET, "run.rounds=2", "run.dir=out"]
    done = call([*torchrun, *arguments], installed, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["ranks"] == 2


@pytest.mark.mpi
def test_mpirun_starts_the_script(installed: Path, tmp_path: Path) -> None:
    """All ranks leave MPI together."""
    *launcher, _python = mpirun(2)
    arguments = ["cobo-train", *QUIET, "comm.backend=mpi", "run.dir=out", "run.rounds=2"]
    done = call([*launcher, *arguments], installed, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["ranks"] == 2


def test_a_project_is_laid_out_by_an_installed_package(installed: Path, tmp_path: Path) -> None:
    """Its scripts find the installed package, and its configs are valid."""
    done = call(["cobo-init", "lab"], installed, tmp_path)
    assert done.returncode == 0, done.stderr
    lab = tmp_path / "lab"
    laid_out = {str(file.relative_to(lab)) for file in lab.rglob("*") if file.is_file()}
    assert laid_out == {str(file) for file in project_files(ROOT)}
    config = ["--config", "configs/quickstart.yaml"]
    done = call(["bash", "launch/mpirun.sh", *config, "--show-run-dir"], installed, lab)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{lab / 'runs' / 'digits-cobo-s0'}\n"
    done = call([sys.executable, "slurm/submit.py", "--dry-run", *config], installed, lab)
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --job-name=cobo-" in done.stdout
