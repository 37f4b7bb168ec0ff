"""The start guard: ends this process when a signal or another rank's end makes the start of a run pointless.

Until a run claims its folder, nothing is written, so there is nothing to undo and no checkpoint to wait for.
A thread ends the process, because the main thread may be inside a call that no Python handler interrupts:
an import, the reading of data, the making of the process group. The run itself stops in order (`Signals`);
then only a second signal (`is_repeated`), and with NCCL another rank's end, still end the process from here.
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

from cobo_dist.comm.liveness import Liveness
from cobo_dist.errors import EXIT_BY_SIGNAL, RANK_0_FIRST_SECONDS, RunFailure

ENDING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
REPEATED_SIGNAL_SECONDS = {signal.SIGTERM: 5.0, signal.SIGINT: 1.0}
"""Within this time two of these signals count as one. The cluster or the terminal sends it to all processes,
and torchrun passes its own on. A later one ends the process at once."""
LAST_RESORT_SECONDS = 8.0
"""How long the main thread may take to end a run with NCCL in order, after another rank has ended."""
CAUSE_SECONDS = 0.3
"""How long a signal waits for news of a rank that has ended: launchers then send SIGTERM to the others."""


def is_repeated(number: int, first: dict[int, float]) -> bool:
    """Return whether a signal asks again, later than a launcher would; `first` keeps when each came first."""
    apart = REPEATED_SIGNAL_SECONDS.get(signal.Signals(number))
    now = time.monotonic()
    return apart is not None and now - first.setdefault(number, now) > apart


class StartGuard:
    """Context manager around the start of a run. The handlers of `Signals` must be set before.

    Only one thread ends the process or closes the guard: the other waits for it.
    """

    def __init__(self, rank: int = 0) -> None:
        self.rank = rank
        self._liveness: Liveness | None = None
        self._is_last_resort = False
        self._ending = threading.Lock()
        self._is_open = False
        self._arriving: socket.socket | None = None  # where Python writes the numbers of signals

    def __enter__(self) -> StartGuard:
        # Python allows handlers in the main thread only.
        if self._arriving is None and threading.current_thread() is threading.main_thread():
            self._is_open = True
            self._signals, arriving = socket.socketpair()
            arriving.setblocking(False)
            self._arriving = arriving
            self._before_fd = signal.set_wakeup_fd(arriving.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._watch, name="start guard", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._arriving is not None:
            self.close()
            signal.set_wakeup_fd(self._before_fd)
            self._arriving.close()  # ends the thread
            self._arriving = None

    @property
    def is_watching(self) -> bool:
        """Whether its thread looks for signals: it was entered, in the main thread."""
        return self._arriving is not None

    def attach(self, liveness: Liveness, *, is_last_resort: bool = False) -> None:
        """From here on, end the process when another rank ends, and tell the others of a signal.

        `is_last_resort`: also in the run, `LAST_RESORT_SECONDS` after another rank has ended. The main thread
        may then be in a call that waits for that rank and cannot be interrupted.

        Raises:
            RankEnded: another rank has ended already.
        """
        self._liveness, self._is_last_resort = liveness, is_last_resort
        if self._is_open:
            liveness.on_failure = self._end_for
            if (failure := liveness.failure()) is not None:
                raise failure

    def detach(self) -> None:
        """End the last resort: the main thread no longer waits for other ranks."""
        self._is_last_resort = False

    def close(self) -> None:
        """Let signals and other ranks' ends be handled by the run; called in the main thread."""
        with self._ending:
            self._is_open = False

    def _watch(self) -> None:
        first: dict[int, float] = {}
        with self._signals as signals:
            while numbers := signals.recv(64):
                for number in numbers:
                    if number in ENDING and self._is_open:
                        self._end_by(number)
                    # `Signals` does the same, where the main thread gets to it.
                    if is_repeated(number, first):
                        os._exit(EXIT_BY_SIGNAL + number)

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
                return
            liveness.report(line, code)
        self._end(RunFailure(line, code=code))

    def _end_for(self, failure: RunFailure) -> None:
        """End since another rank has ended."""
        self._end(failure)
        if self._is_last_resort:
            time.sleep(LAST_RESORT_SECONDS)
        if self._is_last_resort:
            self._print_and_exit(failure)

    def _end(self, failure: RunFailure) -> None:
        """End the process, unless the main thread was first."""
        self._ending.acquire()
        if self._is_open:
            self._print_and_exit(failure)
        self._ending.release()

    def _print_and_exit(self, failure: RunFailure) -> None:
        """Print the line where this rank is to do so, and end the process."""
        if self._liveness is not None:
            self._liveness.drain()
        with suppress(Exception):  # whatever is wrong with the terminal, the process ends
            if self.rank == 0 or failure.here_only:
                print(f"error: {failure}", file=sys.stderr, flush=True)
            else:
                time.sleep(RANK_0_FIRST_SECONDS)
            sys.stdout.flush()
        os._exit(failure.code)
