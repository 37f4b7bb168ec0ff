"""One training as a subprocess of torchrun; its output goes to a log file."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from cobo_dist.comm.startup.start_guard import REPEATED_SIGNAL_SECONDS, is_repeated
from cobo_dist.config import as_argument
from cobo_dist.storage.files import open_file
from cobo_dist.storage.reading import is_finished, read_status
from cobo_dist.storage.schema import STATUS_FILE
from cobo_dist.sweeps.folders import State
from cobo_dist.sweeps.grid import Run

STOP_SECONDS = 45.0
"""From SIGTERM to SIGKILL; torchrun itself gives its workers 30."""
POLL_SECONDS = 0.05
_LOG_END_BYTES = 1 << 24
"""How much of the end of a log is searched for the reason of a failure."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class StopSignal:
    """Records the signal that asks the sweep to stop, so that no step is cut off half-way."""

    def __init__(self) -> None:
        self.signal = 0
        self.times = 0
        self._first: dict[int, float] = {}

    def __bool__(self) -> bool:
        return self.times > 0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler. After a second signal the sweep no longer waits for the training.

        What a batch system sends to all processes and a launcher passes on counts once (`is_repeated`).
        """
        is_first = number not in self._first
        if is_repeated(number, self._first) or is_first or number not in REPEATED_SIGNAL_SECONDS:
            self.times += 1
        self.signal = self.signal or number

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals; those that the parent made us ignore (nohup) stay ignored."""
        before = {one: signal.getsignal(one) for one in _SIGNALS}
        for one, handler in before.items():
            if handler != signal.SIG_IGN:
                signal.signal(one, self.handle)
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)


@dataclass(frozen=True)
class Exited:
    """How a training ended: `reason` is one line, empty if it is done."""

    code: int
    reason: str
    seconds: float


def command(run: Run, folder: Path, ranks: int, state: State) -> list[str]:
    """Return the command that trains one run into a folder in this state."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *(f"--nproc_per_node={ranks}", "-m", "cobo_dist.train"),
        *([] if run.file is None else ["--config", run.file]),
        *run.arguments,
        # Figures take seconds, and the report draws them for all runs together.
        *([] if "figures" in run.config.log.model_fields_set else ["log.figures=false"]),
        f"run.overwrite={str(state == 'again').lower()}",
        f"run.resume={'auto' if state == 'resume' else 'never'}",
        as_argument("run.dir", str(folder)),
    ]


def train(arguments: Sequence[str], folder: Path, log: Path, stop: StopSignal) -> Exited:
    """Run the command until it ends or the sweep is asked to stop; its output goes to the log file.

    Raises:
        OSError: the log file or the process cannot be made.
    """
    earlier = _stamp(folder)
    began = time.monotonic()
    log.unlink(missing_ok=True)
    with log.open("xb") as file:  # a new file: a link is not followed, and a pipe would block
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the sweep, and the sweep ends the training
        )
        while process.poll() is None and not stop:
            time.sleep(POLL_SECONDS)
        if process.poll() is None:
            _terminate(process, stop)
    seconds = time.monotonic() - began
    code = process.returncode
    if code == 0 and is_finished(folder):
        return Exited(0, "", seconds)
    written = _stamp(folder) != earlier
    return Exited(*_explain(code, folder if written else None, log), seconds)


def _stamp(folder: Path) -> tuple[int, int] | None:
    """Tells this run's status.json from that of an earlier run in the folder."""
    try:
        found = (folder / STATUS_FILE).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _explain(code: int, folder: Path | None, log: Path) -> tuple[int, str]:
    """Return the exit code and the reason of a run that is not done, in its own words if it gave any.

    torchrun itself exits with 1 whatever a rank's exit code was, but writes that code into the log.
    """
    with suppress(OSError):
        with open_file(log) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_END_BYTES))
            text = file.read(_LOG_END_BYTES).decode(errors="replace")
        status = read_status(folder) if folder else None
        of_ranks = re.findall(r"^\s*exitcode\s*: (-?\d+)", text, re.MULTILINE)
        code = int(of_ranks[-1]) if of_ranks else code
        if status is not None:
            code = status.exit_code or code
        return code, (status and status.reason) or last_error(text)
    return code, "its log cannot be read"


def last_error(text: str) -> str:
    """Return the line of a log that best explains the end: the program's own error, else an exception."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    patterns = (
        r"error: (.+)",
        r"traceback : (Signal .+)",
        r"((?!torch\.distributed\.elastic)[\w.]*(?:Error|Exception|Exit|Interrupt)\b.*)",
        r"(.*[A-Za-z].*)",
    )
    for pattern in patterns:
        found = [match[1] for line in lines if (match := re.fullmatch(pattern, line))]
        if found:
            return found[-1]
    return "no reason given"


def _terminate(process: subprocess.Popen[bytes], stop: StopSignal) -> None:
    """End torchrun and all its ranks: SIGTERM first, then SIGKILL."""
    # Ranks have sessions of their own: the signal to torchrun's does not reach them.
    launcher, family = psutil.Process(process.pid), set[psutil.Process]()
    with suppress(psutil.NoSuchProcess):
        family |= {launcher, *launcher.children(recursive=True)}
    _signal_group(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while process.poll() is None and time.monotonic() < deadline and stop.times < 2:
        time.sleep(POLL_SECONDS)
        with suppress(psutil.NoSuchProcess):
            family |= set(launcher.children(recursive=True))
    for one in family:
        _signal_group(one.pid, signal.SIGKILL)
    process.wait()


def _signal_group(leader: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)
