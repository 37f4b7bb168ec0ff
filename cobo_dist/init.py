"""`python -m cobo_dist.init`: lay out configs and job scripts in a folder."""

import sys

from cobo_dist.cli.init import main

if __name__ == "__main__":
    sys.exit(main())
