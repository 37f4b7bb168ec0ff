"""`python -m cobo_dist.train`: train, on one process or on as many as a launcher starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NoReturn

from cobo_dist.comm.startup.launch_env import guess_rank
from cobo_dist.comm.startup.start_guard import StartGuard
from cobo_dist.comm.transports.mpi_world import exit_barrier
from cobo_dist.training.signals import Signals


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says; return the exit code."""
    with Signals(), StartGuard(guess_rank(os.environ)) as guard:
        # It imports torch, which takes seconds, in which a signal may come.
        from cobo_dist.cli.train import main as train

        return train(argv, guard)


def command() -> NoReturn:
    """Train as the command line says; end this process with the exit code, all ranks together."""
    exit_barrier(main())


if __name__ == "__main__":
    command()
