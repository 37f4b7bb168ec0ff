"""`python -m cobo_dist.sweep`: run a grid of configurations and choose the best of each method."""

import sys

from cobo_dist.cli.sweep import main

if __name__ == "__main__":
    sys.exit(main())
