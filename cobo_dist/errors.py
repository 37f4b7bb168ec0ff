"""Exit codes, and the two errors that end a run with one line for the user."""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_REFUSED = 2
EXIT_STOPPED = 75  # sysexits' EX_TEMPFAIL: try again
EXIT_BY_SIGNAL = 128  # plus the signal's number: ended by it without a checkpoint, as shells count

RANK_0_FIRST_SECONDS = 3.0
"""How long other ranks wait before they exit: when one exits, launchers end all, and rank 0 prints why."""


def _one_line(message: str) -> str:
    """Join lines: a value in the message may hold line breaks."""
    return " ".join(message.splitlines())


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
