"""Arrays from the npz files of users."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobo_dist.errors import ConfigError
from cobo_dist.host import free_memory


def read_arrays(
    path: Path, source: str, remedy: str, wanted: tuple[str, ...] = ()
) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Return the wanted arrays of an npz (by default all) that it has, and the names of all its arrays.

    Raises:
        ConfigError: `source` (the file as the user named it) does not exist (the message ends with
            `remedy`), or is no npz.
    """
    try:
        if not path.is_file():
            raise ConfigError(f"{source} is no file; {remedy}")
        if not zipfile.is_zipfile(path):
            raise ValueError(_what_else(path))
        with np.load(path, allow_pickle=False) as file:
            found = list(file.files)
            names = [name for name in wanted or found if name in found]
            _refuse_too_large(file, names, source)
            return {name: np.asarray(file[name]) for name in names}, found
    except (
        ValueError,
        OSError,
        EOFError,
        KeyError,
        AttributeError,
        MemoryError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "pickle" in reason:  # numpy advises to load them unsafely
            reason = "it holds Python objects, which may run code; convert them to numbers or text"
        raise ConfigError(
            f"{source} is no readable npz: {reason}; write it anew with numpy.savez"
        ) from None


def _what_else(path: Path) -> str:
    """Say what a file that is no archive is."""
    with path.open("rb") as file:
        bare = file.read(6) == b"\x93NUMPY"
    return "it holds one bare array" if bare else "it is no archive of arrays, or is cut off"


def _refuse_too_large(file: Any, names: list[str], source: str) -> None:
    """Refuse arrays that do not fit into memory, by the sizes in the archive: zeros compress well."""
    members = {info.filename.removesuffix(".npy"): info.file_size for info in file.zip.infolist()}
    size, free = sum(members.get(name, 0) for name in names), free_memory()
    if size > free:
        raise ConfigError(
            f"{source} unpacks to {size / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB of memory are free; "
            f"use a "
            "smaller file, or a machine with more memory"
        )
