"""Starting ranks as real processes: a clean environment, torchrun, mpirun."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TRAIN = "cobo_dist.train"
LAUNCHED_BY = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC", "SLURM",
               "PMI", "OMPI", "MPI_")  # fmt: skip
BIN = Path(sys.executable).parent


def environment(**more: str) -> dict[str, str]:
    """Return this environment without a launcher's variables, with one thread a rank."""
    kept = {name: v for name, v in os.environ.items() if not name.startswith(LAUNCHED_BY)}
    return kept | {"OMP_NUM_THREADS": "1"} | more


def start(
    command: list[str], folder: Path, timeout: float = 240, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in a clean environment with some variables more."""
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(**more),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


def torchrun(ranks: int) -> list[str]:
    """Return the command that trains under torchrun."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone",
            f"--nproc_per_node={ranks}", "-m", TRAIN]  # fmt: skip


def mpirun(ranks: int) -> list[str]:
    """Return the command that starts python as ranks of MPI; skip the test where there is none."""
    if importlib.util.find_spec("mpi4py") is None:  # to import mpi4py.MPI would start MPI here
        pytest.skip("mpi4py is not installed")
    found = shutil.which("mpirun", path=str(BIN)) or shutil.which("mpirun")
    if not found:
        pytest.skip("there is no mpirun beside python or on the PATH")
    version = subprocess.run(
        [found, "--version"], capture_output=True, text=True, check=False
    ).stdout
    extra = ["--allow-run-as-root", "--oversubscribe"] if "Open MPI" in version else []
    return [found, *extra, "-n", str(ranks), sys.executable]


def said(stderr: str) -> list[str]:
    """Return our own lines of complaint; launchers add theirs."""
    return [line for line in stderr.splitlines() if line.startswith("error: ")]
