"""Imports matplotlib whatever `MPLBACKEND` says: Jupyter sets it to a backend that may not be installed.

Figures draw on a canvas of their own (`style.canvas`) and need no backend. The package imports this module
before any other that imports matplotlib.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress

from cobo_dist.errors import ConfigError


class _UnreadConfigs(logging.Filter):
    """Keeps what matplotlib logs on loading, such as the name of a matplotlibrc that it cannot decode."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        self.seen.append(record.getMessage())
        return False


def _import_matplotlib() -> None:
    wanted = os.environ.pop(
        "MPLBACKEND", None
    )  # matplotlib refuses to be imported with an unknown one
    unread = _UnreadConfigs()
    logging.getLogger("matplotlib").addFilter(unread)
    try:
        import matplotlib
    except UnicodeDecodeError as error:
        reason = (" ".join(unread.seen) or str(error)).rstrip(".")
        raise ConfigError(
            f"matplotlib cannot be loaded: {reason}; save the file as UTF-8, or rename it"
        ) from None
    finally:
        logging.getLogger("matplotlib").removeFilter(unread)

    if wanted is not None:
        os.environ["MPLBACKEND"] = wanted
        with suppress(ValueError):  # a notebook goes on with its own backend, where there is one
            matplotlib.rcParams["backend"] = wanted


_import_matplotlib()
