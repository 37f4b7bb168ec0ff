"""Exit codes, and the two errors that end a run with one line for the user."""

from __future__ import annotations

import errno
import os
import re

from cobo_dist.host import open_files_limit

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_REFUSED = 2
EXIT_STOPPED = 75  # sysexits' EX_TEMPFAIL: try again
EXIT_BY_SIGNAL = 128  # plus the signal's number: ended by it without a checkpoint, as shells count

RANK_0_FIRST_SECONDS = 3.0
"""How long other ranks wait before they exit: when one exits, launchers end all, and rank 0 prints why."""


_TOO_MANY_FILES = os.strerror(errno.EMFILE)


def _one_line(message: str) -> str:
    """Join lines, since a value in the message may hold line breaks, and name the limit of open files.

    Files, sockets and libraries all report that limit in the system's words, which name no remedy.
    """
    limit = f"(`ulimit -n` is {open_files_limit():,}: raise it, or start fewer ranks)"
    # The words go on where the whole system is out of files, which is another limit.
    found = re.compile(rf"({_TOO_MANY_FILES})(?! in | \(`)", re.IGNORECASE)
    return found.sub(rf"\1 {limit}", " ".join(message.splitlines()))


def words_of(error: BaseException) -> str:
    """Return what an error says, on one line.

    >>> words_of(ValueError("many   blanks"))
    'many blanks'
    """
    return " ".join(str(error).split())


class ConfigError(Exception):
    """Refused before training: config, data, or environment. Exit code 2.

    The message is one line: what is wrong, the value, the key, the remedy.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_one_line(message))


class HostConfigError(ConfigError):
    """A refusal that may concern this host only, so that this rank must print it itself."""


class RunFailure(Exception):
    """Failed while running. Exit code 1. The message is one line, as for `ConfigError`.

    Args:
        message: the line.
        here_only: the cause is on this rank, so other ranks may not know it.
        code: the exit code.
    """

    def __init__(self, message: str, here_only: bool = False, code: int = EXIT_FAILED) -> None:
        super().__init__(_one_line(message))
        self.here_only, self.code = here_only, code
