"""`python -m cobo_dist.train`: train, on one process or on as many as a launcher starts."""

from cobo_dist.cli.train import main
from cobo_dist.comm.transports.mpi_world import exit_barrier

if __name__ == "__main__":
    exit_barrier(main())
