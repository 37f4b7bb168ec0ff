"""`python -m cobo_dist.sweep`: a grid of trainings, and the best setting of each method."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from cobo_dist.cli.parser import CommandParser, report_error
from cobo_dist.errors import EXIT_DONE, EXIT_FAILED, ConfigError
from cobo_dist.sweeps.axes import read_axes
from cobo_dist.sweeps.grid import expand
from cobo_dist.sweeps.runner import open_sweep, print_dry_run, run_one, run_sweep
from cobo_dist.terminal import safe_terminal

USAGE = (
    "[--config FILE.yaml ...] [--ranks R] [--out DIR]\n           "
    "[--dry-run | --only K | --tables] [key.path=value[,value...] ...]"
)
ABOUT = """\
Run a grid of trainings one after another, each by torchrun in its own folder.
key=v1,v2 is an axis, key=v a setting of all runs; commas inside brackets or quotes belong to the value.
seed means run.seed. A key that the algorithm or task of a run lacks is left out; equal runs are run once."""
MORE = """\
Finished runs are skipped, so the same command continues an interrupted sweep. A run that fails is
reported, and the sweep continues with the next one.

With an axis of settings, clients are evaluated on validation data too (run.eval_splits=[validation,test],
unless you set it), and for each method the setting with the best mean over seeds of the last validation
scores is chosen. Test scores are only shown. Axes of the seed, of algorithm.name and of the problem (the
task, its source, partition and change, data.seed) are compared and never chosen among.

written into --out:
  NAME/                  a run folder for each run, for python -m cobo_dist.report
  logs/NAME.log          the output of the run
  sweep.csv, sweep.md    a row for each run; a row for each setting, and the chosen settings
  best/METHOD.yaml       the chosen setting of each method, for --config

On a cluster each run can be a separate job (slurm/sweep.sbatch): --only K runs the K-th run in the list
of --dry-run and writes no tables; --tables writes the tables of the finished runs."""
EPILOG = """\
examples:
  python -m cobo_dist.sweep algorithm.name=local,cobo,oracle seed=0,1,2
  python -m cobo_dist.sweep algorithm.name=local,cobo optimizer.lr=0.05,0.1,0.2 --out runs/tuning --dry-run
  python -m cobo_dist.sweep --config configs/*.yaml --out runs/all seed=0,1,2

exit codes: 0 all done; 1 a run failed; 2 refused before anything started, with one line why;
75 with --only: stopped by a signal with a checkpoint saved; 130, 143 ended by Ctrl-C, SIGTERM"""
_SIZE_VARIABLES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


@safe_terminal()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the sweep of the command line; return the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        options = _read(arguments)
        if options is None:
            return EXIT_DONE
        _refuse_launcher()
        axes = read_axes(options.settings)
        runs = expand(options.config, axes)
        repeated = [argument for argument in arguments if argument != "--tables"]
        command = f"python -m cobo_dist.sweep {shlex.join(repeated)}".rstrip()
        sweep = open_sweep(runs, axes, options.out, options.ranks, command)
        if options.dry_run:
            print_dry_run(sweep)
            return EXIT_DONE
        if options.only is not None:
            return run_one(sweep, options.only)
        return run_sweep(sweep, only_tables=options.tables)
    except ConfigError as refusal:
        return report_error(refusal)
    except OSError as error:  # a full disk, say: the runs done so far stay
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:  # before the first run or after the last
        return 130


def _read(arguments: Sequence[str]) -> argparse.Namespace | None:
    """Return the options, checked, or None where only help was asked for."""
    parser = CommandParser("sweep", ABOUT, EPILOG, USAGE, MORE, takes_keys=True)
    add = parser.add_argument
    add(
        "--config",
        nargs="+",
        action="extend",
        metavar="FILE",
        default=[],
        help="as for train; several are an axis",
    )
    add(
        "--set",
        nargs="+",
        action="extend",
        metavar="K=V",
        default=[],
        help="the same without --set",
    )
    add("--ranks", metavar="R", default="1", help="ranks of each run, on this host (default 1)")
    add(
        "--out", metavar="DIR", default="runs/sweep", help="folder of all runs (default runs/sweep)"
    )
    add("--dry-run", action="store_true", help="print the runs and what would be skipped")
    add("--only", metavar="K", help="run only the K-th run, as a task of a job array")
    add("--tables", action="store_true", help="start nothing; write the tables of what is done")
    options = parser.read(arguments)
    if options is None:
        return None
    if not options.ranks.isdecimal() or int(options.ranks) < 1:
        raise ConfigError(f"--ranks {options.ranks} is no number of ranks; give 1 or more")
    if options.only is not None and not options.only.isdecimal():
        raise ConfigError(
            f"--only {options.only} is no number of a run; give one that --dry-run lists"
        )
    if (options.only is not None) + options.tables + options.dry_run > 1:
        raise ConfigError("--dry-run, --only and --tables exclude each other; give one of them")
    if not options.out:
        raise ConfigError("--out is empty; give a folder, or leave it out for runs/sweep")
    # `--config F key=value` reads as two files: an argument with = that is no file is a setting.
    given = options.config
    options.config = _refuse_repeated(
        [one for one in given if "=" not in one or Path(one).exists()]
    )
    settings = [one for one in given if one not in options.config]
    place = {text: number for number, text in enumerate(arguments)}
    settings += [*options.set, *options.settings]
    options.settings = sorted(settings, key=lambda text: place.get(text, 0))
    options.out = Path(options.out).expanduser()
    options.ranks = int(options.ranks)
    options.only = None if options.only is None else int(options.only)
    return options


def _refuse_repeated(files: list[str]) -> list[str]:
    seen: set[Path] = set()
    for file in files:
        if Path(file).resolve() in seen:
            raise ConfigError(f"--config {file} is given twice; give every file once")
        seen.add(Path(file).resolve())
    return files


def _refuse_launcher() -> None:
    """A sweep starts torchrun itself: started on several ranks, it would run everything several times."""
    for name in _SIZE_VARIABLES:
        if os.environ.get(name, "1") not in ("", "1"):
            raise ConfigError(
                f"{name}={os.environ[name]}: the sweep was started on several ranks; start it with "
                "plain python, and give the ranks of each run as --ranks R"
            )
