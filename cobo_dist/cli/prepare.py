"""`python -m cobo_dist.prepare`: fetch and check a run's data ahead of time.

Compute nodes have no network, and training never downloads.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cobo_dist.cli.parser import report_error, settings_parser
from cobo_dist.config import Config, load_config
from cobo_dist.errors import EXIT_DONE, ConfigError
from cobo_dist.lazy import torch
from cobo_dist.maths.true_graph import TrueGraph
from cobo_dist.tasks.base import Task
from cobo_dist.tasks.describe import facts_of
from cobo_dist.tasks.registry import build_task
from cobo_dist.terminal import safe_terminal

ABOUT = """\
Fetch the data that a run needs and lacks (CIFAR-100 or Wiki-40B into data.root, a language model into the
hub's cache), check them, and show how they are split over the clients. Takes the config and settings of the
run. Digits come with scikit-learn, so there is nothing to fetch. python -m cobo_dist.plan shows what the run
will send and hold."""
USAGE = "[--config FILE.yaml] [--picture FILE.png] [key.path=value ...]"
EXITS = "exit codes: 0 the data are there and good; 2 they are not, with one line that says why"


@safe_terminal()
def main(argv: Sequence[str] | None = None) -> int:
    """Prepare what the command line names; return 0, or 2 after one line on standard error."""
    try:
        parser = settings_parser("prepare", ABOUT, EXITS, USAGE)
        parser.add_argument(
            "--picture",
            metavar="FILE.png",
            help="draw each client's label counts and the right weights, with a CSV beside it",
        )
        options = parser.read(argv)
        if options is not None:
            picture = None if options.picture is None else Path(options.picture).expanduser()
            config = load_config(options.config, options.settings)
            if picture is not None:
                _refuse_no_picture(picture)
            _prepare(config, picture)
    except ConfigError as refusal:
        return report_error(refusal)
    return EXIT_DONE


def _refuse_no_picture(path: Path) -> None:
    """Check before the data are read that a picture can be written.

    Raises:
        ConfigError: another kind of file, or no folder that this process may write to.
    """
    if path.suffix != ".png":
        raise ConfigError(f"--picture {path} is no name of a PNG; give FILE.png")
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigError(
            f"--picture {path} cannot be written; give a path in a folder that exists and is yours to write"
        )


def _prepare(config: Config, picture: Path | None) -> None:
    for line in (*config.task.fetch(config.data), *config.model.fetch()):
        print(line, flush=True)
    dtype = getattr(torch, config.run.dtype)
    task = build_task(config.task, config.model, config.data, config.run.seed, dtype)
    for name, value in facts_of(task).items():
        print(f"{name:<12}{value}")
    for notice in task.notices:
        print(f"{'notice':<12}{notice}")
    if picture is not None:
        _draw(task, picture)
    print(
        "next        python -m cobo_dist.plan with the same settings: bytes a round, memory a rank"
    )


def _draw(task: Task, path: Path) -> None:
    """Draw the label counts of the clients, and the right weights where they can be said."""
    counts = task.label_counts()
    if counts is None:
        raise ConfigError(
            f"--picture: the examples of task.name={task.name} have no labels; drop it"
        )
    from cobo_dist.reports.figures.label_counts import MAX_CLIENTS, draw_label_counts

    graph = task.true_graph or (None if task.clusters is None else TrueGraph.of(task.clusters))
    shown = range(min(task.clients, MAX_CLIENTS))
    right = None if graph is None else graph.rows(shown)[:, shown]
    try:
        files = draw_label_counts(counts, task.names, path, right)
    except OSError as error:
        raise ConfigError(
            f"--picture {path} cannot be written: {error.strerror}; give a path in a folder that exists"
        ) from None
    for file in files:
        print(f"{'written':<12}{file}")
