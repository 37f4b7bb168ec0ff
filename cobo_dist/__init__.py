"""cobo_dist: CoBo, collaborative learning via bilevel optimization, on torch.distributed.

    run = cobo_dist.fit("config.yaml", {"run.rounds": 500})
    run = cobo_dist.open_run("runs/digits-cobo-s0")

`import cobo_dist` imports nothing else; each name of the API is imported when it is first used.
docs/EXTENDING.md shows how to add an algorithm, a statistic, a task or a model of your own.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cobo_dist.algorithms.algorithm import Algorithm as Algorithm
    from cobo_dist.algorithms.algorithm import AlgorithmSection as AlgorithmSection
    from cobo_dist.algorithms.algorithm import Finding as Finding
    from cobo_dist.algorithms.base import AlgorithmState as AlgorithmState
    from cobo_dist.algorithms.base import RoundResult as RoundResult
    from cobo_dist.algorithms.base import WeightUpdates as WeightUpdates
    from cobo_dist.api import fit as fit
    from cobo_dist.callbacks.callback import Callback as Callback
    from cobo_dist.callbacks.callback import CallbackSection as CallbackSection
    from cobo_dist.config import Config as Config
    from cobo_dist.errors import ConfigError as ConfigError
    from cobo_dist.errors import RunFailure as RunFailure
    from cobo_dist.maths.weights import Weights as Weights
    from cobo_dist.registry import register as register
    from cobo_dist.results.run import Run as Run
    from cobo_dist.results.run import open_run as open_run
    from cobo_dist.settings import Section as Section
    from cobo_dist.tasks.base import Task as Task
    from cobo_dist.tasks.changes import ChangeSection as ChangeSection
    from cobo_dist.tasks.partitions import PartitionSection as PartitionSection
    from cobo_dist.tasks.partitions import TrainingLabels as TrainingLabels
    from cobo_dist.tasks.sections import ModelSection as ModelSection
    from cobo_dist.tasks.sections import TaskSection as TaskSection
    from cobo_dist.tasks.sources import Labeled as Labeled
    from cobo_dist.tasks.sources import SourceSection as SourceSection

__version__ = "0.1.0"

_MODULE_OF = {
    "ChangeSection": "cobo_dist.tasks.changes",
    "Labeled": "cobo_dist.tasks.sources",
    "PartitionSection": "cobo_dist.tasks.partitions",
    "SourceSection": "cobo_dist.tasks.sources",
    "TrainingLabels": "cobo_dist.tasks.partitions",
    "Callback": "cobo_dist.callbacks.callback",
    "CallbackSection": "cobo_dist.callbacks.callback",
    "Algorithm": "cobo_dist.algorithms.algorithm",
    "AlgorithmSection": "cobo_dist.algorithms.algorithm",
    "AlgorithmState": "cobo_dist.algorithms.base",
    "Config": "cobo_dist.config",
    "ConfigError": "cobo_dist.errors",
    "Finding": "cobo_dist.algorithms.algorithm",
    "fit": "cobo_dist.api",
    "ModelSection": "cobo_dist.tasks.sections",
    "open_run": "cobo_dist.results.run",
    "register": "cobo_dist.config.schema",  # with all kinds
    "RoundResult": "cobo_dist.algorithms.base",
    "Run": "cobo_dist.results.run",
    "RunFailure": "cobo_dist.errors",
    "Section": "cobo_dist.settings",
    "Task": "cobo_dist.tasks.base",
    "TaskSection": "cobo_dist.tasks.sections",
    "Weights": "cobo_dist.maths.weights",
    "WeightUpdates": "cobo_dist.algorithms.base",
}
"""The public API, and the module that has each name."""

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'cobo_dist' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
