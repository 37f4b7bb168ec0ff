"""The records of a run folder's owners: who had it last, and whether that process may still write into it.

    owner/000003.json       who has it: host, process, job, since when; its modification time is the heartbeat

The number is the epoch, and the highest one counts. `storage/owner.py` writes the records.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cobo_dist.errors import ConfigError
from cobo_dist.storage.files import MAX_CONFIG_BYTES, open_file
from cobo_dist.storage.reading import SchemaError, parse_record
from cobo_dist.storage.schema import OWNER_DIR, Owner

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
"""Without a heartbeat for this long, an owner on another machine counts as gone."""
UNREADABLE_STALE_SECONDS = 3 * HEARTBEAT_SECONDS
"""The same for a record that cannot be read. No owner writes one, so it is hardly waited for."""

_NAME = re.compile(r"(\d{6,})\.json")


@dataclass(frozen=True)
class Found:
    """The record of the highest epoch in a run folder; `owner` is None where it cannot be read."""

    epoch: int
    owner: Owner | None
    heartbeat: float  # by the clock of the file system

    def __str__(self) -> str:
        if self.owner is None:
            return f"a process that its record {OWNER_DIR}/{self.epoch:06d}.json does not name"
        one = self.owner
        job = f" (job {one.job})" if one.job else ""
        return f"process {one.pid} on {one.host}{job}, since {one.since}"


def record_path(folder: Path, epoch: int) -> Path:
    """Return the path of the record of an epoch."""
    return folder / OWNER_DIR / f"{epoch:06d}.json"


def latest(folder: Path) -> Found | None:
    """Return the record of the highest epoch; None if the run folder never had an owner.

    Raises:
        OSError: `owner/` is there and cannot be listed.
    """
    while True:
        try:
            names = [] if (folder / OWNER_DIR).is_symlink() else os.listdir(folder / OWNER_DIR)
        except (FileNotFoundError, NotADirectoryError):
            return None
        epoch = max((int(name[1]) for name in map(_NAME.fullmatch, names) if name), default=0)
        if not epoch:
            return None
        try:
            with open_file(record_path(folder, epoch), limit=MAX_CONFIG_BYTES) as file:
                heartbeat, content = os.fstat(file.fileno()).st_mtime, file.read()
            return Found(epoch, parse_record(content, Owner), heartbeat)
        except FileNotFoundError:
            continue  # the next owner removed it just now
        except SchemaError:
            return Found(epoch, None, heartbeat)
        except OSError:
            return Found(epoch, None, 0.0)


def _latest_at_start(folder: Path) -> Found | None:
    """Return the latest record, as `latest`.

    Raises:
        ConfigError: `owner/` cannot be listed.
    """
    try:
        return latest(folder)
    except OSError as error:
        raise ConfigError(
            f"run.dir={folder}: {OWNER_DIR} cannot be read: {error.strerror}; name another run.dir"
        ) from None


# -- is it alive? ------------------------------------------------------------------------------------


def host_name() -> str:
    """Return the name of this host."""
    return os.uname().nodename


def machine_id() -> str:
    """Return what tells whether a pid of a record can be looked up here: this boot, and its namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return host_name()


def start_ticks(pid: int) -> tuple[str, int | None] | None:
    """Return state and start time of a process, None if there is none; the time None if it is hidden."""
    try:
        # The second field is the command's name, which may hold spaces and brackets.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return fields[0].decode(), int(fields[19])
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        return "", None
    return "", None


def _process_state(owner: Owner) -> str | None:
    """Return the state of the owner's process, which must be of this machine; None if it has ended."""
    found = start_ticks(owner.pid) if owner.pid > 0 else None
    if found is None or found[0] in ("Z", "X"):
        return None
    return None if None not in (found[1], owner.started) and found[1] != owner.started else found[0]


def is_gone(found: Found) -> bool:
    """Return whether it is certain, without a look at the heartbeat, that the owner writes no more."""
    if found.owner is None:
        return False
    if found.owner.ended is not None:
        return True
    return found.owner.machine == machine_id() and _process_state(found.owner) is None


def _seconds_left(folder: Path, found: Found) -> float:
    """Return in how many seconds the owner's last heartbeat is too old; 0 or less: it is."""
    seconds = STALE_SECONDS if found.owner is not None else UNREADABLE_STALE_SECONDS
    left = found.heartbeat + seconds - _now(folder / OWNER_DIR)
    return left if left < 2 * STALE_SECONDS else 0.0  # no heartbeat comes from the future


def _now(folder: Path) -> float:
    """Return the time by the clock of the file system: the hosts' clocks may differ."""
    probe = folder / f".clock.{secrets.token_hex(8)}.part"
    try:
        handle = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError:
        return time.time()
    try:
        return os.fstat(handle).st_mtime
    finally:
        os.close(handle)
        with suppress(OSError):
            probe.unlink()


def is_alive(folder: Path, found: Found) -> bool:
    """Return whether the owner may still write: its process lives, or its heartbeat is fresh."""
    if is_gone(found):
        return False
    if found.owner is not None and found.owner.machine == machine_id():
        return True
    return _seconds_left(folder, found) > 0


def refuse_living(folder: Path) -> None:
    """Check that no living owner has the run folder.

    Raises:
        ConfigError: one has; the message names it.
    """
    if (found := _latest_at_start(folder)) is not None and is_alive(folder, found):
        raise ConfigError(f"run.dir={folder} is in use by {found}; {_remedy(found)}")


def _remedy(found: Found) -> str:
    other = "or name another run.dir"
    if found.owner is None:
        record = f"{OWNER_DIR}/{found.epoch:06d}.json"
        return f"wait until that run has ended, or if no such run exists, remove {record}, {other}"
    one = found.owner
    if one.machine == machine_id():
        if _process_state(one) == "T":
            return f"it is suspended: end it with kill -KILL {one.pid}, {other}"
        return f"wait until it has ended, end it with kill {one.pid}, {other}"
    return f"wait until it has ended, end it with kill {one.pid} on {one.host}, {other}"


def await_verdict(folder: Path) -> int:
    """Return the number of the latest epoch, 0 for none, once it is known whether its owner is alive.

    An owner on another machine is known only by its heartbeat: this waits for the next one, and for
    `STALE_SECONDS` after the last one at most.
    """
    found = _latest_at_start(folder)
    if found is None or is_gone(found):
        return found.epoch if found else 0
    is_here = found.owner is not None and found.owner.machine == machine_id()
    left = 0.0 if is_here else _seconds_left(folder, found)
    if left > 0:
        print(
            f"run.dir={folder} was in use by {found}; waiting {left:.0f} s at most to see whether it "
            "still is",
            file=sys.stderr,
            flush=True,
        )
    until = time.monotonic() + left + 1 if left > 0 else 0.0
    while time.monotonic() < until:
        time.sleep(min(1.0, HEARTBEAT_SECONDS))
        now = _latest_at_start(folder)
        if now is None or now != found:
            return now.epoch if now else 0
    return found.epoch
