"""Counts of kernels, host synchronizations and copied bytes, by the line of the program."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

PACKAGE = "cobo_dist"


@dataclass(eq=False)
class Counts:
    """What a program launched, by `file:line` (synchronizations: also why).

    Only the thread that counts is seen: a thread that waits for the device does not hold up training.
    """

    kernels: Counter[str] = field(default_factory=Counter)
    syncs: Counter[str] = field(default_factory=Counter)
    to_device: Counter[str] = field(default_factory=Counter)  # bytes
    to_host: Counter[str] = field(default_factory=Counter)  # bytes
    batches: int = 0  # messages posted together, by NCCL
    replays: int = 0  # of the kernels, those that replay a CUDA graph

    @property
    def outside_graphs(self) -> int:
        """Kernels that replay no graph."""
        return self.kernels.total() - self.replays

    def describe(self, most: int = 12) -> str:
        """Return the totals and the lines with the largest counts."""
        lines = [
            f"{self.kernels.total()} kernels, of them {self.replays} replays of graphs, "
            f"{self.syncs.total()} syncs, {self.batches} batches, "
            f"{self.to_device.total()} bytes to the device, {self.to_host.total()} to the host"
        ]
        for name in ("syncs", "kernels"):
            top: list[tuple[str, int]] = getattr(self, name).most_common(most)
            lines += [f"  {count:6} {name:8} {where}" for where, count in top]
        return "\n".join(lines)


_open: list[Counts] = []
_main = threading.main_thread()


@contextmanager
def counted() -> Iterator[Counts]:
    """Count what runs inside; counts may be nested."""
    counts = Counts()
    _open.append(counts)
    try:
        yield counts
    finally:
        _open.remove(counts)


@contextmanager
def uncounted() -> Iterator[None]:
    """Leave out of all counts what runs inside."""
    paused = _open.copy()
    _open.clear()
    try:
        yield
    finally:
        _open.extend(paused)


def site() -> str:
    """Return the innermost line of the package, as `folder/file.py:line`."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if f"/{PACKAGE}/" in name:
            return f"{name.rpartition(f'/{PACKAGE}/')[2]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "outside the package"


def _add(name: str, where: str, count: int) -> None:
    if threading.current_thread() is _main:
        for counts in _open:
            getattr(counts, name)[where] += count


def kernel(count: int = 1) -> None:
    """Note kernels."""
    if _open:
        _add("kernels", site(), count)


def host_sync(why: str) -> None:
    """Note that the host waits for the device."""
    if _open:
        _add("syncs", f"{site()} {why}", 1)


def upload(nbytes: int, *, blocks: bool) -> None:
    """Note a copy to the device; unless it runs behind the program, the host waits for it."""
    if _open:
        _add("to_device", site(), nbytes)
        if blocks:
            host_sync("copy to the device")


def download(nbytes: int, *, blocks: bool) -> None:
    """Note a copy to the host."""
    if _open:
        _add("to_host", site(), nbytes)
        if blocks:
            host_sync("copy to the host")


def replay() -> None:
    """Note a graph that one launch replays."""
    kernel()
    for counts in _open:
        counts.replays += 1


def batch() -> None:
    """Note messages that NCCL sends and receives in one kernel."""
    kernel()
    for counts in _open:
        counts.batches += 1
