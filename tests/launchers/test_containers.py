"""Jobs that start python in a container: what submit.py writes, and what the scripts do with it.

apptainer and srun are small commands here that act as these do; no image is started.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launching import environment
from problems import QUIET

ROOT = Path(__file__).resolve().parents[2]
# Each writes its arguments, and runs the command that follows its flags.
COMMANDS = {
    "apptainer": 'shift; while [[ "$1" = -* ]]; do shift; done; shift; exec "$@"',
    "srun": 'while [[ "$1" = -* ]]; do shift; done; exec "$@"',
    "scontrol": "echo node1",
}


class Submit:
    """slurm/submit.py, which is not part of the package, with --dry-run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        spec = importlib.util.spec_from_file_location("submit", ROOT / "slurm/submit.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(
            sys.modules, "submit", module
        )  # its dataclasses look themselves up there
        spec.loader.exec_module(module)
        self.main, self.capsys = module.main, capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Return the exit code, the script and what was said on standard error."""
        code = self.main(["--dry-run", "run.dir=out", *arguments])
        said = self.capsys.readouterr()
        return code, said.out, said.err


@pytest.fixture
def submit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Submit:
    """Submit from an empty folder."""
    monkeypatch.chdir(tmp_path)
    return Submit(monkeypatch, capsys)


def exports(script: str) -> dict[str, str]:
    """The variables that a job script sets for containers."""
    lines = [line.removeprefix("export ") for line in script.splitlines()]
    found = dict(line.partition("=")[::2] for line in lines if line.startswith("COBO_"))
    return {name: value.strip("'") for name, value in found.items()}


def test_a_file_of_apptainer_sees_the_paths_of_the_config(
    submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lab.sif").touch()
    for name in ("data", "images"):
        (tmp_path / name).mkdir()
    (tmp_path / "data/my.npz").touch()
    monkeypatch.setenv("COBO_CONTAINER", "other")
    monkeypatch.setenv("COBO_IMAGE", "another")
    settings = ["task.name=cross_silo", "data.file=data/my.npz", "run.init_from=images"]
    _, script, said = submit("--container=lab.sif", *settings)
    binds = ",".join(f"{tmp_path}/{name}" for name in ("data", "images", "out"))
    wanted = f"apptainer exec --bind={binds} {tmp_path}/lab.sif"
    assert exports(script) == {"COBO_CONTAINER": wanted}, said
    _, script, _ = submit("--container", "lab.sif", "--gpus-per-node=2")
    assert "apptainer exec --nv --bind=" in exports(script)["COBO_CONTAINER"]


def test_other_images_are_for_srun(
    submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = f"{tmp_path}/out:{tmp_path}/out"
    wanted = {"COBO_IMAGE": "group/cobo:1", "COBO_MOUNTS": mounts}
    assert exports(submit("--container=group/cobo:1")[1]) == wanted
    monkeypatch.setenv("COBO_IMAGE", "old.sqsh")
    monkeypatch.setenv("COBO_MOUNTS", "/a:/a")
    assert exports(submit()[1]) == {"COBO_IMAGE": "old.sqsh", "COBO_MOUNTS": "/a:/a"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--container=none.sif"], "--container=none.sif does not exist"),
        (["--container=none.sqsh"], "--container=none.sqsh does not exist"),
        (["--container="], "--container is empty"),
        (["--container-image=a"], "--container-image=a is not for submit.py"),
        (["--container=a.sif", "run.dir=my run"], "has a blank, comma or colon"),
    ],
)
def test_what_cannot_be_mounted_is_refused_in_one_line(
    arguments: list[str], words: str, submit: Submit, tmp_path: Path
) -> None:
    (tmp_path / "a.sif").touch()
    code, _, said = submit(*arguments)
    assert (code, len(said.splitlines())) == (2, 1)
    assert words in said


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder with the commands; each appends a line of its arguments to `calls` beside it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in COMMANDS.items():
        log = f'echo "{name} $*" >>{tmp_path}/calls'
        (folder / name).write_text(f"#!/bin/bash\n{log}\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables",
    [
        {"COBO_CONTAINER": "apptainer exec --nv lab.sif"},
        {"COBO_IMAGE": "lab.sqsh", "COBO_MOUNTS": "/data:/data"},
    ],
)
def test_a_job_trains_in_the_container(
    variables: dict[str, str], commands: Path, tmp_path: Path
) -> None:
    """Python runs in it twice: once for the run folder, then as the ranks."""
    env = environment(
        SLURM_JOB_ID="7", SLURM_JOB_NODELIST="node1", SLURM_NTASKS="1", SLURM_PROCID="0", SLURM_LOCALID="0",
        SLURM_NNODES="1", MASTER_ADDR="127.0.0.1", PYTHONPATH=str(ROOT), **variables,
    )  # fmt: skip
    env["PATH"] = os.pathsep.join([str(commands), str(Path(sys.executable).parent), env["PATH"]])
    run = tmp_path / "run"
    settings = [*QUIET, "run.rounds=2", "run.eval_every=0", f"run.dir={run}"]
    script = shutil.copy(ROOT / "slurm/train.sbatch", tmp_path)
    done = subprocess.run(
        ["bash", script, *settings], cwd=tmp_path, env=env, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((run / "summary.json").read_text())["rounds"] == 2
    calls = (tmp_path / "calls").read_text().splitlines()
    if "COBO_CONTAINER" in variables:
        inside = [
            call for call in calls if call.startswith("apptainer exec --nv lab.sif python -m")
        ]
    else:
        flags = f"--container-image=lab.sqsh --container-mounts=/data:/data --container-workdir={tmp_path}"
        inside = [
            call for call in calls if call.startswith("srun ") and f" {flags} python -m" in call
        ]
    assert len(inside) == 2, calls
    assert "--show-run-dir" in inside[0]
