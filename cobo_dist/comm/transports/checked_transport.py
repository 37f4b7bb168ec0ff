"""`comm.check`: a transport that holds what ranks post against NCCL's rules while the run goes on.

Each rank keeps a record of its batches. Whenever records are gathered for the log, the batches since the
last time go along; rank 0 replays them, and its next broadcast tells all ranks what it found. So checking
sends no tensor of its own, and no more is held than one such window.

A broken rule may also end the run before that: gloo aborts a process that gets more than it expects. So
each batch is noted in the store that all ranks share before it is posted, and ranks that lose contact
compare what they find there, whoever is still alive.
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

PATIENCE = 0.5
"""Seconds after contact is lost in which other ranks' last notes come to the store."""

_LENGTH = struct.Struct("<Q")


class RuleBroken(RunFailure):
    """Ranks posted what NCCL would hang on, corrupt or reject. The same line on all ranks."""


class CheckedTransport:
    """Passes everything on to another transport, and checks what all ranks post."""

    def __init__(self, inner: Transport, store: Store | None = None) -> None:
        """Check `inner`; through `store`, which all ranks share, also after contact is lost."""
        self.inner, self._store = inner, store
        self.rank, self.world_size = inner.rank, inner.world_size
        self.checked = 0  # batches of all ranks, on rank 0
        self._batches: list[list[Operation]] = []  # since the last gather
        self._first = 0  # the number of the first of them
        self._gathers = 0
        self._verdict = ""

    def exchange(
        self, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor], purpose: str
    ) -> Pending:
        """Record the batch and pass it on."""
        if batch := describe_batch(sends, receives, purpose):
            self._note(batch)
        with self._explaining:
            return _CheckedPending(self.inner.exchange(sends, receives, purpose), self._explaining)

    def gather(self, record: bytes) -> list[bytes]:
        """Bring every rank's record to rank 0, and the batches since the last gather with it."""
        window = self._window()
        with self._explaining:
            told = self.inner.gather(_LENGTH.pack(len(window)) + window + record)
        self._first += len(self._batches)
        self._batches = []
        self._gathers += 1
        pairs = [_split(one) for one in told]
        if pairs and not self._verdict:
            self._verdict = self._judge([window for window, _ in pairs])
        return [record for _, record in pairs]

    def broadcast(self, record: bytes) -> bytes:
        """Return rank 0's record on every rank.

        Raises:
            RuleBroken: on all ranks, if one broke a rule before the last gather.
        """
        verdict = self._verdict.encode()
        with self._explaining:
            told = self.inner.broadcast(_LENGTH.pack(len(verdict)) + verdict + record)
        verdict, record = _split(told)
        if verdict:
            raise RuleBroken(verdict.decode())
        return record

    def forget_store(self) -> None:
        """Let go of the store: the session ends."""
        self._store = None

    # -- judging ----------------------------------------------------------------------------------

    def _note(self, batch: list[Operation]) -> None:
        """Keep the batch, and leave a note of it in the store.

        Notes of the window before last are written over, so the store does not grow with the run.
        """
        if self._store is not None:
            number = self._first + len(self._batches)
            note = json.dumps([self._gathers, number, _plain(batch)])
            with suppress(RuntimeError):  # the loss itself shows where the tensors travel
                self._store.set(self._key(self.rank, len(self._batches)), note)
        self._batches.append(batch)

    def _key(self, rank: int, place: int) -> str:
        return f"check/{self._gathers % 2}/{rank}/{place}"

    def _window(self) -> bytes:
        return json.dumps([self._first, [_plain(batch) for batch in self._batches]]).encode()

    def _judge(self, windows: Sequence[bytes]) -> str:
        """Return which rule the ranks' windows break; empty if none."""
        batches, first = {}, {}
        for rank, window in enumerate(windows):
            first[rank], plain = json.loads(window)
            batches[rank] = [_operations(batch) for batch in plain]
        self.checked += sum(map(len, batches.values()))
        try:
            check_schedule(batches, first)
        except NcclRuleBroken as broken:
            return f"comm.check: {broken}"
        return ""

    @property
    def _explaining(self) -> _Explaining:
        return _Explaining(self)

    def compare_after_loss(self) -> str:
        """Return which rule explains that contact was lost; empty if what ranks noted does not tell."""
        if self._verdict or self._store is None:
            return self._verdict
        time.sleep(PATIENCE)
        batches, first = {}, {}
        with suppress(RuntimeError):  # the store may be gone, with rank 0
            for rank in range(self.world_size):
                first[rank], batches[rank] = self._noted_by(rank, self._store)
            try:
                check_mirrors(batches, first)
            except NcclRuleBroken as broken:
                return f"comm.check: {broken}"
        return ""

    def _noted_by(self, rank: int, store: Store) -> tuple[int, list[Batch]]:
        """Return the number of a rank's first batch since the last gather, and all these batches."""
        first = 0
        batches: list[Batch] = []
        while store.check([key := self._key(rank, len(batches))]):
            gathers, number, plain = json.loads(store.get(key))
            if gathers != self._gathers:  # of an earlier window
                break
            first = first if batches else number
            batches.append(_operations(plain))
        return first, batches


class _Explaining:
    """Turns lost contact into the broken rule that caused it, where one did."""

    def __init__(self, transport: CheckedTransport) -> None:
        self.transport = transport

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, LostContact) and (why := self.transport.compare_after_loss()):
            raise RuleBroken(why) from error


class _CheckedPending:
    def __init__(self, inner: Pending, explaining: _Explaining) -> None:
        self.inner, self.explaining = inner, explaining

    def wait(self) -> None:
        with self.explaining:
            self.inner.wait()


def _split(told: bytes) -> tuple[bytes, bytes]:
    """Return what goes before a record, and the record."""
    (length,) = _LENGTH.unpack_from(told)
    return told[_LENGTH.size : _LENGTH.size + length], told[_LENGTH.size + length :]


def _plain(batch: Batch) -> list[Any]:
    """Return a batch as JSON can hold it."""
    rows = [[op.kind, op.peer, op.count, str(op.dtype), op.contiguous] for op in batch]
    return [batch[0].purpose, rows]


def _operations(plain: Sequence[Any]) -> Batch:
    purpose, rows = plain
    return [
        Operation(
            kind, peer, count, getattr(torch, dtype.removeprefix("torch.")), contiguous, purpose=purpose
        )
        for kind, peer, count, dtype, contiguous in rows
    ]  # fmt: skip
