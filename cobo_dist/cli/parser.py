"""The command line that the doors over one run's settings share."""

from __future__ import annotations

import argparse


def settings_parser(
    door: str,
    about: str,
    epilog: str,
    usage: str = "python -m {} [--config FILE.yaml] [key.path=value ...]",
) -> argparse.ArgumentParser:
    """Return the parser of `--config FILE.yaml` and `key=value` for `python -m cobo_dist.DOOR`.

    In `usage`, {} stands for the door's module.
    """
    module = f"cobo_dist.{door}"
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        usage=usage.format(module),
        description=about,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="the config of the run")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the run")
    return parser
