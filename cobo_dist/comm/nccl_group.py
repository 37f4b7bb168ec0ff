"""How a rank leaves NCCL's group, and which errors are the GPU's own.

To destroy the group waits for kernels that wait for peers; after comm.timeout torch's watchdog ends the
process without a word. So after a failure the group stays as it is until the line is printed and the files
are written. Then `end_process` aborts it and ends the process, whatever its threads do.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the start guard works before torch is imported
    import torch

ABORT_SECONDS = 5.0
"""How long a rank waits for the abort before it ends without."""

_failed = False


def uses_nccl(device: torch.device) -> bool:
    """Return whether NCCL carries messages in this device's memory (`wire_device`)."""
    return device.type == "cuda"


def leave_group(failed: bool) -> None:
    """Destroy the group, or after a failure leave it to `end_process`."""
    global _failed
    import torch.distributed as dist

    if failed:
        _failed = True
    elif dist.is_initialized():
        dist.destroy_process_group()


def end_process(code: int) -> None:
    """End this process if a failure left a group behind; otherwise return."""
    if not _failed:
        return
    thread = threading.Thread(target=abort_group, daemon=True)
    thread.start()
    thread.join(ABORT_SECONDS)
    with suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)  # an orderly exit would run destructors that wait for peers


def abort_group() -> None:
    """Abort NCCL's communicators, so that kernels that wait for peers end."""
    import torch
    import torch.distributed as dist

    with suppress(Exception):  # the process ends anyway
        backend = dist.group.WORLD._get_backend(torch.device("cuda"))  # type: ignore[union-attr]
        backend.abort()  # not in every version of torch


def is_device_error(error: BaseException) -> bool:
    """Return whether memory ran out, or a GPU failed: no peer is to blame."""
    import torch

    text = str(error)
    kinds = (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError))
    words = ("CUDA error", "CUDA out of memory", "allocate memory", "unhandled cuda error")
    return isinstance(error, kinds) or any(word in text for word in words)
