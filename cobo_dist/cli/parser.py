"""What the commands share: reading the command line, and ending with one line on an error."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
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


COLUMNS = 110
"""Width of help texts, the same on every terminal."""


class CommandParser(argparse.ArgumentParser):
    """Parser of `python -m cobo_dist.COMMAND`, which refuses wrong options in one line.

    `--help` shows the usage, `about`, the options and `epilog`, and where the command takes the keys of a run
    (`takes_keys`) the sections of the config. `--help all` shows `more` and all keys as well, `--help TOPIC`
    a section or key.
    """

    def __init__(
        self,
        command: str,
        about: str,
        epilog: str,
        usage: str,
        more: str = "",
        takes_keys: bool = False,
    ) -> None:
        prog = program(command)
        super().__init__(
            prog=prog,
            usage=f"{prog} {usage}",
            description=about,
            formatter_class=partial(
                argparse.RawDescriptionHelpFormatter, max_help_position=32, width=COLUMNS
            ),
            allow_abbrev=False,
            add_help=False,
        )
        self.closing, self.more, self.takes_keys = epilog, more, takes_keys
        topics = "a section or key of the config, or all" if takes_keys else "all"
        shown = f"show this text, or more: {topics}" if takes_keys or more else "show this text"
        self.add_argument("-h", "--help", nargs="?", const="", metavar="TOPIC", help=shown)

    def read(self, argv: Sequence[str] | None, rank: int = 0) -> argparse.Namespace | None:
        """Return the options, and all other arguments as `settings`; None once rank 0 has shown the help.

        Raises:
            ConfigError: an option lacks its value, or has none to take; there is no such topic of help.
        """
        options, settings = self.parse_known_args(sys.argv[1:] if argv is None else argv)
        if options.help is not None:
            files = options.config if self.takes_keys else None
            file = files[0] if isinstance(files, list) and files else files or None
            text = self.help_about(options.help, file, settings)
            if rank == 0:
                print(text)
            return None
        options.settings = settings
        return options

    def help_about(self, topic: str, file: str | None = None, settings: Sequence[str] = ()) -> str:
        """Return the text of `--help TOPIC`. It knows the plug-ins of the config file and the settings.

        Raises:
            ConfigError: the config has no such section or key.
        """
        everything = topic == "all"
        parts = [self.format_help().rstrip(), self.more if everything else ""]
        if self.takes_keys:
            # The config takes a while to import.
            from cobo_dist.config.help import describe_keys, describe_sections, describe_topic
            from cobo_dist.config.loading import load_plugins_for

            note = ""
            try:
                load_plugins_for(file, [topic, *settings] if "=" in topic else settings)
            except ConfigError as error:  # help is for a command line that does not work, too
                if file is None or os.path.exists(file):
                    note = f"not described here: {error}"

            # `--help run.seed=3` is about a key, `--help ranks=4` comes from a command line as it was.
            key = topic.partition("=")[0]
            if topic and not everything and ("=" not in topic or "." in key):
                return "\n\n".join(part for part in (describe_topic(topic, note), note) if part)
            sections = f"sections of the config, for --help SECTION:\n{describe_sections()}"
            parts.append(f"keys:\n\n{describe_keys()}" if everything else sections)
            parts.append(note)
        return "\n\n".join(part for part in (*parts, self.closing) if part)

    def paths(self, options: argparse.Namespace) -> list[Path]:
        """Return the arguments that are no options, as paths.

        Raises:
            ConfigError: an unknown option.
        """
        for one in options.settings:
            if one.startswith("-"):
                self.error(f"{one} is no option")
        return [Path(one).expanduser() for one in options.settings]

    def error(self, message: str) -> NoReturn:
        """Refuse, where argparse would print its usage and exit."""
        usage = " ".join((self.usage or "").split())
        raise ConfigError(f"arguments: {message}; usage: {usage}")


def settings_parser(
    command: str,
    about: str,
    epilog: str,
    usage: str = "[--config FILE.yaml] [key.path=value ...]",
    more: str = "",
) -> CommandParser:
    """Return the parser of a command that takes one run's config and settings."""
    parser = CommandParser(command, about, epilog, usage, more, takes_keys=True)
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
