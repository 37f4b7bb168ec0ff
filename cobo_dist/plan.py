"""`python -m cobo_dist.plan`: say what a run would send and hold, without running it."""

from typing import NoReturn

from cobo_dist.cli.plan import main
from cobo_dist.comm.transports.mpi_world import exit_barrier


def command() -> NoReturn:
    """Plan as the command line says; end this process with the exit code, all ranks together."""
    exit_barrier(main())


if __name__ == "__main__":
    command()
