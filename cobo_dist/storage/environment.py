"""What env.json says of the machine and of the code."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

from cobo_dist.storage.schema import FORMAT, Environment

LIBRARIES = (
    "cobo_dist", "torch", "torchvision", "numpy", "safetensors", "scikit-learn",
    "transformers", "peft", "datasets", "mpi4py",
)  # fmt: skip
GIT_TIMEOUT_SECONDS = 5


def describe_environment() -> Environment:
    """Return versions, command line and revision. Environment variables stay out: they hold secrets."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    versions["torch"] = torch.__version__  # with its build, which the metadata leave out
    return Environment(
        format=FORMAT,
        versions=versions,
        platform=platform.platform(),
        command=sys.argv,
        git_revision=_git_revision(),
    )


def _git_revision() -> str | None:
    """Return the revision that a frozen copy of the code names, or that of the checkout it runs from."""
    here = Path(__file__).resolve().parent
    named = here.parent.parent / "REVISION"  # slurm/submit.py writes it
    if named.is_file():
        return named.read_text(encoding="utf-8").strip() or None
    try:
        answer = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
            timeout=GIT_TIMEOUT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
