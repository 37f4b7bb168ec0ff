"""Copies that run behind the program: what they write may be read only after the program waited for them."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from virtual_cuda import counts
from virtual_cuda.marks import unwatched


@dataclass(eq=False)
class _Copy:
    number: int
    target: Tensor  # on the host, poisoned until the copy is done
    source: Tensor  # as it was when the copy was issued


_numbers = itertools.count(1)
_under_way: list[_Copy] = []
_issued = 0


def poison(tensor: Tensor) -> None:
    """Fill with bytes of 255: NaN in floating types, -1 in integers."""
    with unwatched():
        filled = torch.full((tensor.nbytes,), 255, dtype=torch.uint8)
        tensor.copy_(filled.view(tensor.dtype).view(tensor.shape))


def copy_later(target: Tensor, source: Tensor) -> None:
    """Copy to pinned host memory; the host sees the numbers after the next wait."""
    global _issued
    with unwatched():
        held = source.detach().to(target.dtype).clone()
    poison(target)
    _issued = next(_numbers)
    _under_way.append(_Copy(_issued, target, held))


def _finish(last: int) -> None:
    """Complete the copies that were issued up to number `last`."""
    with unwatched():
        for one in [one for one in _under_way if one.number <= last]:
            one.target.copy_(one.source)
            _under_way.remove(one)


def wait_for_device(why: str) -> None:
    """Let the host wait for all that was issued."""
    counts.host_sync(why)
    _finish(_issued)


class Event:
    """In place of torch.cuda.Event: marks what was issued before `record`."""

    def __init__(self, **options: Any) -> None:
        self._last, self._seconds = 0, 0.0

    def record(self, stream: Any = None) -> None:
        """Mark the copies issued so far."""
        self._last, self._seconds = _issued, time.monotonic()

    def elapsed_time(self, end: Event) -> float:
        """Return the milliseconds from this event to another."""
        return 1000 * (end._seconds - self._seconds)

    def query(self) -> bool:
        """Return whether they are done; this completes them, as time would."""
        _finish(self._last)
        return True

    def synchronize(self) -> None:
        """Wait for them; another thread may do this while training goes on."""
        counts.host_sync("event")
        _finish(self._last)


class Stream:
    """In place of torch.cuda.Stream: all work is issued in one order."""

    def __init__(self, device: Any = None) -> None:
        pass

    def synchronize(self) -> None:
        """Let the host wait for all work."""
        wait_for_device("stream")
