"""A transport that records what a rank posts, for `nccl_rules.check_schedule`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from cobo_dist.comm.transports.base import Pending, Transport
from cobo_dist.comm.transports.nccl_rules import Operation, describe_batch


class RecordingTransport:
    """Passes everything on to another transport and keeps a record of its batches."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.rank, self.world_size = inner.rank, inner.world_size
        self.batches: list[list[Operation]] = []

    def exchange(
        self, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor], purpose: str
    ) -> Pending:
        """Pass the batch on and record it. What `inner` refuses, and nothing at all, is not posted."""
        pending = self.inner.exchange(sends, receives, purpose)
        if batch := describe_batch(sends, receives, purpose):
            self.batches.append(batch)
        return pending

    def gather(self, record: bytes) -> list[bytes]:
        """Pass on: small records are gloo's, on the CPU."""
        return self.inner.gather(record)

    def broadcast(self, record: bytes) -> bytes:
        """Pass on: small records are gloo's, on the CPU."""
        return self.inner.broadcast(record)
