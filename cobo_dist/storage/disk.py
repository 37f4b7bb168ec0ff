"""Turns errors of the file system into one line that names the file, its size and the remedy."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from cobo_dist.errors import RunFailure
from cobo_dist.formatting import human_bytes

NO_SPACE_ERRORS = (errno.ENOSPC, errno.EDQUOT)
_WRONG_KIND_ERRORS = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EINVAL)
SMALL_FILE_BYTES = 4096
"""About what a file of a few lines takes on a disk."""


def explain(error: OSError, path: Path, nbytes: int, remedy: str) -> str:
    """Return one line on why `path`, of about `nbytes` bytes, could not be written.

    `remedy` says what to do about a full disk or quota; other errors have their own words.
    """
    if error.errno not in NO_SPACE_ERRORS:
        return f"{path} cannot be written: {error.strerror or error}"
    needs = f"{path} needs {human_bytes(nbytes)} and"
    if error.errno == errno.EDQUOT:  # what the disk has free does not count
        return f"{needs} your disk quota is used up (`quota -s` may show it); ask for more, or {remedy}"
    nearest = next(place for place in (path, *path.parents) if place.exists())
    free = shutil.disk_usage(nearest).free
    return f"{needs} {human_bytes(free)} are free; {remedy}"


def explain_start(error: OSError, folder: Path, nbytes: int, other: str) -> str:
    """Return one line on why a run folder could not be made ready; about `nbytes` bytes are written.

    `other` says how to do without this folder.
    """
    path = Path(error.filename or folder)
    if error.errno in NO_SPACE_ERRORS:  # nothing in the folder is wrong
        return f"run.dir={folder}: {explain(error, path, nbytes, f'make room, or {other}')}"
    if path != folder and error.errno in _WRONG_KIND_ERRORS:
        other = f"remove it, or {other}"
    return f"run.dir={folder} cannot be made ready: {path}: {error.strerror}; {other}"


@contextmanager
def disk_guard(path: Path, nbytes: int) -> Iterator[None]:
    """Guard the body, which writes `path` of about `nbytes` bytes.

    Raises:
        RunFailure: the file system refused, on this rank only: its disk may be local to the host.
    """
    remedy = "make room; the same command with run.resume=auto goes on from the last checkpoint"
    try:
        yield
    except OSError as error:
        raise RunFailure(explain(error, path, nbytes, remedy), here_only=True) from error
    except SafetensorError as error:
        # safetensors passes on the system's error as text only.
        code = re.search(r"os error (\d+)", str(error))
        number = int(code[1]) if code else 0
        known = OSError(number, os.strerror(number) if code else str(error))
        raise RunFailure(explain(known, path, nbytes, remedy), here_only=True) from error
