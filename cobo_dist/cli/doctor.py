"""`python -m cobo_dist.doctor`: start as a run would, and say in words what is wrong."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cobo_dist.cli.launch import start
from cobo_dist.cli.parser import report_error, settings_parser
from cobo_dist.comm.startup.launch_env import Launch
from cobo_dist.config import load_config
from cobo_dist.errors import EXIT_DONE, EXIT_FAILED, ConfigError, RunFailure
from cobo_dist.terminal import safe_terminal

if TYPE_CHECKING:
    from cobo_dist.preflight.diagnose import Finding

ABOUT = """\
Check everything that a run needs, before the run does: the launcher, the ranks and their hosts, versions,
devices, threads, memory, open files, the data, the run folder and its disk, clocks, and every link's round
trip and throughput. Start it as the run will be started, with the same launcher and arguments, in place of
cobo_dist.train. It trains and downloads nothing and leaves nothing behind. Rank 0 prints the findings."""
EXITS = "exit codes: 0 nothing is wrong (there may be warnings); 1 something is; 2 the ranks cannot start"


@safe_terminal()
def main(argv: Sequence[str] | None = None) -> int:
    """Examine what the command line names; return 0, 1 where something is wrong, 2 where nothing starts."""
    rank, began = 0, time.monotonic()
    try:
        launch = start()
        rank = launch.rank
        options = settings_parser("doctor", ABOUT, EXITS).read(argv, rank)
        if options is None:
            return EXIT_DONE
        config = load_config(options.config, options.settings)
        # It imports torch, which help and refusals need not wait for.
        from cobo_dist.preflight.diagnose import WRONG
        from cobo_dist.preflight.probe import examine

        found = examine(config, launch)
    except (ConfigError, RunFailure) as error:
        return report_error(error, rank)
    if rank == 0:
        command = sys.argv[1:] if argv is None else argv
        print(report(launch, found, time.monotonic() - began, command))
    return EXIT_FAILED if any(one.level == WRONG for one in found) else EXIT_DONE


def report(launch: Launch, found: Sequence[Finding], seconds: float, command: Sequence[str]) -> str:
    """Return the findings, one a line; what is wrong comes last, where it is seen."""
    from cobo_dist.preflight.diagnose import FINE, WARNING, WRONG

    where = f"{launch.world_size} rank(s) by {launch.launcher}"
    if launch.world_size > 1:
        where += f", connected through {launch.address}:{launch.port}"
    lines = [f"cobo_dist doctor: {where}; {shlex.join(command) or 'the defaults'}"]
    for level in (FINE, WARNING, WRONG):
        for one in found:
            if one.level == level:
                lines.append(f"{level:<9}{one.topic:<13}{one.text}")
                lines += [f"{'':<22}{more}" for more in one.more]
                if one.remedy:
                    lines.append(f"{'':<22}-> {one.remedy}")
    wrong, warnings = (sum(one.level == level for one in found) for level in (WRONG, WARNING))
    verdict = f"{wrong} wrong" if wrong else "nothing is wrong"
    lines.append(f"{verdict}, {warnings} warning(s); {seconds:.1f} s")
    return "\n".join(lines)
