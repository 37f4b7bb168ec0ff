"""`python -m cobo_dist.prepare`: fetch and check a run's data ahead of time.

Compute nodes have no network, and training never downloads.
"""

from __future__ import annotations

from collections.abc import Sequence

from cobo_dist.cli.parser import report_error, settings_parser
from cobo_dist.config import Config, load_config
from cobo_dist.errors import EXIT_DONE, ConfigError
from cobo_dist.lazy import torch
from cobo_dist.tasks.base import DataConfig
from cobo_dist.tasks.describe import facts_of
from cobo_dist.tasks.images import fetch_cifar100, has_cifar100
from cobo_dist.tasks.language.base import fetch_base
from cobo_dist.tasks.language.config import Adapters, LanguageConfig, LanguageModelConfig
from cobo_dist.tasks.language.texts import fetch_wiki40b
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
