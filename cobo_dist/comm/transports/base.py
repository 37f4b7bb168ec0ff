"""The contract of a transport: how tensors and small records get from rank to rank.

All tensors travel through `exchange`, as one batch of point-to-point operations that mirrors on both
sides. NCCL, gloo and MPI all support that pattern safely: at most one message each way between two ranks,
tag 0, contiguous, never empty, never to the rank itself.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor

from cobo_dist.comm.nccl_group import is_device_error
from cobo_dist.errors import RunFailure

SENDABLE = frozenset(
    {
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int32,
        torch.int64,
        torch.uint8,
    }
)
"""The types that a message may have."""


class Pending(Protocol):
    """Messages in flight."""

    def wait(self) -> None:
        """Return when all messages have arrived and all send buffers may be changed again."""


class Transport(Protocol):
    """The contract that every transport keeps (one test function runs against all of them)."""

    rank: int
    world_size: int

    def exchange(
        self, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor], purpose: str
    ) -> Pending:
        """Start one message to each peer in `sends` and from each peer in `receives`; wait on the result.

        The peer must post the mirror image: same element count and dtype, in the same order of
        exchanges. No buffer may be touched before `wait` returns.

        Raises:
            ValueError: a message that NCCL could not carry (see `check_message`).
            LostContact: a peer died, left or kept silent for comm.timeout seconds.
        """

    def gather(self, record: bytes) -> list[bytes]:
        """Return every rank's record, of any length, on rank 0 in rank order; elsewhere []."""

    def broadcast(self, record: bytes) -> bytes:
        """Return rank 0's record on every rank."""


HowLost = Literal["closed", "silent", "unreachable"]
"""How contact was lost. closed: the connection ended; silent: no answer within comm.timeout; unreachable: the
peer's host has not even acknowledged a packet."""

_UNREACHABLE = re.compile(
    "connection timed out|(network|host) is unreachable|no route to host", re.I
)
_SILENT = re.compile("timed out waiting|no answer", re.I)


class LostContact(RunFailure):
    """A peer died, hung past comm.timeout or left, or the network failed; the cause is not on this rank.

    `peers` are the ranks it can be, as far as the error message tells; empty: any rank. `waited` is for how
    many seconds this rank had waited for them.
    """

    def __init__(
        self,
        message: str,
        peers: Iterable[int] = (),
        how: HowLost = "closed",
        waited: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.peers, self.how, self.waited = frozenset(peers), how, waited


class as_lost_contact:
    """Context manager that turns a library's RuntimeError into one line that says what was going on.

    A class and not a generator, since it wraps every exchange. The body may change `peers`.

    Raises:
        LostContact: where the body raises RuntimeError, unless that is about this rank's own memory or GPU.
    """

    def __init__(self, rank: int, activity: str, peers: Iterable[int] = ()) -> None:
        self.rank, self.activity, self.peers = rank, activity, peers

    def __enter__(self) -> as_lost_contact:
        self.began = time.monotonic()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RuntimeError) and not is_device_error(error):
            raise LostContact(
                f"rank {self.rank} lost contact while {self.activity}: {_reason(error)}",
                self.peers,
                how_lost(error),
                time.monotonic() - self.began,
            ) from error


def how_lost(error: RuntimeError) -> HowLost:
    """Return how contact was lost; libraries tell it only in words."""
    if _UNREACHABLE.search(str(error)):
        return "unreachable"
    return "silent" if _SILENT.search(str(error)) else "closed"


def _reason(error: RuntimeError) -> str:
    """Return torch's first line without gloo's source file before it and its advice after it."""
    first = str(error).strip().partition("\n")[0] or repr(error)
    return re.sub(r"^\[\S*\.cc:\d+\] ", "", first).partition(". This is typically")[0]


def check_message(tensor: Tensor, rank: int, peer: int, world_size: int) -> None:
    """Refuse what NCCL would hang on, corrupt or reject, although gloo may let it pass.

    Raises:
        ValueError: a message to the rank itself or to no rank, empty, not contiguous, or of a dtype
            that is not in `SENDABLE`.
    """
    if peer == rank or not 0 <= peer < world_size:
        raise ValueError(f"rank {rank} of {world_size} cannot exchange a message with rank {peer}")
    if tensor.numel() == 0:
        raise ValueError(f"empty message between rank {rank} and rank {peer}")
    if not tensor.is_contiguous():
        raise ValueError(f"message between rank {rank} and rank {peer} is not contiguous")
    if tensor.dtype not in SENDABLE:
        raise ValueError(f"{tensor.dtype} does not travel between rank {rank} and rank {peer}")


def posting_order(
    sends: Mapping[int, Tensor], receives: Mapping[int, Tensor]
) -> list[tuple[str, int, Tensor]]:
    """Return the operations ("send" or "recv", peer, tensor) of a batch in the order of posting."""
    return [
        (kind, peer, messages[peer])
        for peer in sorted({*sends, *receives})
        for kind, messages in (("send", sends), ("recv", receives))
        if peer in messages
    ]


class NothingPending:
    """No message is in flight."""

    def wait(self) -> None:
        """Return at once."""


class SoloTransport:
    """The transport of a run with one rank: no process group."""

    rank = 0
    world_size = 1

    def exchange(
        self, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor], purpose: str
    ) -> Pending:
        """Do nothing; any message is an error."""
        for peer, tensor in (*sends.items(), *receives.items()):
            check_message(tensor, self.rank, peer, self.world_size)
        return NothingPending()

    def gather(self, record: bytes) -> list[bytes]:
        """Return the one record."""
        return [record]

    def broadcast(self, record: bytes) -> bytes:
        """Return the record."""
        return record
