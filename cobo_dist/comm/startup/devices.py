"""Which device a rank computes on, and why."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import torch

from cobo_dist.comm.startup.launch_env import Launch
from cobo_dist.errors import ConfigError, HostConfigError, words_of


def choose_device(wanted: str, backend: str, launch: Launch) -> torch.device:
    """Return this rank's device: `auto`, `cpu`, `cuda` (one GPU a local rank) or `cuda:N`.

    `auto` takes GPUs where each local rank can have its own, and the CPU otherwise (`why_cpu` says so).
    With comm.backend gloo or mpi, ranks may share a GPU where `cuda` is asked for.

    Raises:
        ConfigError: there is no such device, or the backend does not fit it.
        HostConfigError: this host has too few GPUs.
    """
    gpus = _gpus(launch)
    if wanted == "auto":
        takes_gpu = gpus and (backend == "nccl" or not why_cpu(wanted, backend, launch))
        wanted = "cuda" if takes_gpu else "cpu"
    name, colon, number = wanted.partition(":")
    if name not in ("cpu", "cuda") or (colon and (name == "cpu" or not number.isdigit())):
        raise ConfigError(f"run.device={wanted!r} is no device; use auto, cpu, cuda or cuda:N")
    if backend == "nccl" and name != "cuda":
        raise ConfigError(
            f"comm.backend=nccl needs CUDA, but run.device is {wanted}; use gloo or auto"
        )
    if name == "cpu":
        return torch.device("cpu")
    shared = backend in ("gloo", "mpi")
    return _choose_gpu(wanted, int(number) if colon else None, gpus, launch, shared)


def why_cpu(wanted: str, backend: str, launch: Launch) -> str:
    """Return why `auto` takes the CPU although this host has GPUs; empty if it does not, or has none."""
    gpus, ranks = _gpus(launch), launch.local_world_size
    if wanted != "auto" or backend == "nccl":
        return ""
    if not gpus:
        why = why_no_gpu()
        return why and f"run.device=auto takes the CPU: {why}"
    if backend == "mpi":
        return (
            f"run.device=auto takes the CPU: comm.backend=mpi carries memory of the CPU; "
            f"run.device=cuda takes the {gpus} GPU(s), and copies each message"
        )
    if ranks > gpus:
        return (
            f"run.device=auto takes the CPU: {ranks} ranks on this host but {gpus} GPU(s); start at most "
            f"{gpus}, or share GPUs with run.device=cuda comm.backend=gloo"
        )
    return ""


def why_no_gpu() -> str:
    """Return why torch sees no GPU although this host has a driver.

    Empty without a driver, and where CUDA_VISIBLE_DEVICES hides the GPUs on purpose (empty, or -1).
    """
    sign, visible = _sign_of_driver(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if not sign or visible in ("", "-1"):
        return ""
    found = f"this host has {sign}, but"
    if torch.version.cuda is None and torch.version.hip is None:
        return f"{found} torch {torch.__version__} is a build for the CPU; install a build for CUDA"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        reason = _short(error)
    else:
        return ""
    remedy = f"update the driver, or install a build of torch for it (this one: CUDA {torch.version.cuda})"
    if "no NVIDIA driver" in reason:
        remedy = (
            "start the container with --gpus all (docker) or --nv (apptainer), or load the driver"
        )
    elif "No CUDA GPUs" in reason and visible:
        reason += f" with CUDA_VISIBLE_DEVICES={visible}"
        remedy = "correct the variable, or ask the scheduler for a GPU"
    elif "No CUDA GPUs" in reason:
        remedy = "ask the scheduler for a GPU; nvidia-smi lists those that this process may use"
    return f"{found} torch {torch.__version__} cannot use a GPU: {reason}; {remedy}"


def _sign_of_driver() -> str:
    """Return by what this host shows that it has an NVIDIA driver; empty where nothing does."""
    if Path("/proc/driver/nvidia").exists():
        return "/proc/driver/nvidia"
    return shutil.which("nvidia-smi") or ""


def _short(error: BaseException) -> str:
    """Return the reason in a message of torch's start of CUDA, without its advice."""
    text = words_of(error)
    number = re.search(r"Error \d+: .*", text)  # what CUDA itself says
    return number.group() if number else text.partition(". ")[0]


def wire_device(device: torch.device, backend: str) -> torch.device:
    """Return the device whose memory messages travel from: the CPU unless NCCL carries them."""
    return device if backend in ("auto", "nccl") else torch.device("cpu")


def _gpus(launch: Launch) -> int:
    """Return how many GPUs this host's ranks have together."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    # srun, or a script around each rank, shows a rank its own GPU, always as number 0. Whether two ranks
    # have the same one shows when they connect: the handshake compares UUIDs.
    masked = len([one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]) == 1
    return launch.local_world_size if gpus == 1 and (masked or launch.launcher == "srun") else gpus


def _choose_gpu(
    wanted: str, number: int | None, gpus: int, launch: Launch, shared: bool
) -> torch.device:
    ranks = launch.local_world_size
    if not gpus:
        why, seen = why_no_gpu(), f"torch sees no CUDA device (torch {torch.__version__})"
        raise HostConfigError(f"run.device={wanted} but {why or seen}; use run.device=cpu")
    if number is not None and ranks > 1 and not shared:
        raise ConfigError(
            f"run.device={wanted} would put {ranks} ranks of this host on one GPU, which NCCL refuses; "
            "use run.device=cuda, one GPU for each rank, or comm.backend=gloo"
        )
    if ranks > gpus and not shared:
        raise HostConfigError(
            f"{ranks} ranks on this host but {gpus} GPUs; start at most {gpus} ranks a host, share GPUs "
            "with comm.backend=gloo, or use run.device=cpu"
        )
    visible = torch.cuda.device_count()
    if number is not None and number >= visible:
        raise HostConfigError(
            f"run.device={wanted} but this host has {visible} GPUs, numbered from 0"
        )
    return torch.device("cuda", launch.local_rank % visible if number is None else number)
