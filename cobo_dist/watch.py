"""`python -m cobo_dist.watch`: follow runs while they go on, on a terminal or in a browser."""

import sys

from cobo_dist.cli.watch import main

if __name__ == "__main__":
    sys.exit(main())
