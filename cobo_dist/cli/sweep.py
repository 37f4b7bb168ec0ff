"""`python -m cobo_dist.sweep`: a grid of trainings, and the best setting of each method."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from cobo_dist.errors import EXIT_DONE, EXIT_FAILED, EXIT_REFUSED, ConfigError
from cobo_dist.sweeps.axes import read_axes
from cobo_dist.sweeps.grid import expand
from cobo_dist.sweeps.runner import open_sweep, print_dry_run, run_one, run_sweep

USAGE = (
    "python -m cobo_dist.sweep [--config FILE.yaml ...] [--ranks R] [--out DIR] "
    "[--dry-run | --only K | --tables] [key.path=value[,value...] ...]"
)
ABOUT = """\
Run a grid of trainings one after another, each by torchrun in its own folder.
key=v1,v2 is an axis, key=v a setting of all runs; commas inside brackets or quotes belong to the
value; seed means run.seed. Several config files are an axis too. A key that the algorithm (or task)
of a run does not have is left out there, and runs that are then equal are run once."""
EPILOG = """\
Finished runs are skipped, so the same command continues an interrupted sweep. A run that fails is
reported, and the sweep continues with the next one.

With an axis other than seed, algorithm.name and task.name, clients are evaluated on validation data
too (run.eval_splits=[validation,test], unless you set it), and for each method the setting with the
best mean over seeds of the last validation scores is chosen. Test scores are only shown.

written into --out:
  NAME/                  a run folder for each run, for python -m cobo_dist.report
  logs/NAME.log          the output of the run
  sweep.csv, sweep.md    a row for each run; a row for each setting, and the chosen settings
  best/METHOD.yaml       the chosen setting of each method, for --config

On a cluster each run can be a separate job (slurm/sweep.sbatch): --only K runs the K-th run in the list
of --dry-run and writes no tables; --tables writes the tables of the finished runs.

exit codes: 0 all done; 1 a run failed; 2 refused before anything started, with one line why;
75 with --only: stopped by a signal with a checkpoint saved; 130, 143 ended by Ctrl-C, SIGTERM

examples:
  python -m cobo_dist.sweep algorithm.name=local,cobo,oracle seed=0,1,2
  python -m cobo_dist.sweep algorithm.name=local,cobo optimizer.lr=0.05,0.1,0.2 \\
      algorithm.rho=0.05,0.2 seed=0,1,2 --ranks 2 --out runs/tuning --dry-run
  python -m cobo_dist.sweep --config configs/*.yaml --out runs/all seed=0,1,2
  python -m cobo_dist.report runs/all/*-s* --out report
"""
_SIZE_VARIABLES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sweep of the command line; return the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        parsed = _parse(arguments)
        if parsed is None:
            return EXIT_DONE
        _refuse_launcher()
        axes = read_axes(parsed.settings)
        runs = expand(parsed.config, axes)
        repeated = [argument for argument in arguments if argument != "--tables"]
        command = f"python -m cobo_dist.sweep {shlex.join(repeated)}".rstrip()
        sweep = open_sweep(runs, axes, Path(parsed.out).expanduser(), int(parsed.ranks), command)
        if parsed.dry_run:
            print_dry_run(sweep)
            return EXIT_DONE
        if parsed.only is not None:
            return run_one(sweep, int(parsed.only))
        return run_sweep(sweep, only_tables=parsed.tables)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_REFUSED
    except OSError as error:  # a full disk, for example: the runs done so far stay
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:  # before the first run or after the last
        return 130


def _parse(arguments: Sequence[str]) -> argparse.Namespace | None:
    """Return the arguments, with the config files in `config` and all settings in `settings`.

    None: only help was asked for.
    """
    parser = argparse.ArgumentParser(
        prog="cobo_dist.sweep",
        usage=USAGE,
        description=ABOUT,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
        add_help=False,
    )
    add = parser.add_argument
    add(
        "--config",
        nargs="+",
        action="extend",
        metavar="FILE.yaml",
        default=[],
        help="configs, as for train",
    )
    add(
        "--set",
        nargs="+",
        action="extend",
        metavar="KEY=VALUE",
        default=[],
        help="settings; --set may be left out",
    )
    add("--ranks", metavar="R", default="1", help="ranks of each run, on this host (default 1)")
    add("--out", metavar="DIR", default="runs/sweep", help="output folder (default runs/sweep)")
    add("--dry-run", action="store_true", help="print the runs, and which would be skipped")
    add("--only", metavar="K", help="run only the K-th run; other jobs may run others")
    add("--tables", action="store_true", help="start no run; write the tables of finished runs")
    add("-h", "--help", action="store_true", help="show this text and exit")
    try:
        known, rest = parser.parse_known_args(arguments)
    except (argparse.ArgumentError, SystemExit) as error:
        reason = str(error) if isinstance(error, argparse.ArgumentError) else "not understood"
        raise ConfigError(f"arguments: {reason}; usage: {USAGE}") from None
    if known.help:
        print(parser.format_help())
        return None
    if not known.ranks.isdecimal() or int(known.ranks) < 1:
        raise ConfigError(f"--ranks {known.ranks} is no number of ranks; give 1 or more")
    if known.only is not None and not known.only.isdecimal():
        raise ConfigError(
            f"--only {known.only} is no number of a run; give one that --dry-run lists"
        )
    if (known.only is not None) + known.tables + known.dry_run > 1:
        raise ConfigError("--dry-run, --only and --tables exclude each other; give one of them")
    if not known.out:
        raise ConfigError("--out is empty; give a folder, or leave it out for runs/sweep")
    # `--config F key=value` reads as two files: an argument with a = that is no file is a setting.
    files = [one for one in known.config if "=" not in one or Path(one).exists()]
    settings = [one for one in known.config if one not in files]
    place = {text: number for number, text in enumerate(arguments)}
    known.settings = sorted([*settings, *known.set, *rest], key=lambda text: place.get(text, 0))
    known.config = files
    _refuse_repeated(files)
    return known


def _refuse_repeated(files: Sequence[str]) -> None:
    seen: set[Path] = set()
    for file in files:
        if Path(file).resolve() in seen:
            raise ConfigError(f"--config {file} is given twice; give every file once")
        seen.add(Path(file).resolve())


def _refuse_launcher() -> None:
    """A sweep starts torchrun itself: under a launcher, every rank would start all runs."""
    for name in _SIZE_VARIABLES:
        if os.environ.get(name, "1") not in ("", "1"):
            raise ConfigError(
                f"{name}={os.environ[name]}: the sweep was started on several ranks; start it with "
                "plain python, and give the ranks of each run as --ranks R"
            )
