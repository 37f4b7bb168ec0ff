"""Switches the virtual CUDA on: the two modes, torch.cuda and torch.distributed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from virtual_cuda import memory, nccl, streams
from virtual_cuda.functions import Functions
from virtual_cuda.graphs import Recorder
from virtual_cuda.kernels import Kernels

_autocast = torch.autocast


class Autocast(_autocast):  # type: ignore[misc, valid-type]
    """The CPU's lists of operations in place of CUDA's; they differ little."""

    def __init__(self, device_type: str, dtype: torch.dtype | None = None, **how: Any) -> None:
        super().__init__("cpu" if device_type == "cuda" else device_type, dtype, **how)


def _properties(device: Any = None) -> SimpleNamespace:
    uuid = f"GPU-virtual-{os.environ.get('LOCAL_RANK', 0)}-{os.getpid()}"
    return SimpleNamespace(uuid=uuid, name="virtual", total_memory=1 << 37, major=9, minor=0)


@contextmanager
def virtual_cuda(gpus: int = 1, total_memory: int = memory.LARGE_BYTES) -> Iterator[memory.Memory]:
    """Let torch see `gpus` virtual GPUs of this host in this thread; they share `total_memory` bytes."""
    kernels, held = Kernels(), memory.Memory(total_memory)
    cuda = mock.patch.multiple(
        torch.cuda,
        is_available=lambda: True,
        device_count=lambda: gpus,
        is_initialized=lambda: True,
        set_device=lambda device: None,
        current_device=lambda: 0,
        synchronize=lambda device=None: streams.wait_for_all("torch.cuda.synchronize"),
        mem_get_info=held.free,
        memory_allocated=lambda device=None: held.allocated,
        memory_reserved=lambda device=None: held.allocated,
        max_memory_allocated=lambda device=None: held.peak,
        reset_peak_memory_stats=held.reset_peak,
        empty_cache=lambda: None,
        get_device_properties=_properties,
        current_stream=streams.current,
        stream=streams.using,
        Stream=streams.Stream,
        Event=streams.Event,
    )
    autocast = mock.patch.object(torch, "autocast", Autocast)
    recorder = mock.patch("cobo_dist.clients.graphs.CudaRecorder", Recorder)
    memory_here = mock.patch.object(memory, "current", held)
    with cuda, autocast, recorder, memory_here, nccl.patched(), kernels, Functions(kernels):
        yield held
