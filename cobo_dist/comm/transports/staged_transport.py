"""Messages of a GPU through pinned memory of the CPU, for carriers that know only that.

So ranks can share a GPU, which NCCL refuses, and a machine without NCCL can use its GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cobo_dist.comm.transports.base import Pending, Transport


def through_cpu(carrier: Transport, device: torch.device) -> Transport:
    """Return a transport for tensors on `device`, over a carrier of CPU tensors."""
    return StagedTransport(carrier) if device.type == "cuda" else carrier


class StagedTransport:
    """Copies messages of a GPU to the CPU, lets a carrier take them, and copies what arrives back."""

    def __init__(self, carrier: Transport) -> None:
        self.carrier = carrier
        self.rank, self.world_size = carrier.rank, carrier.world_size
        self._staging: dict[tuple[str, int], Tensor] = {}  # bytes, by kind and peer

    def exchange(
        self, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor], purpose: str
    ) -> Pending:
        """Start one message to each peer in `sends` and from each peer in `receives`; see `Transport`.

        Waits until the GPU has computed what is sent.
        """
        outgoing = {peer: self._beside("send", peer, one) for peer, one in sends.items()}
        incoming = {peer: self._beside("receive", peer, one) for peer, one in receives.items()}
        for peer, tensor in sends.items():
            if tensor.is_cuda:
                outgoing[peer].copy_(tensor, non_blocking=True)
        # Also for what arrived in the last exchange: its copies to the GPU read the same staging memory.
        devices = {one.device for one in (*sends.values(), *receives.values()) if one.is_cuda}
        for device in devices:
            torch.cuda.current_stream(device).synchronize()
        return _Staged(self.carrier.exchange(outgoing, incoming, purpose), receives, incoming)

    def gather(self, record: bytes) -> list[bytes]:
        """Return every rank's record on rank 0."""
        return self.carrier.gather(record)

    def broadcast(self, record: bytes) -> bytes:
        """Return rank 0's record on every rank."""
        return self.carrier.broadcast(record)

    def _beside(self, kind: str, peer: int, tensor: Tensor) -> Tensor:
        """Return pinned memory for a tensor of a GPU; a tensor of the CPU itself."""
        if not tensor.is_cuda:
            return tensor
        nbytes = tensor.numel() * tensor.element_size()
        held = self._staging.get((kind, peer))
        if held is None or len(held) < nbytes:
            held = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
            self._staging[kind, peer] = held
        return held[:nbytes].view(tensor.dtype).view(tensor.shape)


class _Staged:
    """Messages in flight, and where they go when they have arrived."""

    def __init__(
        self, pending: Pending, receives: Mapping[int, Tensor], incoming: Mapping[int, Tensor]
    ) -> None:
        self.pending, self.receives, self.incoming = pending, receives, incoming

    def wait(self) -> None:
        """Return when messages have arrived; the GPU copies them before its next work."""
        self.pending.wait()
        for peer, tensor in self.receives.items():
            if tensor.is_cuda:
                tensor.copy_(self.incoming[peer], non_blocking=True)
