"""How the commands that train or connect ranks start."""

from __future__ import annotations

import os
import sys

from cobo_dist.comm.startup.launch_env import Launch, read_launch
from cobo_dist.host import raise_open_files_limit


def start() -> Launch:
    """Return what the launcher started; raise the limit of open files, print what the user should know.

    Raises:
        ConfigError: as `read_launch`.
    """
    raise_open_files_limit()
    launch = read_launch(os.environ)
    if launch.notice:
        print(f"notice: {launch.notice}", file=sys.stderr, flush=True)
    return launch
