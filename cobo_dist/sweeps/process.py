"""One training as a subprocess: started by torchrun, its words in a log file, ended as a whole."""

from __future__ import annotations

import json
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

from cobo_dist.storage.reading import is_finished, read_status
from cobo_dist.storage.schema import STATUS_FILE
from cobo_dist.sweeps.folders import State
from cobo_dist.sweeps.grid import Run

PATIENCE = 45.0  # seconds; torchrun gives its workers 30 to end
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Stop:
    """Remembers the signal that asked the sweep to end; nothing is torn off half-way."""

    def __init__(self) -> None:
        self.signal = 0
        self.times = 0

    def __bool__(self) -> bool:
        return self.times > 0

    def note(self, number: int, frame: FrameType | None) -> None:
        """The signal handler: asked twice, the sweep waits no longer."""
        self.signal = self.signal or number
        self.times += 1

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals; those that the parent has us ignore (nohup) stay ignored."""
        before = {one: signal.getsignal(one) for one in _SIGNALS}
        for one, handler in before.items():
            if handler != signal.SIG_IGN:
                signal.signal(one, self.note)
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)


@dataclass(frozen=True)
class Ended:
    """How a training ended: `reason` is one line, empty where it is done."""

    code: int
    reason: str
    seconds: float


def command(run: Run, folder: Path, ranks: int, state: State) -> list[str]:
    """Return the command that trains one run, into a folder in this state."""
    config = [] if run.file is None else ["--config", run.file]
    # Figures take seconds and the report draws them for all runs together.
    quiet = [] if "figures" in run.config.log.model_fields_set else ["log.figures=false"]
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *(
            f"--nproc_per_node={ranks}",
            "-m",
            "cobo_dist.train",
            *config,
            *run.arguments,
            *quiet,
        ),
        f"run.overwrite={str(state == 'again').lower()}",
        f"run.resume={'auto' if state == 'resume' else 'never'}",
        f"run.dir={json.dumps(str(folder), ensure_ascii=False)}",  # quoted: # and : mean themselves
    ]


def train(started: Sequence[str], folder: Path, log: Path, stop: Stop) -> Ended:
    """Run the command to its end, or to the sweep's; its output goes to the log file.

    Raises:
        OSError: the log file or the process cannot be made.
    """
    earlier = _stamp(folder)
    begin = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            started,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the sweep, and the sweep ends the training
        )
        while process.poll() is None and not stop:
            time.sleep(0.05)
        if process.poll() is None:
            _end(process, stop)
    seconds = time.monotonic() - begin
    code = process.returncode
    if code == 0 and is_finished(folder):
        return Ended(0, "", seconds)
    fresh = _stamp(folder) != earlier
    return Ended(*_explain(code, folder if fresh else None, log), seconds)


# -- how it ended ------------------------------------------------------------------------------------


def _stamp(folder: Path) -> tuple[int, int] | None:
    """What tells this run's status.json from one that an earlier run left."""
    try:
        found = (folder / STATUS_FILE).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _explain(code: int, folder: Path | None, log: Path) -> tuple[int, str]:
    """Return exit code and reason of a run that is not done, in the run's own words if it has any.

    torchrun itself leaves with 1 whatever a rank's exit code was, but writes that into the log.
    """
    with suppress(OSError):
        text = log.read_text(encoding="utf-8", errors="replace")
        status = read_status(folder) if folder else None
        own = re.findall(r"^\s*exitcode\s*: (-?\d+)", text, re.MULTILINE)
        code = int(own[-1]) if own else code
        if status is not None:
            code = status.exit_code or code
        return code, (status and status.reason) or last_error(text)
    return code, "its log cannot be read"


def last_error(text: str) -> str:
    """Return the line of a log that says best why it ended: the program's own, else an exception."""
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


# -- ending it early ---------------------------------------------------------------------------------


def _end(process: subprocess.Popen[bytes], stop: Stop) -> None:
    """End torchrun and all its ranks: asked first, then killed."""
    family = _descendants(process.pid)  # ranks have sessions of their own: torchrun's does not do
    _signal_group(process.pid, signal.SIGTERM)
    until = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < until and stop.times < 2:
        time.sleep(0.05)
        family |= _descendants(process.pid)
    for one in (process.pid, *family):
        _signal_group(one, signal.SIGKILL)
    process.wait()


def _signal_group(leader: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def _descendants(process: int) -> set[int]:
    """The processes that this one has started, and those that these have."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError, ValueError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    waiting = [process]
    while waiting:
        new = children.get(waiting.pop(), [])
        found.update(new)
        waiting += new
    return found
