"""The start guard: ends this process when a signal or another rank's end makes the start of a run pointless.

Until a run claims its folder, nothing is written, so there is nothing to undo and no checkpoint to wait for.
A thread ends the process, because the main thread may be inside a call that no Python handler interrupts:
an import, the reading of data, the making of the process group. The run itself stops in order (`Signals`).
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

from cobo_dist.comm.liveness import Liveness
from cobo_dist.errors import EXIT_BY_SIGNAL, RANK_0_FIRST_SECONDS, RunFailure

ENDING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
CAUSE_SECONDS = 0.3
"""How long a signal waits for news of a rank that has ended: launchers then send SIGTERM to the others."""


class StartGuard:
    """Context manager around the start of a run. The handlers of SIGTERM and SIGUSR1 must be set before.

    Only one thread ends the process or closes the guard: the other waits for it.
    """

    def __init__(self, rank: int = 0) -> None:
        self.rank = rank
        self._liveness: Liveness | None = None
        self._ending = threading.Lock()
        self._is_open = False

    def __enter__(self) -> StartGuard:
        # Python allows handlers in the main thread only.
        if not self._is_open and threading.current_thread() is threading.main_thread():
            self._is_open = True
            self._signals, arriving = socket.socketpair()
            arriving.setblocking(False)
            self._arriving = arriving
            self._before_fd = signal.set_wakeup_fd(arriving.fileno(), warn_on_full_buffer=False)
            self._before_int: Any = signal.signal(signal.SIGINT, lambda number, frame: None)
            threading.Thread(target=self._watch, name="start guard", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def attach(self, liveness: Liveness) -> None:
        """From here on, end the process when another rank ends, and tell the others of a signal."""
        self._liveness = liveness
        if self._is_open:
            liveness.on_failure = self._end
            if (failure := liveness.failure()) is not None:
                raise failure

    def close(self) -> None:
        """Let signals and other ranks' ends be handled by the run; called in the main thread."""
        with self._ending:
            if not self._is_open:
                return
            self._is_open = False
        signal.set_wakeup_fd(self._before_fd)
        signal.signal(signal.SIGINT, self._before_int)
        self._arriving.close()  # ends the thread

    def _watch(self) -> None:
        with self._signals as signals:
            while numbers := signals.recv(64):
                for number in numbers:
                    if number in ENDING:
                        self._end_by(number)

    def _end_by(self, number: int) -> None:
        """End for a signal, unless it only follows another rank's end."""
        line = (
            f"stopped by {signal.Signals(number).name} before the first round; nothing was saved, "
            "so the same command starts from where this one did"
        )
        liveness, code = self._liveness, EXIT_BY_SIGNAL + number
        if liveness is not None:
            if (failure := liveness.failure(CAUSE_SECONDS)) is not None:
                self._end(failure)
            liveness.report(line, code)
        self._end(RunFailure(line, code=code))

    def _end(self, failure: RunFailure) -> None:
        """Print the line where this rank is to do so, and end the process."""
        self._ending.acquire()
        if not self._is_open:  # the main thread was first
            self._ending.release()
            return
        if self._liveness is not None:
            self._liveness.drain()
        with suppress(Exception):  # whatever is wrong with the terminal, the process ends
            if self.rank == 0 or failure.here_only:
                print(f"error: {failure}", file=sys.stderr, flush=True)
            else:
                time.sleep(RANK_0_FIRST_SECONDS)
            sys.stdout.flush()
        os._exit(failure.code)
