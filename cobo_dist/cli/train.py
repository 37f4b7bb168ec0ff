"""The door `python -m cobo_dist.train`: train, on one process or on as many as a launcher starts."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cobo_dist import __version__
from cobo_dist.comm.startup.launch_env import read_launch
from cobo_dist.config import Config, describe_keys, load_config
from cobo_dist.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_REFUSED,
    ConfigError,
    HostConfigError,
    RunFailure,
)
from cobo_dist.training.build import run

USAGE = "python -m cobo_dist.train [--config FILE.yaml] [--show-run-dir] [key.path=value ...]"
ABOUT = """\
Train personal models of n clients that learn who should help whom (CoBo), or a baseline.
Without arguments: the quickstart, 8 clients on handwritten digits, in one process.
On several: torchrun --standalone --nproc_per_node=4 -m cobo_dist.train [the same arguments]
or, with MPI carrying the models: mpirun -n 4 python -m cobo_dist.train comm.backend=mpi [...]."""
EXITS = """\
exit codes: 0 done; 1 failed while running; 2 refused before training, with one line on standard
error; 75 stopped by SIGTERM or SIGUSR1 with a checkpoint saved. But for 2, the run folder's
status.json says which and why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says; return the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    rank = _rank(os.environ)
    try:
        parsed = _parse(arguments, rank)
        if parsed is None:
            return EXIT_DONE
        if parsed.show_run_dir:
            print(load_config(parsed.config, parsed.settings).run_dir.absolute())
            return EXIT_DONE
        launch = read_launch(os.environ)
        rank = launch.rank
        config = load_config(parsed.config, parsed.settings)
        code = run(config, launch)
        if rank == 0 and code == EXIT_DONE and config.log.figures:
            _draw(config)
        return code
    except ConfigError as refusal:
        return _end(EXIT_REFUSED, str(refusal), rank, isinstance(refusal, HostConfigError))
    except RunFailure as failure:
        return _end(EXIT_FAILED, str(failure), rank, failure.here_only)


def _rank(env: Mapping[str, str]) -> int:
    """Return the rank as far as it can be told before the launch record is read."""
    for name in ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"):
        if env.get(name, "").isdigit():
            return int(env[name])
    return 0


@dataclass(frozen=True)
class _Arguments:
    config: str | None
    settings: list[str]
    show_run_dir: bool


def _parse(arguments: Sequence[str], rank: int) -> _Arguments | None:
    """Return the arguments, or None where only help or the version was asked for."""
    parser = argparse.ArgumentParser(
        prog="cobo_dist.train",
        usage=USAGE,
        description=ABOUT,
        epilog=f"keys:\n\n{describe_keys()}\n\n{EXITS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
        add_help=False,
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="sections and keys as below")
    parser.add_argument(
        "--show-run-dir",
        action="store_true",
        help="check the config, show the run folder and leave",
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this text and leave")
    parser.add_argument("--version", action="store_true", help="show the version and leave")
    try:
        known, rest = parser.parse_known_args(arguments)
    except (argparse.ArgumentError, SystemExit) as error:
        reason = str(error) if isinstance(error, argparse.ArgumentError) else "not understood"
        raise ConfigError(f"arguments: {reason}; usage: {USAGE}") from None
    if known.help or known.version:
        if rank == 0:
            print(f"cobo_dist {__version__}" if known.version else parser.format_help())
        return None
    return _Arguments(known.config, rest, known.show_run_dir)


def _draw(config: Config) -> None:
    """Draw the run's figures in a process of its own: a plot that fails does not fail the run."""
    command = [sys.executable, "-m", "cobo_dist.report", str(config.run_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        print(f"figures     {config.run_dir / 'figures'}", flush=True)
    else:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        print(f"figures could not be drawn: {reason[0]}", file=sys.stderr)


def _end(code: int, message: str, rank: int, here_only: bool) -> int:
    """Say why the run ended: rank 0 speaks, another rank only for what rank 0 may not know."""
    if rank == 0:
        print(f"error: {message}", file=sys.stderr, flush=True)
        return code
    # A launcher ends all ranks when one leaves: let rank 0 speak first.
    time.sleep(3.0)
    if here_only:
        print(
            f"error: rank {rank} on {os.uname().nodename}: {message}", file=sys.stderr, flush=True
        )
    return code
