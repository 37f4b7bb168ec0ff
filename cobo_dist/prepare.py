"""`python -m cobo_dist.prepare`: fetch and check data and weights ahead of a run."""

import sys

from cobo_dist.cli.prepare import main

if __name__ == "__main__":
    sys.exit(main())
