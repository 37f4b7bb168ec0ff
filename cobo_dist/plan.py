"""`python -m cobo_dist.plan`: say what a run would send and hold, without running it."""

from cobo_dist.cli.plan import main
from cobo_dist.comm.transports.mpi_world import exit_barrier

if __name__ == "__main__":
    exit_barrier(main())
