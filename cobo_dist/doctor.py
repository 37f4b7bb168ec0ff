"""`python -m cobo_dist.doctor`: check that a run would start, on every rank."""

from typing import NoReturn

from cobo_dist.cli.doctor import main
from cobo_dist.comm.transports.mpi_world import exit_barrier


def command() -> NoReturn:
    """Check as the command line says; end this process with the exit code, all ranks together."""
    exit_barrier(main())


if __name__ == "__main__":
    command()
