"""The messages of one rank: their buffers, their posting and the count of what was sent."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cobo_dist.comm.traffic_counter import TrafficCounter
from cobo_dist.comm.transports.base import Pending, Transport
from cobo_dist.maths.flat import Scratch
from cobo_dist.phase_timer import PhaseTimer

OUTGOING, INCOMING = "outgoing", "incoming"
"""Buffers that messages of all purposes share: each batch is waited for before the next one is filled."""


class Channel:
    """Posts messages over a transport and keeps the buffers they lie in.

    `scratch` has buffers in the type of the models, `wire` those of messages, in the type that travels.
    """

    def __init__(
        self,
        transport: Transport,
        dtype: torch.dtype,
        device: torch.device,
        *,
        wire: torch.dtype | None = None,
        timer: PhaseTimer | None = None,
    ) -> None:
        self.transport = transport
        self.traffic = TrafficCounter()
        self.timer = timer or PhaseTimer.off()
        self.scratch = Scratch(dtype, device)
        self.wire = Scratch(wire or dtype, device)

    def post(self, sends: dict[int, Tensor], receives: dict[int, Tensor], purpose: str) -> Pending:
        """Count and start one message to each peer in `sends` and from each peer in `receives`."""
        for tensor in sends.values():
            self.traffic.sent(purpose, tensor.numel() * tensor.element_size())
        with self.timer.span("sending"):
            return self.transport.exchange(sends, receives, purpose)

    def wait(self, pending: Pending) -> None:
        """Wait for messages, and count the time as waiting."""
        with self.timer.span("waiting"):
            pending.wait()

    def messages(
        self, buffer: str, counts: Mapping[int, int], size: int, *, separate: bool = False
    ) -> dict[int, Tensor]:
        """Return, by key, a message [count, size] in the buffer of that name (`Scratch.several`)."""
        numbers = {key: count * size for key, count in counts.items()}
        parts = self.wire.several(buffer, numbers, separate=separate)
        return {key: part.view(counts[key], size) for key, part in parts.items()}

    def in_model_dtype(self, received: dict[int, Tensor], *, separate: bool) -> dict[int, Tensor]:
        """Return received messages in the type of the models: themselves, where that type travels."""
        if self.wire.dtype == self.scratch.dtype:
            return received
        numbers = {peer: message.numel() for peer, message in received.items()}
        copies = self.scratch.several(INCOMING, numbers, separate=separate)
        return {
            peer: copies[peer].view(message.shape).copy_(message)
            for peer, message in received.items()
        }
