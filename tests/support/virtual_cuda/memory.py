"""The memory of the virtual GPU: bytes of the tensors that live there, their peak, and a limit."""

from __future__ import annotations

import weakref
from typing import Any

import torch

LARGE_BYTES = 1 << 37


class Memory:
    """Counts storages from when they are marked until they end."""

    def __init__(self, total: int = LARGE_BYTES) -> None:
        self.total, self.allocated, self.peak = total, 0, 0
        self.refused = 0  # allocations that had no place

    def allocate(self, storage: Any) -> None:
        """Count a new storage.

        Raises:
            torch.OutOfMemoryError: the memory is full.
        """
        size = storage.nbytes()
        if self.allocated + size > self.total:
            self.refused += 1
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes")
        self.allocated += size
        self.peak = max(self.peak, self.allocated)
        weakref.finalize(storage, self._free, size).atexit = False

    def _free(self, size: int) -> None:
        self.allocated -= size

    def free(self, device: Any = None) -> tuple[int, int]:
        """Answer torch.cuda.mem_get_info: free and total bytes."""
        return self.total - self.allocated, self.total

    def reset_peak(self, device: Any = None) -> None:
        """Forget the peak so far."""
        self.peak = self.allocated


current = Memory()
