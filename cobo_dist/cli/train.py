"""`python -m cobo_dist.train`: train, on one process or on as many as a launcher starts."""

from __future__ import annotations

import os
from collections.abc import Sequence

from cobo_dist import __version__
from cobo_dist.cli.launch import start
from cobo_dist.cli.parser import report_error, settings_parser
from cobo_dist.comm.startup.launch_env import guess_rank
from cobo_dist.comm.startup.start_guard import StartGuard
from cobo_dist.config import load_config
from cobo_dist.errors import EXIT_DONE, ConfigError, RunFailure
from cobo_dist.terminal import safe_terminal
from cobo_dist.training.signals import Signals

USAGE = "[--config FILE.yaml] [--show-run-dir] [key.path=value ...]"
ABOUT = """\
Train personal models of n clients that learn who should help whom (CoBo), or a baseline.
Without arguments: the quickstart, 8 clients on handwritten digits, in one process."""
EPILOG = """\
examples:
  python -m cobo_dist.train algorithm.name=fedavg run.rounds=500
  torchrun --standalone --nproc_per_node=4 -m cobo_dist.train --config configs/quickstart.yaml
  mpirun -n 4 python -m cobo_dist.train comm.backend=mpi      # MPI carries the models

exit codes: 0 done; 1 failed while running; 2 refused before training, with one line on standard
error; 75 stopped by SIGTERM, SIGUSR1 or Ctrl-C with a checkpoint saved. The run folder's status.json
says which and why. 143, 138, 130 stopped by SIGTERM, SIGUSR1 or Ctrl-C before the run began; nothing was
saved. 2 and these leave no status.json."""


@safe_terminal()
def main(argv: Sequence[str] | None = None, guard: StartGuard | None = None) -> int:
    """Train as the command line says; return the exit code.

    `guard` is open if this process began with it, before it imported what this module needs.
    """
    rank = guess_rank(os.environ)
    with Signals(), guard or StartGuard(rank) as opened:
        return _train(argv, rank, opened)


def _train(argv: Sequence[str] | None, rank: int, guard: StartGuard) -> int:
    parser = settings_parser("train", ABOUT, EPILOG, USAGE)
    parser.add_argument(
        "--show-run-dir",
        action="store_true",
        help="check the config, show the run folder and leave",
    )
    parser.add_argument("--version", action="store_true", help="show the version and leave")
    try:
        options = parser.read(argv, rank)
        if options is None:
            return EXIT_DONE
        if options.version:
            if rank == 0:
                print(f"cobo_dist {__version__}")
            return EXIT_DONE
        if options.show_run_dir:
            print(load_config(options.config, options.settings).run_dir.absolute())
            return EXIT_DONE
        launch = start()
        rank = guard.rank = launch.rank
        config = load_config(options.config, options.settings)
        # It imports torch, which help and refusals need not wait for.
        from cobo_dist.training.figures import draw_figures
        from cobo_dist.training.run import run

        return run(config, launch, guard, draw_figures if config.log.figures else None).code
    except (ConfigError, RunFailure) as error:
        guard.close()  # launchers send SIGTERM to the other ranks when one fails
        return report_error(error, rank)
