"""Signals that ask a run to stop: each rank notes them at once, and all ranks stop after the same round.

Before a run begins, `StartGuard` ends the process for them.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from cobo_dist.comm.startup.start_guard import REPEATED_SIGNAL_SECONDS
from cobo_dist.errors import EXIT_BY_SIGNAL

STOPPING = (signal.SIGTERM, signal.SIGUSR1)


class Signals:
    """Notes the first SIGTERM or SIGUSR1 while the body runs; a second SIGTERM later ends the process."""

    def __init__(self) -> None:
        self.caught = 0  # the signal's number; 0: none
        self._terminated = 0.0  # when SIGTERM came first
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        # Python allows handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            self._before = {one: signal.signal(one, self._note) for one in STOPPING}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            now = time.monotonic()
            if self._terminated and now - self._terminated > REPEATED_SIGNAL_SECONDS:
                os._exit(EXIT_BY_SIGNAL + number)  # do not wait for a checkpoint
            self._terminated = self._terminated or now
        self.caught = self.caught or number


def name_of(number: int) -> str:
    """Return `SIGTERM` for 15."""
    return signal.Signals(number).name
