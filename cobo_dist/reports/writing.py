"""Output folders, file names, and CSV files whose numbers read back unchanged."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pandas as pd

from cobo_dist.errors import ConfigError
from cobo_dist.storage.files import replace_text

_USUAL_LABEL = re.compile(r"[A-Za-z0-9_=-]*( \([A-Za-z0-9._=-]+(, [A-Za-z0-9._=-]+)*\))?")
_MAX_SLUG_LETTERS = 90  # file systems take 255 bytes, with all that is added


def make_folder(path: Path) -> Path:
    """Create a folder for the report. Raises `ConfigError` if that is impossible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ConfigError(f"{path} is a file, not a folder; give another --out") from None
    except OSError as error:
        reason = error.strerror
        raise ConfigError(f"{path} cannot be created ({reason}); give another --out") from None
    return path


def write_csv(path: Path, frame: pd.DataFrame) -> Path:
    """Write a frame without its index. Floats keep all their digits.

    NaN is written as `nan`: a run that diverged. A number that does not exist is the empty text in the
    frame and an empty field in the file.
    """
    return replace_text(path, frame.to_csv(index=False, na_rep="nan", lineterminator="\n"))


def slug(text: str) -> str:
    """Return a label as part of a file name.

    A long one is cut. Such a name, and one of a label with other characters than usual, ends in a digest,
    so that two labels never share a file.

    >>> slug("cobo (rho=0.1, gamma=2)")
    'cobo_rho=0.1_gamma=2'
    >>> slug("a+b") == slug("a:b")
    False
    """
    name = re.sub(r"[^A-Za-z0-9._=-]+", "_", text).strip("_.")
    if name and len(name) <= _MAX_SLUG_LETTERS and _USUAL_LABEL.fullmatch(text):
        return name
    return f"{name[:_MAX_SLUG_LETTERS]}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
