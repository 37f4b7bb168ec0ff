"""`python -m cobo_dist.prepare`: fetch and check a run's data ahead of time.

Compute nodes have no network, and training never downloads.
"""

from __future__ import annotations

from collections.abc import Sequence

from cobo_dist.cli.parser import report_error, settings_parser
from cobo_dist.config import Config, load_config
from cobo_dist.errors import EXIT_DONE, ConfigError
from cobo_dist.lazy import torch
from cobo_dist.tasks.describe import facts_of
from cobo_dist.tasks.registry import build_task
from cobo_dist.terminal import safe_terminal

ABOUT = """\
Fetch the data that a run needs and lacks (CIFAR-100 or Wiki-40B into data.root, a language model into the
hub's cache), check them, and show how they are split over the clients. Takes the config and settings of the
run. Digits come with scikit-learn, so there is nothing to fetch. python -m cobo_dist.plan shows what the run
will send and hold."""
EXITS = "exit codes: 0 the data are there and good; 2 they are not, with one line that says why"


@safe_terminal()
def main(argv: Sequence[str] | None = None) -> int:
    """Prepare what the command line names; return 0, or 2 after one line on standard error."""
    try:
        options = settings_parser("prepare", ABOUT, EXITS).read(argv)
        if options is not None:
            _prepare(load_config(options.config, options.settings))
    except ConfigError as refusal:
        return report_error(refusal)
    return EXIT_DONE


def _prepare(config: Config) -> None:
    for line in (*config.task.fetch(config.data), *config.model.fetch()):
        print(line, flush=True)
    dtype = getattr(torch, config.run.dtype)
    task = build_task(config.task, config.model, config.data, config.run.seed, dtype)
    for name, value in facts_of(task).items():
        print(f"{name:<12}{value}")
    print(
        "next        python -m cobo_dist.plan with the same settings: bytes a round, memory a rank"
    )
