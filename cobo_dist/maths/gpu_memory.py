"""How much memory a GPU has left."""

from __future__ import annotations

from cobo_dist.lazy import torch


def free_bytes(device: torch.device) -> int:
    """Return the bytes that new tensors on a GPU may take: the device's, and what PyTorch holds unused."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
