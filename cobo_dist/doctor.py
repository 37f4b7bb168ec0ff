"""`python -m cobo_dist.doctor`: check that a run would start, on every rank."""

from cobo_dist.cli.doctor import main
from cobo_dist.comm.transports.mpi_world import exit_barrier

if __name__ == "__main__":
    exit_barrier(main())
