"""The libraries of the extra `lm`, imported only by language runs because they take seconds."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from cobo_dist.errors import ConfigError


def library(name: str, needed_by: str = "task.name=language", extra: str = "lm") -> Any:
    """Return an optional library, of the package's extra of that name.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        found = import_module(name)
    except ImportError as error:
        missing = error.name or name
        raise ConfigError(
            f"{needed_by} needs the package {missing}, which is not installed; "
            f"pip install 'cobo_dist[{extra}]'"
        ) from None
    if name == "transformers":
        found.logging.set_verbosity_error()
        found.logging.disable_progress_bar()
    return found


def reason_of(error: BaseException) -> str:
    """Return an error of a library as part of one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".;:") if lines else type(error).__name__
