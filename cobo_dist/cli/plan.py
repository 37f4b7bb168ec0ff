"""The command `python -m cobo_dist.plan`: what a run would send and keep in memory, without running it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cobo_dist.cli.launch import start
from cobo_dist.cli.parser import report_error, settings_parser
from cobo_dist.comm.startup.launch_env import Launch
from cobo_dist.config import Config, load_config
from cobo_dist.errors import (
    EXIT_DONE,
    EXIT_REFUSED,
    ConfigError,
    RunFailure,
)
from cobo_dist.lazy import torch
from cobo_dist.plugins import blaming_plugins
from cobo_dist.terminal import safe_terminal

if TYPE_CHECKING:
    from cobo_dist.planning.dry_run import DryRun

ABOUT = """\
Say what the ranks of a run would send in a round and what the fullest of them would keep in memory. Takes the
config and settings of the run. Data and model are read; nothing is trained or written."""
MORE = """\
The real algorithm runs its rounds with fake clients, and messages and bytes are counted by the transfer plans
of a real run. So they equal those in metrics.jsonl as long as W keeps its initial value. The pairs are those
that the run will draw. "true clusters" is W when every client has found its cluster ("moved": after clients
migrated, comm.placement=adaptive). No W sends more than "any W". An algorithm that looks for clusters is
taken to find the true ones. Logging and migration are left out.

Of more than 32 ranks a sample is counted; sums over all ranks are then estimates.

--try N also runs the first N rounds and measures their seconds. Under a launcher its ranks run them. Without
one, torchrun starts ranks=R ranks on this machine. docs/SCALING.md says more."""
EPILOG = """\
ranks=R     number of ranks. Default: as many as launch/torchrun.sh would start here, one for each GPU or for
            each core (at most 4), and no more than there are clients
clients=N   number of clients, made up: model, batches and data are the task's, and its clusters grow in
            proportion. Default: the task's own clients

examples:
  python -m cobo_dist.plan ranks=4
  python -m cobo_dist.plan clients=1000000 ranks=1000
  srun -N2 --ntasks-per-node=4 python -m cobo_dist.plan --config my.yaml --try 20

exit codes: 0 done; 2 refused, with one line on standard error; 1 --try failed while running"""
MAX_COUNT = 10**9  # of ranks= and clients=
MAX_RANKS_PER_CORE = 8
"""Ranks on a core up to which --try starts ranks by itself, and this host's memory is compared."""


@safe_terminal()
def main(argv: Sequence[str] | None = None) -> int:
    """Plan what the command line names. Returns 0, 2 after one line on standard error, 1 on lost contact."""
    usage = "[--config FILE.yaml] [--try N] [ranks=R] [clients=N] [key.path=value ...]"
    parser = settings_parser("plan", ABOUT, EPILOG, usage, MORE)
    parser.add_argument("--try", metavar="N", dest="tried", help="run N rounds; measure seconds")
    command = list(sys.argv[1:] if argv is None else argv)
    rank = 0
    try:
        launch = start()
        rank = launch.rank
        arguments = parser.read(command, rank)
        if arguments is None:
            return EXIT_DONE
        counts, settings = _split(arguments.settings)
        config = load_config(arguments.config, settings)
        # It imports torch, which help and refusals need not wait for.
        from cobo_dist.cli.plan_output import plan_text, tried_text
        from cobo_dist.planning.try_rounds import try_rounds

        with blaming_plugins():
            dry_run = _dry_run(config, counts, launch)
        tries = _number_of_tries(arguments.tried, dry_run, launch)
        ranks = dry_run.placement.ranks
        if tries and launch.world_size < ranks:
            return _start_ranks(command, ranks)
        here = launch.local_world_size
        if launch.launcher == "python":
            here = ranks if ranks <= MAX_RANKS_PER_CORE * _cores() else 0
        with blaming_plugins():
            text = plan_text(dry_run, here) if rank == 0 else ""
        if tries:
            tried = try_rounds(config, launch, tries)
            text += "\n\n" + tried_text(tried, config.run.rounds) if tried else ""
        if rank == 0:
            print(text)
        return EXIT_DONE
    except (ConfigError, RunFailure) as error:
        return report_error(error, rank)


def _split(settings: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """Return ranks= and clients= by name (the last one counts), and the run's own settings.

    Raises:
        ConfigError: no number of ranks or clients.
    """
    counts, rest = {}, []
    for one in settings:
        name, equals, text = one.partition("=")
        if not equals or name not in ("ranks", "clients"):
            rest.append(one)
        elif not text.isdecimal() or not 1 <= int(text) <= MAX_COUNT:
            raise ConfigError(f"{one} is no number of {name}; give 1 to {MAX_COUNT:,}")
        else:
            counts[name] = int(text)
    return counts, rest


def _dry_run(config: Config, counts: dict[str, int], launch: Launch) -> DryRun:
    from cobo_dist.planning.dry_run import DryRun
    from cobo_dist.tasks.registry import build_task

    dtype = getattr(torch, config.run.dtype)
    task = build_task(config.task, config.model, config.data, config.run.seed, dtype)
    clients = counts.get("clients", task.clients)
    ranks = min(clients, torch.cuda.device_count() or min(4, _cores()))
    if launch.launcher != "python":
        ranks = launch.world_size
    return DryRun(config, task, counts.get("ranks", ranks), clients)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


# -- --try -------------------------------------------------------------------------------------------


def _number_of_tries(text: str | None, dry_run: DryRun, launch: Launch) -> int:
    """Return N of --try N; 0 where it is not given.

    Raises:
        ConfigError: N is no number of the run's rounds, clients are made up, or the ranks are not those of
            the launcher or too many for this machine.
    """
    if text is None:
        return 0
    rounds, ranks = dry_run.config.run.rounds, dry_run.placement.ranks
    if not text.isdecimal() or not 1 <= int(text) <= rounds:
        raise ConfigError(f"--try {text} is no number of rounds; give 1 to run.rounds={rounds:,}")
    if dry_run.n != dry_run.task.clients:
        raise ConfigError(
            f"--try trains the task's own {dry_run.task.clients:,} clients, but clients={dry_run.n} are "
            "made up; drop clients= or --try"
        )
    if launch.launcher != "python":
        if launch.world_size != ranks:
            raise ConfigError(
                f"ranks={ranks}, but {launch.launcher} started {launch.world_size} ranks, which --try "
                "uses; drop ranks= or start as many"
            )
    elif ranks > MAX_RANKS_PER_CORE * _cores():
        raise ConfigError(
            f"--try would start ranks={ranks} on {_cores()} cores; give at most "
            f"{MAX_RANKS_PER_CORE * _cores()}, or start the ranks by a launcher"
        )
    elif ranks > _cores() and not torch.cuda.is_available():
        print(
            f"warning: {ranks} ranks take turns on {_cores()} cores; on cores of their own rounds are "
            "shorter",
            file=sys.stderr,
        )
    return int(text)


def _start_ranks(command: Sequence[str], ranks: int) -> int:
    """Run the same command on ranks of this machine.

    Raises:
        ConfigError: they refused.
        RunFailure: they failed.
    """
    started = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"),
        *("-m", "cobo_dist.plan", *command, f"ranks={ranks}"),
    ]  # fmt: skip
    done = subprocess.run(started, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if not done.returncode:
        return EXIT_DONE
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    why = said[0].removeprefix("error: ") if said else done.stderr.strip().rpartition("\n")[2]
    # torchrun itself ends with 1, and lists the codes of its ranks.
    if re.search(rf"exitcode +: {EXIT_REFUSED} ", done.stderr):
        raise ConfigError(why)
    raise RunFailure(f"--try on {ranks} ranks of this machine: {why}")
