"""Streams, and copies that run behind the program: the host may read them only after it waited for them.

Kernels all run on the main stream, in their order. A copy to the host on another stream is made as late as it
may be, when something waits for it: it shows what its source holds then.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from virtual_cuda import counts
from virtual_cuda.marks import refuse, unwatched


@dataclass(eq=False)
class _Copy:
    number: int
    target: Tensor  # on the host, poisoned until the copy is done
    source: Tensor  # of the main stream: as it was when the copy was issued
    stream: Stream


_numbers = itertools.count(1)
_under_way: list[_Copy] = []
_issued = 0
_kernels = 0  # launched on the main stream


def launched() -> None:
    """Note a kernel of the main stream."""
    global _kernels
    if _current is not _MAIN:
        refuse("a kernel on another stream than the main one")
    _kernels += 1


def poison(tensor: Tensor) -> None:
    """Fill with bytes of 255: NaN in floating types, -1 in integers."""
    with unwatched():
        filled = torch.full((tensor.nbytes,), 255, dtype=torch.uint8)
        tensor.copy_(filled.view(tensor.dtype).view(tensor.shape))


def copy_later(target: Tensor, source: Tensor) -> None:
    """Copy to pinned host memory; the host sees the numbers after the next wait.

    Raises:
        VirtualCudaError: the copy's stream did not wait for the kernels before.
    """
    global _issued
    if _current is not _MAIN and _current.seen < _kernels:
        refuse("a copy on another stream that does not wait for the main stream")
    with unwatched():
        source = source.detach()
        held = source.to(target.dtype).clone() if _current is _MAIN else source
    poison(target)
    _issued = next(_numbers)
    _under_way.append(_Copy(_issued, target, held, _current))


def _finish(last: int, stream: Stream | None = None) -> None:
    """Complete the copies that were issued up to number `last`, on one stream or all."""
    with unwatched():
        for one in [one for one in _under_way if one.number <= last]:
            if stream is None or one.stream is stream:
                one.target.copy_(one.source)
                _under_way.remove(one)


def wait_for_device(why: str) -> None:
    """Let the host wait for all that was issued on the main stream."""
    counts.host_sync(why)
    _finish(_issued, _MAIN)


def wait_for_all(why: str) -> None:
    """Let the host wait for all streams."""
    counts.host_sync(why)
    _finish(_issued)


class Stream:
    """In place of torch.cuda.Stream."""

    def __init__(self, device: Any = None) -> None:
        self.seen = 0  # kernels of the main stream that it waits for

    def wait_stream(self, other: Stream) -> None:
        """Begin nothing before what was issued on the other stream is done."""
        if other is _MAIN:
            self.seen = _kernels
        else:
            _finish(_issued, other)

    def wait_event(self, event: Event) -> None:
        """Begin nothing before the event."""
        self.seen = max(self.seen, event._kernels)
        _finish(event._last, event._stream)

    def record_event(self, event: Event | None = None) -> Event:
        """Return an event behind what was issued."""
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        """Let the host wait for what was issued on this stream."""
        counts.host_sync("stream")
        _finish(_issued, self)


_MAIN = _current = Stream()


def current(device: Any = None) -> Stream:
    """Return the stream in use, as torch.cuda.current_stream."""
    return _current


@contextmanager
def using(stream: Stream) -> Iterator[None]:
    """Issue copies on a stream, as torch.cuda.stream."""
    global _current
    before, _current = _current, stream
    try:
        yield
    finally:
        _current = before


class Event:
    """In place of torch.cuda.Event: marks what was issued on a stream before `record`."""

    def __init__(self, **options: Any) -> None:
        self._last, self._seconds, self._kernels = 0, 0.0, 0
        self._stream = _MAIN

    def record(self, stream: Stream | None = None) -> None:
        """Mark the copies issued so far."""
        self._last, self._seconds = _issued, time.monotonic()
        self._stream = stream or _current
        self._kernels = _kernels if self._stream is _MAIN else self._stream.seen

    def elapsed_time(self, end: Event) -> float:
        """Return the milliseconds from this event to another."""
        return 1000 * (end._seconds - self._seconds)

    def query(self) -> bool:
        """Return whether they are done; this completes them, as time would."""
        _finish(self._last, self._stream)
        return True

    def synchronize(self) -> None:
        """Wait for them; another thread may do this while training goes on."""
        counts.host_sync("event")
        _finish(self._last, self._stream)
