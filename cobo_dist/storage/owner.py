"""The owner of a run folder: rank 0 of one run, the only process that may write into it.

A start that takes the folder creates the record of the next epoch. That creation is exclusive, on NFS too:
a file of a unique name is linked to the record's name. The highest epoch counts. Its owner removes the
records before it, so an earlier owner that wakes up finds its own record gone, and writes nothing more.
"""

from __future__ import annotations

import errno
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cobo_dist.errors import ConfigError, RunFailure
from cobo_dist.storage.owner_record import (
    HEARTBEAT_SECONDS,
    Found,
    host_name,
    latest,
    machine_id,
    record_path,
    start_ticks,
)
from cobo_dist.storage.schema import OWNER_DIR, Owner

_WRITING_SECONDS = 2.0
_RETRY_SECONDS, _RETRY_PAUSE_SECONDS = 5.0, 0.1
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


class TakenOver(RunFailure):
    """Another run has this run's folder now, so this one must not write into it."""


class Ownership:
    """This run's hold on its folder. Rank 0 acquires and releases it; all ranks can check it."""

    def __init__(self, folder: Path, owner: Owner, is_rank_0: bool) -> None:
        """Hold the folder as `owner`.

        Without a shared disk, ranks but 0 do not see its record, and may see one that an earlier run left.
        """
        self.folder, self.owner, self.is_rank_0 = folder, owner, is_rank_0
        self._has_seen_record = is_rank_0
        self._heartbeat: _Heartbeat | None = None

    @classmethod
    def acquire(cls, folder: Path, seen: int, job: str = "") -> Ownership:
        """Take the folder, whose latest epoch was `seen` when its owner was found to be gone.

        Raises:
            ConfigError: another start took it since; the message names it.
            OSError: the file system refused.
        """
        epoch, pid = seen + 1, os.getpid()
        owner = Owner(
            epoch=epoch,
            host=host_name(),
            pid=pid,
            job=job,
            since=_local_time(),
            ended=None,
            machine=machine_id(),
            started=(start_ticks(pid) or ("", None))[1],
            token=secrets.token_hex(8),
        )
        target = record_path(folder, epoch)
        target.parent.mkdir(parents=True, exist_ok=True)
        won = _create(target, (owner.to_json(indent=2) + "\n").encode(), owner.token)
        found = latest(folder) if won else _named(folder)
        if not won or found is None or found.epoch != epoch:
            if won:  # of an epoch that has passed
                target.unlink(missing_ok=True)
            raise ConfigError(
                f"run.dir={folder} was taken by {found or 'another run'} while this run was starting; "
                "wait until it has ended, or name another run.dir"
            )
        for other in target.parent.iterdir():
            if other != target:
                with suppress(OSError):
                    other.unlink()
        self = cls(folder, owner, is_rank_0=True)
        self._heartbeat = _Heartbeat(target)
        self._heartbeat.start()
        return self

    def taken_over(self) -> TakenOver | None:
        """Return an error that names the new owner; None while this run still has the folder.

        An error of the file system may pass, so it counts only after `_RETRY_SECONDS`.
        """
        mine, until = self.owner, time.monotonic() + _RETRY_SECONDS
        while True:
            try:
                found = latest(self.folder)
                break
            except OSError as error:
                if time.monotonic() > until:
                    return TakenOver(
                        f"{self.folder / OWNER_DIR} cannot be read: {error.strerror}; another run may have "
                        "the folder, so this run has ended and writes nothing more"
                    )
                time.sleep(_RETRY_PAUSE_SECONDS)
        token = found.owner.token if found and found.owner else mine.token
        if found is not None and (found.epoch, token) == (mine.epoch, mine.token):
            self._has_seen_record = True
            return None
        is_older = found is None or found.epoch < mine.epoch
        if not self._has_seen_record or (is_older and not self.is_rank_0):
            return None  # another disk than rank 0's, or one that shows changes late
        if found is None or found.epoch < mine.epoch:
            return TakenOver(
                f"the run folder {self.folder} was removed or replaced while this run was using it; "
                "this run has ended and writes nothing more"
            )
        return TakenOver(
            f"this run folder was taken over by {found}; this run ({self.folder}, process "
            f"{self.owner.pid} on {self.owner.host}) has ended and writes nothing more into it"
        )

    def check(self) -> None:
        """Check that this run still has the folder.

        Raises:
            TakenOver: it has not.
        """
        if (lost := self.taken_over()) is not None:
            raise lost

    def release(self) -> None:
        """Give the folder back: the record says that this run has ended. Only rank 0 does so."""
        if self._heartbeat is None:
            return
        self._heartbeat.stop()
        self._heartbeat = None
        ended = self.owner.model_copy(update={"ended": _local_time()})
        target = record_path(self.folder, self.owner.epoch)
        draft = target.with_name(f"{target.stem}.{self.owner.token}.part")
        with suppress(OSError):  # a full disk: then the end of this process tells the same
            if self.taken_over() is None:
                draft.write_text(ended.to_json(indent=2) + "\n", encoding="utf-8")
                draft.replace(target)


def _named(folder: Path) -> Found | None:
    """Return the latest record, once its writer, which had to create it empty, has written its name."""
    until = time.monotonic() + _WRITING_SECONDS
    while (found := latest(folder)) is not None and found.owner is None:
        if time.monotonic() > until:
            break
        time.sleep(0.01)
    return found


def _local_time() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _create(target: Path, content: bytes, token: str) -> bool:
    """Create a file that must not exist yet; return whether this call did so."""
    draft = target.with_name(f"{target.stem}.{token}.part")
    _write_new(draft, content)
    try:
        with suppress(FileExistsError):  # NFS may say so of a link that it made
            os.link(draft, target)
        return draft.stat().st_nlink == 2
    except FileNotFoundError:
        return False  # an owner of a later epoch removed the draft
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _unless_exists(lambda: _write_new(target, content))
    finally:
        draft.unlink(missing_ok=True)


def _unless_exists(create: Callable[[], None]) -> bool:
    try:
        create()
    except FileExistsError:
        return False
    return True


def _write_new(path: Path, content: bytes) -> None:
    """Write a file that does not exist yet through to the disk."""
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


class _Heartbeat(threading.Thread):
    """Renews the modification time of this run's record, by the clock of the file system."""

    def __init__(self, record: Path) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._record, self._ended = record, threading.Event()

    def run(self) -> None:
        """Renew it until `stop`. Signals stay with the main thread, whose waits they must interrupt."""
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while not self._ended.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):
                os.utime(self._record)

    def stop(self) -> None:
        """End the thread; a file system that hangs may delay it, but not the caller."""
        self._ended.set()
        self.join(1.0)
