"""Signals that ask a run to stop: each rank notes them at once, and all ranks stop after the same round.

Before a run begins, `StartGuard` ends the process for them.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from cobo_dist.comm.startup.start_guard import is_repeated
from cobo_dist.errors import EXIT_BY_SIGNAL

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Signals:
    """Notes the first SIGTERM, SIGUSR1 or SIGINT (Ctrl-C) while the body runs.

    A second SIGTERM later ends the process, and so does a second SIGINT. Where `ends_process` is false, as
    in a notebook, the second SIGINT raises KeyboardInterrupt instead.
    """

    def __init__(self, ends_process: bool = True) -> None:
        self.caught = 0  # the signal's number; 0: none
        self.ends_process = ends_process
        self._first: dict[int, float] = {}
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        # Python allows handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            self._before = {
                one: signal.signal(one, self._note)
                for one in STOPPING
                # A shell makes what it starts in the background ignore Ctrl-C.
                if one != signal.SIGINT or signal.getsignal(one) != signal.SIG_IGN
            }
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
        if is_repeated(number, self._first):
            if number == signal.SIGINT and not self.ends_process:
                raise KeyboardInterrupt
            os._exit(EXIT_BY_SIGNAL + number)  # do not wait for a checkpoint
        self.caught = self.caught or number


def name_of(number: int) -> str:
    """Return `SIGTERM` for 15."""
    return signal.Signals(number).name
