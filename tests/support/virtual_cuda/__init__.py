"""A virtual CUDA: torch programs run "on cuda" without a GPU, with the numbers of the CPU.

A tensor of the virtual device is a CPU tensor whose storage is marked. One mode answers questions such as
`.device` and moves tensors; the other sees every kernel, refuses what CUDA would refuse, and counts kernels
and host synchronizations by the line of cobo_dist that caused them. Messages of such tensors go by gloo under
NCCL's rules.

    with virtual_cuda(), counted() as counts:
        x = torch.ones(3, device="cuda")
        float(x.sum())
    assert counts.syncs.total() == 1
"""

from virtual_cuda.counts import Counts, counted
from virtual_cuda.marks import VirtualCudaError, is_pinned, on_device
from virtual_cuda.runtime import virtual_cuda

__all__ = ["Counts", "VirtualCudaError", "counted", "is_pinned", "on_device", "virtual_cuda"]
