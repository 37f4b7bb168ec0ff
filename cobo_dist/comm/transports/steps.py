"""What ranks do at the same time under `comm.check`, described and compared. Pure functions.

Every rank takes the same steps in the same order: it begins a round, calls a method of the exchange, posts a
batch, which may be empty, or gathers or broadcasts a record. Steps are compared before anything is posted.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cobo_dist.comm.transports.nccl_rules import NcclRuleBroken, Operation, check_batch

_COMM = str(Path(__file__).resolve().parents[1])
_RECORDS = {"gather": "gathers a record", "broadcast": "broadcasts a record"}


@dataclass(frozen=True)
class Step:
    """One step of one rank."""

    kind: Literal["round", "call", "batch", "gather", "broadcast"]
    call: str = ""  # the method of the exchange that was called last, or the round
    line: str = ""  # the line outside `comm` that led to this step
    same: dict[str, str] = field(default_factory=dict)  # what must be the same on all ranks
    problem: str = ""  # what this rank found wrong by itself
    purpose: str = ""  # of a batch
    operations: list[list[Any]] = field(default_factory=list)  # of a batch

    def to_json(self) -> dict[str, Any]:
        """Return the step for `json.dumps`; `Step(**...)` reads it."""
        return asdict(self)

    @property
    def origin(self) -> str:
        """Return `exchange.mix at ring.py:31`."""
        return f"{self.call} at {self.line}" if self.call else f"at {self.line}"

    def batch(self) -> list[Operation]:
        """Return the operations of a batch, with purpose and origin for error messages."""
        return [
            Operation(
                kind, peer, count, getattr(torch, dtype), contiguous,
                purpose=f"{self.purpose}, {self.origin}",
            )
            for kind, peer, count, dtype, contiguous in self.operations
        ]  # fmt: skip

    def describe(self, number: int) -> str:
        """Return what the rank does; `number` is that of the next batch."""
        if self.kind in ("call", "round"):
            return f"{'calls' if self.kind == 'call' else 'begins'} {self.origin}"
        if self.kind in _RECORDS:
            return f"{_RECORDS[self.kind]} at {self.line}"
        verbs = {"send": ("sends", "to"), "recv": ("receives", "from")}
        posted = [
            f"{verbs[kind][0]} {count} {dtype} {verbs[kind][1]} rank {peer}"
            for kind, peer, count, dtype, _ in self.operations
        ]
        return f"posts batch {number} ({self.purpose}, {self.origin}): {', '.join(posted) or 'nothing'}"


def operations_of(batch: Sequence[Operation]) -> list[list[Any]]:
    """Return a batch for `Step.operations`."""
    return [
        [op.kind, op.peer, op.count, str(op.dtype).removeprefix("torch."), op.contiguous]
        for op in batch
    ]


def calling_line() -> str:
    """Return `file.py:line` of the code outside `comm` that called."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith(_COMM) and frame.f_back is not None:
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def fingerprint(value: object) -> str:
    """Return what stands for a value: of an array its type, shape and digest, else its text."""
    if not isinstance(value, np.ndarray):
        return str(value)
    digest = hashlib.sha256(value_bytes(value)).hexdigest()[:16]
    return f"{value.dtype} {list(value.shape)} {digest}"


def value_bytes(value: NDArray[Any]) -> bytes:
    """Return an array's numbers, with one 0 for 0 and -0."""
    return np.ascontiguousarray(value + value.dtype.type(0)).tobytes()


def find_mistake(steps: Sequence[Step], number: int) -> tuple[str, str]:
    """Compare the steps that all ranks take next, by rank.

    Return what is wrong, empty if nothing is, and the name of the value that differs, empty if none does.
    `number` is that of the batch, if they post one.
    """
    for rank, step in enumerate(steps):
        if step.problem:
            return f"rank {rank}, {step.origin}: {step.problem}", ""
    first = steps[0]
    for rank, step in enumerate(steps):
        named = step.kind in ("call", "round")
        if first.kind != step.kind or (named and first.call != step.call):
            return (
                f"rank 0 {first.describe(number)}, but rank {rank} {step.describe(number)}: every rank "
                "makes the same calls in the same order"
            ), ""
    for rank, step in enumerate(steps):
        for name, value in first.same.items():
            if (other := step.same.get(name)) != value:
                return (
                    f"{first.origin}: {name} must be the same on every rank, but is {value} on rank 0 "
                    f"and {other} on rank {rank}"
                ), name if _are_alike([one.same.get(name, "") for one in steps]) else ""
    if first.kind == "batch":
        try:
            check_batch([step.batch() for step in steps], number)
        except NcclRuleBroken as broken:
            return str(broken), ""
    return "", ""


def _are_alike(fingerprints: Sequence[str]) -> bool:
    """Return whether they are those of arrays of one type and shape."""
    return len({one.rpartition(" ")[0] for one in fingerprints}) == 1


def first_difference(name: str, values: Sequence[bytes], like: NDArray[Any]) -> str:
    """Return where an array of one shape and type differs between rank 0 and another, both named.

    `values` are the bytes of each rank's array (`value_bytes`).
    """
    arrays = [np.frombuffer(one, like.dtype).reshape(like.shape) for one in values]
    for rank, other in enumerate(arrays):
        if len(different := np.argwhere(arrays[0] != other)):
            place = tuple(different[0].tolist())
            one, two = (array[place].item() for array in (arrays[0], other))
            where = ", ".join(map(str, place))
            return f"{name}[{where}] is {one!r} on rank 0 and {two!r} on rank {rank}"
    return f"{name} differs"
