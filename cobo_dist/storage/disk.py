"""A file system that says no, in one line for people."""

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

FULL = (errno.ENOSPC, errno.EDQUOT)


def explain(error: OSError, path: Path, needed: int, remedy: str) -> str:
    """Return one line on why `path`, of about `needed` bytes, could not be written.

    `remedy` is what to do where there is no room; other errors have their own words.
    """
    if error.errno not in FULL:
        return f"{path} cannot be written: {error.strerror or error}"
    nearest = next(place for place in (path, *path.parents) if place.exists())
    free = shutil.disk_usage(nearest).free
    return f"{path} needs {human_bytes(needed)} and {human_bytes(free)} are free; {remedy}"


@contextmanager
def writing(path: Path, needed: int) -> Iterator[None]:
    """Write `path`, of about `needed` bytes, in the body.

    Raises:
        RunFailure: the file system says no; on this rank, whose disk may be its host's own.
    """
    remedy = "make room; the same command with run.resume=auto goes on from the last checkpoint"
    try:
        yield
    except OSError as error:
        raise RunFailure(explain(error, path, needed, remedy), here_only=True) from error
    except SafetensorError as error:
        # It passes on what the system said as text only.
        told = re.search(r"os error (\d+)", str(error))
        number = int(told[1]) if told else 0
        known = OSError(number, os.strerror(number) if told else str(error))
        raise RunFailure(explain(known, path, needed, remedy), here_only=True) from error
