"""Importing does no work. Who may import whom is checked by `lint-imports` (contracts in setup.cfg)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cobo_dist

PACKAGE = Path(cobo_dist.__file__).parent

PROBE = """
import sys, json, os, threading, importlib
import torch
before = threading.active_count(), torch.get_num_threads(), dict(os.environ)
import cobo_dist.train
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
