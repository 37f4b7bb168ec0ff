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


def describe_environment(device: torch.device | None = None) -> Environment:
    """Return versions, command line and revision. Environment variables stay out: they hold secrets.

    `device`: a GPU whose name, driver and libraries are listed among the versions.
    """
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    versions["torch"] = torch.__version__  # with its build, which the metadata leave out
    if device is not None and device.type == "cuda":
        versions |= _gpu_versions(device)
    return Environment(
        format=FORMAT,
        versions=versions,
        platform=platform.platform(),
        command=sys.argv,
        git_revision=_git_revision(),
    )


def _gpu_versions(device: torch.device) -> dict[str, str]:
    """Return what a GPU's numbers depend on: itself, its driver and libraries, and the settings of both."""
    cudnn = torch.backends.cudnn
    found = {
        "gpu": torch.cuda.get_device_properties(device).name,
        "driver": _driver(),
        "cuda": str(torch.version.cuda or torch.version.hip or ""),
        "cudnn": str(cudnn.version() or ""),  # type: ignore[no-untyped-call]
        "nccl": _nccl(),
        "float32": str(torch.backends.cuda.matmul.fp32_precision),
        "cudnn.benchmark": "on" if cudnn.benchmark else "off",
    }
    return {name: text for name, text in found.items() if text}


def _nccl() -> str:
    if not hasattr(torch._C, "_nccl_version"):  # a build without it
        return ""
    return ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]


def _driver() -> str:
    """Return the version of NVIDIA's driver, if it says so."""
    try:
        first = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return ""
    return next((word for word in first.split() if word[:1].isdigit() and "." in word), "")


def _git_revision() -> str | None:
    """Return the revision that a frozen copy of the code names, or that of the checkout it runs from."""
    here = Path(__file__).resolve().parent
    named = here.parent.parent / "REVISION"  # slurm/submit.py writes it
    if named.is_file():
        return named.read_text(encoding="utf-8").strip() or None
    try:
        answer = subprocess.run(
            # The second revision exists only where this file belongs to the checkout: a folder of installed
            # packages may lie in a checkout of something else.
            ["git", "-C", str(here), "rev-parse", "HEAD", f"HEAD:./{Path(__file__).name}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=GIT_TIMEOUT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if answer.returncode else answer.stdout.split()[0]
