"""Importing does no work. Who may import whom is checked by `lint-imports` (contracts in setup.cfg)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import cobo_dist

PACKAGE = Path(cobo_dist.__file__).parent

PROBE = """
import sys, json, os, threading, importlib
import torch
before = threading.active_count(), torch.get_num_threads(), dict(os.environ)
import cobo_dist.train
from cobo_dist.tasks.sources import handwritten_digits
handwritten_digits()
heavy = [m for m in ("matplotlib", "sklearn", "tensorboard", "mpi4py", "transformers", "datasets",
                     "torchvision", "pandas", "cobo_dist.reports") if m in sys.modules]
for name in sys.argv[1:]:
    importlib.import_module(name)
import torch.distributed as dist
print(json.dumps({
    "heavy": heavy,
    "group": dist.is_initialized(),
    "cuda": torch.cuda.is_initialized(),
    "unchanged": before == (threading.active_count(), torch.get_num_threads(), dict(os.environ)),
    "mpi": "mpi4py.MPI" in sys.modules,
}))
"""


def test_importing_does_no_work(tmp_path: Path) -> None:
    """No group, no GPU, no MPI, no threads, no environment, no files, no words, no heavy library."""
    names = [
        ".".join(["cobo_dist", *path.relative_to(PACKAGE).with_suffix("").parts])
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.stem != "__init__"
    ]
    assert len(names) > 30
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *names],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 1, "modules print nothing"
    assert json.loads(lines[0]) == {
        "heavy": [], "group": False, "cuda": False, "unchanged": True, "mpi": False,
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == []


LEFT_OUT = """
import runpy, sys
module, *arguments = sys.argv[1:]
sys.argv = [f"cobo_dist.{module}", *arguments]
code = 0
try:
    runpy.run_module(f"cobo_dist.{module}", run_name="__main__")
except SystemExit as left:
    code = left.code
slow = ("torch", "torchvision", "transformers", "peft", "sklearn", "tensorboard", "mpi4py")
print(code or 0, *(name for name in slow if name in sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("command", "code"),
    [
        *((f"{command} --help", 0) for command in ("report", "sweep", "train", "plan", "doctor", "prepare")),
        ("watch --help", 0),
        ("train --version", 0),
        ("train --show-run-dir task.name=language model.name=gpt2", 0),
        ("train run.round=5", 2),
        ("plan ranks=0", 2),
        ("doctor run.round=5", 2),
        ("prepare run.round=5", 2),
        ("sweep --dry-run algorithm.name=local,cobo,ifca seed=0,1", 0),
        ("sweep run.round=5", 2),
        ("report nowhere", 2),
        ("watch RUN", 0),
        ("report RUN --out out", 0),
    ],
)  # fmt: skip
def test_what_only_reads_starts_without_torch(command: str, code: int, tmp_path: Path) -> None:
    """Help, refusals, dry runs of sweeps and reports: torch alone takes longer than all of these."""
    run = PACKAGE.parent / "tests" / "data" / "run_v1" / "whole"
    arguments = command.replace("RUN", str(run)).split()
    done = subprocess.run(
        [sys.executable, "-c", LEFT_OUT, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stderr.splitlines()[-1] == str(code), done.stderr


def test_torch_is_imported_at_its_first_use() -> None:
    probe = (
        "import sys; from cobo_dist.lazy import Tensor, torch; before = 'torch' in sys.modules;"
        "one = torch.ones(2); print(before, isinstance(one, Tensor), isinstance(2, Tensor))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False"]
