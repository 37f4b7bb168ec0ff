"""`python -m cobo_dist.plan`: what a run would send, hold and take, without running it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from cobo_dist.cli.parser import settings_parser
from cobo_dist.cli.plan_output import PlanPage
from cobo_dist.comm.startup.launch_env import read_launch
from cobo_dist.config import Config, load_config
from cobo_dist.errors import EXIT_DONE, EXIT_FAILED, EXIT_REFUSED, ConfigError, RunFailure
from cobo_dist.planning.constants import Constants, read_constants, subject_of, write_constants
from cobo_dist.planning.dry_run import DryRun
from cobo_dist.planning.measure import measure_constants
from cobo_dist.planning.on_paper import OnPaper, is_regular
from cobo_dist.tasks.base import Task
from cobo_dist.tasks.registry import build_task

ABOUT = """\
A dry run: say what the ranks of a run would send a round, what the fullest of them would hold and how long a
round would take. Takes the config and settings of the run, and the ranks it is for. Data and model are read;
nothing is trained.

Bytes and messages come from the plans that the run itself makes: with W at W^0 they are what its metrics
will say. Pairs are those that the run will draw; "true clusters" is W when every client has found its own
("moved": and clients are where comm.placement=adaptive brings them, where the run is not made up or large),
and no W sends more than "any W". IFCA's clients are taken to pick their true clusters, and federated
clustering to find them. What logging and moving send is left out.

Seconds need a dozen constants of the machine: --measure finds them in a few seconds, here or, under a
launcher, on a cluster's nodes; --constants FILE keeps them, or takes them from there. docs/SCALING.md says
what they mean and how far they carry."""
EPILOG = """\
ranks=R: for how many ranks. Default: as many as launch/torchrun.sh would start here, one for each GPU or for
each core (at most 4), and no more than there are clients.
clients=N: for so many clients, made up: model, batches and data are the task's, its clusters grow in
proportion. Counted in closed form, so that a million clients on a thousand ranks take seconds.
hosts=H: on how many hosts the ranks are. Default: as many as give each rank cores of its own.

exit codes: 0 done; 2 refused, with one line on standard error

examples:
  python -m cobo_dist.plan ranks=4
  python -m cobo_dist.plan --config configs/paper/language.yaml data.root=DIR ranks=2
  python -m cobo_dist.plan --measure --constants here.json ranks=2
  srun -N2 --ntasks-per-node=1 python -m cobo_dist.plan --measure --constants node.json run.threads=1
  python -m cobo_dist.plan --constants node.json ranks=1000 clients=1000000"""
_COUNTS = ("ranks", "clients", "hosts")
MOST = 10**9
LARGE = 2000, 16
"""Clients and ranks beyond which a regular run is counted in closed form: a rehearsal takes minutes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Plan what the command line names. Returns 0, 2 after one line on standard error, 1 on lost contact."""
    usage = "[--config FILE.yaml] [ranks=R] [clients=N] [hosts=H] [key.path=value ...]"
    parser = settings_parser("plan", ABOUT, EPILOG, usage)
    parser.add_argument("--measure", action="store_true", help="measure seconds on this machine")
    parser.add_argument(
        "--constants", metavar="FILE", help="with --measure: write them; else: read them"
    )
    command = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = parser.read(command)
        if arguments is None:
            return EXIT_DONE
        asked, settings = _split(arguments.settings)
        config = load_config(arguments.config, settings)
        dtype = getattr(torch, config.run.dtype)
        task = build_task(config.task, config.model, config.data, config.run.seed, dtype)
        plan = _plan(config, task, asked)  # may refuse: before anything is printed
        if "hosts" in asked and not (arguments.measure or arguments.constants):
            raise ConfigError(
                "hosts= says where seconds are spent; give --measure or --constants too"
            )
        constants = None
        file = Path(arguments.constants) if arguments.constants else None
        if arguments.measure:
            constants = _measured(config, task, plan, command, file)
            if constants is None:
                return EXIT_DONE  # rank 0 speaks
        elif file is not None:
            constants = read_constants(file, subject_of(config, plan.model.size))
        page = PlanPage(plan, constants, asked.get("hosts", 0))
    except (ConfigError, RunFailure) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_REFUSED if isinstance(error, ConfigError) else EXIT_FAILED
    print(page.text())
    return EXIT_DONE


def _split(settings: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """Return what is asked of the plan, by name (the last one counts), and the run's own settings.

    Raises:
        ConfigError: no number of ranks, clients or hosts.
    """
    asked, rest = {}, []
    for one in settings:
        name, equals, text = one.partition("=")
        if not equals or name not in _COUNTS:
            rest.append(one)
        elif not text.isdecimal() or not 1 <= int(text) <= MOST:
            raise ConfigError(f"{one} is no number of {name}; give 1 to {MOST:,}")
        else:
            asked[name] = int(text)
    return asked, rest


def _plan(config: Config, task: Task, asked: dict[str, int]) -> DryRun | OnPaper:
    """Rehearse the run, or count it in closed form where it is large or made up."""
    clients = asked.get("clients", task.clients)
    ranks = asked.get("ranks", min(clients, torch.cuda.device_count() or min(4, _cores())))
    large = clients > LARGE[0] or ranks > LARGE[1]
    if "clients" in asked or (large and is_regular(config, task)):
        return OnPaper(config, task, ranks, clients)
    return DryRun(config, task, ranks)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


# -- measuring ---------------------------------------------------------------------------------------


def _measured(
    config: Config, task: Task, plan: DryRun | OnPaper, command: Sequence[str], file: Path | None
) -> Constants | None:
    """Return what the launched ranks measure, on rank 0; python alone starts two ranks for it.

    Raises:
        ConfigError: they cannot start, or the file cannot be written.
    """
    launch = read_launch(os.environ)
    on_gpu = config.run.device != "cpu" and torch.cuda.is_available()
    if launch.launcher == "python" and not (on_gpu and torch.cuda.device_count() < 2):
        with tempfile.TemporaryDirectory() as folder:
            kept = Path(folder) / "constants.json"
            own = [one for one in command if one.partition("=")[0] not in _COUNTS]
            _start_two([*own, "--constants", str(kept)])
            constants = read_constants(kept, subject_of(config, plan.model.size))
    else:
        found = measure_constants(config, task, launch)
        if found is None:
            return None
        constants = found
    if file is not None:
        write_constants(constants, file)
    return constants


def _start_two(command: Sequence[str]) -> None:
    """Measure by two ranks of this host."""
    started = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *("-m", "cobo_dist.plan", *command),
    ]
    done = subprocess.run(
        started, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = [one for one in done.stderr.splitlines() if one.startswith("error: ")]
        why = said[0].removeprefix("error: ") if said else "two ranks of this host did not start"
        raise ConfigError(f"{why} (--measure; under a launcher of your own, its ranks measure)")
