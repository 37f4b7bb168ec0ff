"""What the commands share: reading the command line, and ending with one line on an error."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from cobo_dist.errors import (
    EXIT_REFUSED,
    RANK_0_FIRST_SECONDS,
    ConfigError,
    HostConfigError,
    RunFailure,
)


def program(command: str) -> str:
    """Return how to start a command: `cobo-COMMAND` where a script is running, else `python -m ...`."""
    by_script = os.path.basename(sys.argv[0]).startswith("cobo-")
    return f"cobo-{command}" if by_script else f"python -m cobo_dist.{command}"


class CommandParser(argparse.ArgumentParser):
    """Parser of `python -m cobo_dist.COMMAND`, which refuses wrong options in one line."""

    def __init__(
        self,
        command: str,
        about: str,
        epilog: str,
        usage: str,
    ) -> None:
        prog = program(command)
        super().__init__(
            prog=prog,
            usage=f"{prog} {usage}",
            description=about,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        self.add_argument("-h", "--help", action="store_true", help="show this text and leave")

    def read(self, argv: Sequence[str] | None, rank: int = 0) -> argparse.Namespace | None:
        """Return the options, and all other arguments as `settings`; None once rank 0 has shown the help.

        Raises:
            ConfigError: an option lacks its value, or has none to take.
        """
        options, settings = self.parse_known_args(sys.argv[1:] if argv is None else argv)
        if options.help:
            if rank == 0:
                print(self.format_help())
            return None
        options.settings = settings
        return options

    def error(self, message: str) -> NoReturn:
        """Refuse, where argparse would print its usage and exit."""
        raise ConfigError(f"arguments: {message}; usage: {self.usage}")


def settings_parser(
    command: str,
    about: str,
    epilog: str,
    usage: str = "[--config FILE.yaml] [key.path=value ...]",
) -> CommandParser:
    """Return the parser of a command that takes one run's config and settings."""
    parser = CommandParser(command, about, epilog, usage)
    parser.add_argument("--config", metavar="FILE.yaml", help="the config of the run")
    return parser


def report_error(error: ConfigError | RunFailure, rank: int = 0) -> int:
    """Print an error's line and return the exit code.

    Rank 0 prints; another rank prints only what rank 0 may not know.
    """
    if isinstance(error, ConfigError):
        code, here_only = EXIT_REFUSED, isinstance(error, HostConfigError)
    else:
        code, here_only = error.code, error.here_only
    where = ""
    if rank:
        time.sleep(RANK_0_FIRST_SECONDS)
        if not here_only:
            return code
        where = f"rank {rank} on {os.uname().nodename}: "
    print(f"error: {where}{error}", file=sys.stderr, flush=True)
    return code
