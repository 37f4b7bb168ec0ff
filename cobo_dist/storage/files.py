"""Opens files of a run folder or checkpoint, only regular ones of bounded size; replaces and removes files.

Another user or a broken copy may have left anything there. A pipe would block for ever, a symbolic link
would lead out of the folder, and a sparse file of 1 TB would take all memory.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cobo_dist.formatting import human_bytes

MAX_RECORD_BYTES = 1 << 30
"""Size of the largest JSON file that is read; summary.json of a million clients has about 0.1 GB."""
MAX_CONFIG_BYTES = 1 << 20
MAX_METRICS_BYTES = 1 << 34
"""Size of the largest metrics.jsonl that a sweep reads, or of the part that a resumed run copies."""

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFDIR: "a folder",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a symbolic link",
}


def kind_of(mode: int) -> str:
    """Return in words what a mode stands for; empty for a regular file.

    >>> kind_of(stat.S_IFIFO | 0o644)
    'a pipe'
    """
    return "" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no regular file")


def open_file(path: Path, append: bool = False, limit: int | None = None) -> BinaryIO:
    """Open a file to read it, or to append to it; it is never truncated.

    Args:
        path: the file. Its last part is not followed if it is a symbolic link.
        append: open it for appending, and create it if it does not exist.
        limit: the most bytes that it may have.

    Raises:
        OSError: it cannot be opened, is no regular file, or is too large; `strerror` says which.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT if append else os.O_RDONLY
    try:
        # Without O_NONBLOCK, to open a pipe waits for its other end.
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise _refused(path, kind_of(path.lstat().st_mode)) from None
        raise
    try:
        found = os.fstat(handle)
        if kind := kind_of(found.st_mode):
            raise _refused(path, kind)
        if limit is not None and found.st_size > limit:
            raise OSError(
                errno.EFBIG,
                f"it has {human_bytes(found.st_size)}, and at most {human_bytes(limit)} are read",
                str(path),
            )
        return os.fdopen(handle, "ab" if append else "rb")
    except OSError:
        os.close(handle)
        raise


def _refused(path: Path, kind: str) -> OSError:
    return OSError(errno.EINVAL, f"it is {kind}, not a regular file", str(path))


def read_file(path: Path, limit: int = MAX_RECORD_BYTES) -> bytes:
    """Return a file's content.

    Raises:
        OSError: as `open_file`.
    """
    with open_file(path, limit=limit) as file:
        return file.read()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file to write; at the end it gets the name `path`, whatever had that name before.

    A link of that name is replaced and not followed, and a pipe is not opened. If the body fails, `path`
    is as it was.

    Raises:
        OSError: the file system refused, or `path` is a folder.
    """
    draft = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with draft.open("xb") as file:  # exclusive: follows no link
            yield file
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def replace_text(path: Path, text: str) -> Path:
    """Write a text file, as `replacing`; return its path."""
    with replacing(path) as file:
        file.write(text.encode())
    return path


def remove_tree(folder: Path) -> None:
    """Remove a folder with all that is in it, however deep; links in it are removed, not followed.

    Raises:
        OSError: the file system refused.
    """
    try:
        shutil.rmtree(folder)
    except RecursionError:  # deeper than Python's stack, and perhaps than the longest path
        _remove_deep(folder)


def _remove_deep(folder: Path) -> None:
    """Remove a folder by moving folders of the second level up to the first, until there is none."""
    prefix, moved = f".doomed.{secrets.token_hex(4)}.", 0
    while names := os.listdir(folder):
        for one in (folder / name for name in names):
            if one.is_symlink() or not one.is_dir():
                one.unlink()
                continue
            for inner in (one / name for name in os.listdir(one)):
                if inner.is_symlink() or not inner.is_dir():
                    inner.unlink()
                else:
                    moved += 1
                    inner.rename(folder / f"{prefix}{moved}")
            one.rmdir()
    folder.rmdir()
