"""`python -m cobo_dist.report`: turn run directories into tables, figures and a page."""

import sys

from cobo_dist.cli.report import main

if __name__ == "__main__":
    sys.exit(main())
