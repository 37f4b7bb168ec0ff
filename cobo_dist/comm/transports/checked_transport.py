"""`comm.check`: a transport on which ranks compare what they are about to do before they do it.

Before each step (`steps.Step`) every rank sends a description of it to rank 0, which compares them and tells
all ranks the result. So a message without its counterpart, a call that one rank does not make, or arguments
that differ end the run at once on all ranks, with one line, and before anything is posted that gloo would
abort on and NCCL would hang on. It costs a gather and a broadcast for every step.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from cobo_dist.comm.transports.base import LostContact, Pending, Transport
from cobo_dist.comm.transports.nccl_rules import describe_batch
from cobo_dist.comm.transports.steps import (
    Step,
    calling_line,
    find_mistake,
    fingerprint,
    first_difference,
    operations_of,
    value_bytes,
)
from cobo_dist.errors import RunFailure

_LENGTH = struct.Struct("<Q")


class RuleBroken(RunFailure):
    """Ranks do not do the same, or post what NCCL would hang on, corrupt or reject. The same line on all."""


class CheckedTransport:
    """Passes everything on to another transport, once all ranks are known to do the same."""

    def __init__(self, inner: Transport) -> None:
        """Check `inner`. All ranks take every step together, also those with nothing to send."""
        self.inner = inner
        self.rank, self.world_size = inner.rank, inner.world_size
        self.checked = 0  # batches of all ranks that were checked, on rank 0
        self._number = 0  # of the next batch
        self._call = ""
        self._when = ""  # in which round, for error messages

    def exchange(
        self, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor], purpose: str
    ) -> Pending:
        """Compare the batches of all ranks and post this one's.

        Raises:
            RuleBroken: on all ranks, if the batches break one of NCCL's rules (`nccl_rules`).
        """
        operations = operations_of(describe_batch(sends, receives, purpose))
        self._take(
            Step("batch", self._call, calling_line(), purpose=purpose, operations=operations)
        )
        self._number += 1
        return self.inner.exchange(sends, receives, purpose)

    def gather(self, record: bytes) -> list[bytes]:
        """Gather every rank's record on rank 0.

        Raises:
            RuleBroken: on all ranks, if one of them does something else.
        """
        return self._take(Step("gather", line=calling_line()), to_gather=record)[0]

    def broadcast(self, record: bytes) -> bytes:
        """Return rank 0's record on every rank.

        Raises:
            RuleBroken: on all ranks, if one of them does something else.
        """
        return self._take(Step("broadcast", line=calling_line()), to_broadcast=record)[1]

    def begin_round(self, r: int) -> None:
        """Compare the rounds that all ranks begin.

        Raises:
            RuleBroken: on all ranks, if one of them begins another round, or does something else.
        """
        self._call = ""
        self._take(Step("round", f"round {r}", calling_line()))
        self._when = f"; this was in round {r}"

    def agree(self, call: str, same: Mapping[str, object], problem: str = "") -> None:
        """Compare what all ranks call.

        Args:
            call: what this rank calls, for people; the batches that follow are named after it.
            same: what must be the same on every rank, by name: arrays, or what `str` describes.
            problem: what this rank found wrong by itself; it ends all ranks.

        Raises:
            RuleBroken: on all ranks, if one calls something else, or with other values.
        """
        self._call = call
        known = {name: fingerprint(value) for name, value in same.items()}
        self._take(Step("call", call, calling_line(), known, problem), values=same)

    def _take(
        self,
        step: Step,
        *,
        to_gather: bytes = b"",
        to_broadcast: bytes = b"",
        values: Mapping[str, object] | None = None,
    ) -> tuple[list[bytes], bytes]:
        """Compare the steps of all ranks; return the records gathered (on rank 0) and broadcast."""
        try:
            received = [_split(one) for one in self.inner.gather(_join(step.to_json(), to_gather))]
            steps = [Step(**json.loads(head)) for head, _ in received]
            found = find_mistake(steps, self._number) if steps else ("", "")
            self.checked += sum(bool(one.operations) for one in steps)
            answer = self.inner.broadcast(_join([*found, self._when], to_broadcast))
            head, record = _split(answer)
            mistake, name, when = json.loads(head)
            if mistake:
                raise RuleBroken(f"comm.check: {mistake}{self._show(name, values or {})}{when}")
        except LostContact as lost:
            doing = f"comm.check: rank {self.rank} {step.describe(self._number)}"
            raise LostContact(f"{lost}; {doing}", lost.peers, lost.how, lost.waited) from lost
        return [record for _, record in received], record

    def _show(self, name: str, values: Mapping[str, object]) -> str:
        """Return on all ranks where the arrays of that name differ; empty where there is none."""
        mine = values.get(name)
        if not isinstance(mine, np.ndarray):
            return ""
        received = self.inner.gather(value_bytes(mine))
        found = first_difference(name, received, mine) if received else ""
        found = self.inner.broadcast(found.encode()).decode()
        return f": {found}" if found else ""


def _join(head: object, record: bytes) -> bytes:
    """Return a record with what travels before it."""
    text = json.dumps(head).encode()
    return _LENGTH.pack(len(text)) + text + record


def _split(received: bytes) -> tuple[bytes, bytes]:
    """Return what travels before a record, and the record."""
    (length,) = _LENGTH.unpack_from(received)
    start = _LENGTH.size
    return received[start : start + length], received[start + length :]
