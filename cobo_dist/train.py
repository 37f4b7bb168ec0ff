"""The door `python -m cobo_dist.train`: train, on one process or on as many as a launcher starts."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence

from cobo_dist import __version__
from cobo_dist.comm.launch import Launch, read_launch
from cobo_dist.config import Config, describe_keys, load_config
from cobo_dist.errors import EXIT_DONE, EXIT_FAILED, EXIT_REFUSED, HostRefusal, Refusal, RunFailure
from cobo_dist.run.loop import run

USAGE = "python -m cobo_dist.train [--config FILE.yaml] [key.path=value ...]"
ABOUT = """\
Train personal models of n clients that learn who should help whom (CoBo), or a baseline.
Without arguments: the quickstart, 8 clients on handwritten digits, in one process.
On several: torchrun --standalone --nproc_per_node=4 -m cobo_dist.train [the same arguments]."""
EXITS = """\
exit codes: 0 done; 1 failed while running; 2 refused before training, with one line on standard
error. The run folder's status.json says which and why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says; return the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    launch: Launch | None = None
    try:
        launch = read_launch(os.environ)
        config = _parse(arguments)
        if config is None:
            return EXIT_DONE
        code = run(config, launch)
        if launch.rank == 0 and config.log.figures:
            _draw(config)
        return code
    except Refusal as refusal:
        return _end(EXIT_REFUSED, str(refusal), launch, isinstance(refusal, HostRefusal))
    except RunFailure as failure:
        return _end(EXIT_FAILED, str(failure), launch, False)


def _parse(arguments: Sequence[str]) -> Config | None:
    """Return the config, or None where only help or the version was asked for."""
    parser = argparse.ArgumentParser(
        prog="cobo_dist.train",
        usage=USAGE,
        description=ABOUT,
        epilog=f"keys:\n\n{describe_keys()}\n\n{EXITS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="sections and keys as below")
    parser.add_argument("--version", action="version", version=f"cobo_dist {__version__}")
    try:
        known, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise Refusal(f"{error}; usage: {USAGE}") from None
    except SystemExit as leave:
        if leave.code:
            raise Refusal(f"the arguments are not understood; usage: {USAGE}") from None
        return None
    return load_config(known.config, rest)


def _draw(config: Config) -> None:
    """Draw the run's figures in a process of its own: a plot that fails does not fail the run."""
    command = [sys.executable, "-m", "cobo_dist.report", str(config.run_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        print(f"figures     {config.run_dir / 'figures'}", flush=True)
    else:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        print(f"figures could not be drawn: {reason[0]}", file=sys.stderr)


def _end(code: int, message: str, launch: Launch | None, on_this_host: bool) -> int:
    """Say why the run ended: rank 0 speaks, the others only for what their own host lacks."""
    rank = int(os.environ.get("RANK", "0")) if launch is None and _is_number("RANK") else 0
    rank = launch.rank if launch else rank
    if rank == 0:
        print(f"error: {message}", file=sys.stderr, flush=True)
        return code
    # A launcher ends all ranks when one leaves: let rank 0 speak first.
    time.sleep(3.0)
    if on_this_host:
        host = os.uname().nodename
        print(f"error: rank {rank} on {host}: {message}", file=sys.stderr, flush=True)
    return code


def _is_number(name: str) -> bool:
    return os.environ.get(name, "").isdigit()


if __name__ == "__main__":
    sys.exit(main())
