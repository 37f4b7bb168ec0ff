"""What a GPU says of itself: memory, load, power, clocks. NVML is asked where `nvidia-ml-py` is installed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress

import torch

STATUS = ("allocated", "reserved", "utilisation", "power")
"""What `status` measures: bytes in use by tensors, bytes taken from the device, the share of time in which
kernels ran (0 to 1), and watts."""

SHARED_MEMORY = "/dev/shm"


def status(device: torch.device) -> list[float]:
    """Return the numbers that `STATUS` names; NaN for what NVML does not say, all NaN on a CPU."""
    if device.type != "cuda":
        return [float("nan")] * len(STATUS)
    return [
        float(torch.cuda.memory_allocated(device)),
        float(torch.cuda.memory_reserved(device)),
        _asked(lambda: torch.cuda.utilization(device)) / 100,
        _asked(lambda: torch.cuda.power_draw(device)) / 1000,  # milliwatts
    ]


def facts(device: torch.device) -> dict[str, str | float]:
    """Return what a run depends on; an empty dictionary on a CPU.

    `name`; `total` and `free` bytes; `bf16` 1 if it computes with bfloat16; `clock` in MHz and
    `temperature` in degrees Celsius, NaN if unknown; `peers`, how many other GPUs of the host it reaches
    directly, of `others` that are visible; `shared_memory`, bytes of /dev/shm, which NCCL uses.
    """
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    others = [k for k in range(torch.cuda.device_count()) if k != device.index]
    found: dict[str, str | float] = {
        "name": torch.cuda.get_device_properties(device).name,
        "total": total,
        "free": free,
        "bf16": float(torch.cuda.is_bf16_supported()),
        "clock": _asked(lambda: torch.cuda.clock_rate(device)),
        "temperature": _asked(lambda: torch.cuda.temperature(device)),
        "peers": sum(torch.cuda.can_device_access_peer(device, k) for k in others),
        "others": len(others),
        "shared_memory": 0,
    }
    with suppress(OSError):
        found["shared_memory"] = shutil.disk_usage(SHARED_MEMORY).total
    return found


def _asked(question: Callable[[], float]) -> float:
    """Return NVML's answer; NaN where it is not installed or does not know."""
    try:
        return float(question())
    except Exception:  # pynvml has errors of its own, which cannot be named where it is missing
        return float("nan")
