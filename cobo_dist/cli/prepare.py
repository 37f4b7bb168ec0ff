"""The door `python -m cobo_dist.prepare`: fetch and check a run's data ahead of time.

Compute nodes have no network, and training never downloads.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from cobo_dist.cli.parser import settings_parser
from cobo_dist.config import Config, load_config
from cobo_dist.errors import EXIT_DONE, EXIT_REFUSED, ConfigError
from cobo_dist.tasks.base import DataConfig
from cobo_dist.tasks.describe import facts_of
from cobo_dist.tasks.images import fetch_cifar100, has_cifar100
from cobo_dist.tasks.language.base import fetch_base
from cobo_dist.tasks.language.config import Adapters, LanguageConfig, LanguageModelConfig
from cobo_dist.tasks.language.texts import fetch_wiki40b
from cobo_dist.tasks.registry import build_task

ABOUT = """\
Fetch what a run needs and has not (CIFAR-100 or Wiki-40B into data.root, a language model into the hub's
cache), check it, and say how it is split over the clients. Takes the config and settings of the run. Digits
come with scikit-learn: nothing to fetch. What the run will send and hold, python -m cobo_dist.plan says."""
EXITS = "exit codes: 0 the data are there and good; 2 they are not, with one line that says why"


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare what the command line names. Returns 0, or 2 after one line on standard error."""
    arguments = settings_parser("prepare", ABOUT, EXITS).parse_args(argv)
    try:
        _prepare(load_config(arguments.config, arguments.settings))
    except ConfigError as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return EXIT_REFUSED
    return EXIT_DONE


def _prepare(config: Config) -> None:
    if config.task.name in ("cross_silo", "cross_device") and not config.data.file:
        if has_cifar100(config.data.root):
            print(f"found       CIFAR-100 in {config.data.root}")
        else:
            print(f"fetching    CIFAR-100 into {config.data.root}", flush=True)
            fetch_cifar100(config.data.root)
    if isinstance(config.task, LanguageConfig) and isinstance(config.model, Adapters):
        _fetch_language(config.task, config.model, config.data)
    dtype = getattr(torch, config.run.dtype)
    task = build_task(config.task, config.model, config.data, config.run.seed, dtype)
    for name, value in facts_of(task).items():
        print(f"{name:<12}{value}")
    print(
        "next        python -m cobo_dist.plan with the same settings: bytes a round, memory a rank"
    )


def _fetch_language(task: LanguageConfig, model: LanguageModelConfig, data: DataConfig) -> None:
    if not data.text_dir:
        for name in fetch_wiki40b(task, data):
            print(f"fetched     Wiki-40B {name} into {data.root}")
    fetch_base(model)
