"""`comm.check`: a transport that checks what ranks post against NCCL's rules during the run.

Each rank records its batches. Whenever records are gathered for the log, the batches since the last gather
travel with them; rank 0 replays them, and its next broadcast tells all ranks the result. So checking sends no
message of its own, and no rank keeps more than the batches between two gathers.

A broken rule may end the run before that: gloo aborts a process that receives more than it expects. So each
rank also writes its batch to the shared store before it posts it. Ranks that lose contact compare what the
store has, whichever ranks are still alive.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.distributed import Store  # type: ignore[attr-defined]

from cobo_dist.comm.transports.base import LostContact, Pending, Transport
from cobo_dist.comm.transports.nccl_rules import (
    Batch,
    NcclRuleBroken,
    Operation,
    check_mirrors,
    check_schedule,
    describe_batch,
)
from cobo_dist.errors import RunFailure

STORE_SETTLE_SECONDS = 0.5
"""How long to wait after contact is lost, so that other ranks' last batches reach the store."""

_LENGTH = struct.Struct("<Q")


class RuleBroken(RunFailure):
    """Ranks posted what NCCL would hang on, corrupt or reject. The same line on all ranks."""


class CheckedTransport:
    """Passes everything on to another transport, and checks what all ranks post."""

    def __init__(self, inner: Transport, store: Store | None = None) -> None:
        """Check `inner`; with `store`, which all ranks share, also after contact is lost."""
        self.inner, self._store = inner, store
        self.rank, self.world_size = inner.rank, inner.world_size
        self.checked = 0  # batches of all ranks, on rank 0
        self._batches: list[list[Operation]] = []  # since the last gather
        self._first = 0  # the number of the first of them in the run
        self._gathers = 0
        self._broken_rule = ""  # found on rank 0, and sent with its next broadcast

    def exchange(
        self, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor], purpose: str
    ) -> Pending:
        """Record the batch and pass it on."""
        if batch := describe_batch(sends, receives, purpose):
            self._record(batch)
        explaining = _Explaining(self)
        with explaining:
            return _CheckedPending(self.inner.exchange(sends, receives, purpose), explaining)

    def gather(self, record: bytes) -> list[bytes]:
        """Gather every rank's record on rank 0, with the batches since the last gather; check those."""
        batches = [_to_json(batch) for batch in self._batches]
        window = json.dumps([self._first, batches]).encode()
        with _Explaining(self):
            received = self.inner.gather(_LENGTH.pack(len(window)) + window + record)
        self._first += len(self._batches)
        self._batches = []
        self._gathers += 1
        pairs = [_split(one) for one in received]
        if pairs and not self._broken_rule:
            self._check_windows([window for window, _ in pairs])
        return [record for _, record in pairs]

    def broadcast(self, record: bytes) -> bytes:
        """Return rank 0's record on every rank.

        Raises:
            RuleBroken: on all ranks, if one of them broke a rule before the last gather.
        """
        found = self._broken_rule.encode()
        with _Explaining(self):
            received = self.inner.broadcast(_LENGTH.pack(len(found)) + found + record)
        found, record = _split(received)
        if found:
            raise RuleBroken(found.decode())
        return record

    def forget_store(self) -> None:
        """Release the store: the session ends."""
        self._store = None

    def explain_loss(self) -> str:
        """Return the broken rule that explains a lost contact; empty if the store shows none."""
        if self._broken_rule or self._store is None:
            return self._broken_rule
        time.sleep(STORE_SETTLE_SECONDS)
        batches, first = {}, {}
        with suppress(RuntimeError):  # the store is gone if rank 0 is
            for rank in range(self.world_size):
                first[rank], batches[rank] = self._stored_batches(rank, self._store)
            try:
                check_mirrors(batches, first)
            except NcclRuleBroken as broken:
                return f"comm.check: {broken}"
        return ""

    def _record(self, batch: list[Operation]) -> None:
        """Keep the batch, and write it to the store.

        Keys are used again after two gathers, so the store does not grow with the run.
        """
        if self._store is not None:
            number = self._first + len(self._batches)
            entry = json.dumps([self._gathers, number, _to_json(batch)])
            with suppress(RuntimeError):  # the exchange itself will report the lost contact
                self._store.set(self._key(self.rank, len(self._batches)), entry)
        self._batches.append(batch)

    def _stored_batches(self, rank: int, store: Store) -> tuple[int, list[Batch]]:
        """Return the number of a rank's first batch since the last gather, and all these batches."""
        first = 0
        batches: list[Batch] = []
        while store.check([key := self._key(rank, len(batches))]):
            gathers, number, batch = json.loads(store.get(key))
            if gathers != self._gathers:  # written before the last gather
                break
            first = first if batches else number
            batches.append(_from_json(batch))
        return first, batches

    def _key(self, rank: int, index: int) -> str:
        return f"check/{self._gathers % 2}/{rank}/{index}"

    def _check_windows(self, windows: Sequence[bytes]) -> None:
        """Replay the batches that the ranks sent; keep the rule that they break, if any."""
        batches, first = {}, {}
        for rank, window in enumerate(windows):
            first[rank], entries = json.loads(window)
            batches[rank] = [_from_json(batch) for batch in entries]
        self.checked += sum(map(len, batches.values()))
        try:
            check_schedule(batches, first)
        except NcclRuleBroken as broken:
            self._broken_rule = f"comm.check: {broken}"


class _Explaining:
    """Context manager that turns LostContact into the broken rule that caused it, where one did."""

    def __init__(self, transport: CheckedTransport) -> None:
        self.transport = transport

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, LostContact) and (rule := self.transport.explain_loss()):
            raise RuleBroken(rule) from error


class _CheckedPending:
    def __init__(self, inner: Pending, explaining: _Explaining) -> None:
        self.inner, self.explaining = inner, explaining

    def wait(self) -> None:
        with self.explaining:
            self.inner.wait()


def _split(received: bytes) -> tuple[bytes, bytes]:
    """Return what was put before a record, and the record."""
    (length,) = _LENGTH.unpack_from(received)
    start = _LENGTH.size
    return received[start : start + length], received[start + length :]


def _to_json(batch: Batch) -> list[Any]:
    rows = [[op.kind, op.peer, op.count, str(op.dtype), op.contiguous] for op in batch]
    return [batch[0].purpose, rows]


def _from_json(entry: Sequence[Any]) -> Batch:
    purpose, rows = entry
    return [
        Operation(
            kind, peer, count, getattr(torch, dtype.removeprefix("torch.")), contiguous, purpose=purpose
        )
        for kind, peer, count, dtype, contiguous in rows
    ]  # fmt: skip
