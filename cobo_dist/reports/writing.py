"""Where the report is written: the folder, and CSV files whose numbers read back unchanged."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from cobo_dist.errors import ConfigError

_LONGEST = 90  # letters; file systems take 255 bytes with all that is added


def make_folder(path: Path) -> Path:
    """Create a folder for the report. Raises `ConfigError` where that is impossible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ConfigError(f"{path} is a file, not a folder; give another --out") from None
    except OSError as error:
        reason = error.strerror
        raise ConfigError(f"{path} cannot be created ({reason}); give another --out") from None
    return path


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Write rows under a header. Floats keep all their digits; None is an empty field."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    return path


def slug(text: str) -> str:
    """A label as part of a file name: `cobo (rho=0.1)` -> `cobo_rho=0.1`.

    A long one is cut, and ends in letters that keep it apart from others that begin alike.
    """
    name = re.sub(r"[^A-Za-z0-9._=-]+", "_", text).strip("_.")
    if len(name) <= _LONGEST:
        return name
    return f"{name[:_LONGEST]}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
