"""Tasks and models by name."""

from __future__ import annotations

from importlib import import_module

from cobo_dist.errors import ConfigError
from cobo_dist.lazy import torch
from cobo_dist.registry import register
from cobo_dist.tasks.base import DataConfig, Task
from cobo_dist.tasks.sections import ModelSection, TaskSection

for _module in (
    *("classification", "cnn", "cross_device", "cross_silo", "digits", "language.config", "models"),
    *("quadratic", "regression", "resnet9"),
):
    import_module(f"cobo_dist.tasks.{_module}")  # each registers its own

TASKS, MODELS = register.task, register.model
"""All that are registered, those of plug-ins included."""

_KINDS = {"classifier": "classifier", "language": "language model"}


def build_task(
    config: TaskSection, model: ModelSection, data: DataConfig, seed: int, dtype: torch.dtype
) -> Task:
    """Read the data and return the task.

    Raises:
        ConfigError: missing or malformed data, or a model of another kind.
    """
    wanted = config.model_kind
    if wanted not in ("none", model.kind):
        fitting = [name for name, one in MODELS.items() if one.target.kind == wanted]
        raise ConfigError(
            f"model.name={model.name} is no {_KINDS[wanted]}; task.name={config.name} takes "
            f"{', '.join(fitting)}"
        )
    task = config.build(model, data, seed, dtype)
    if lacking := [name for name in _MEMBERS if not hasattr(task, name)]:
        raise ConfigError(
            f"task.name={config.name}: build returned a {type(task).__name__} without {', '.join(lacking)}; "
            "return an object with all members of cobo_dist.Task"
        )
    task.model_section = None if wanted == "none" else model
    return task


_MEMBERS = (
    *(
        "name",
        "clients",
        "clusters",
        "splits",
        "metrics",
        "engines",
        "accumulation",
        "model",
        "start",
    ),
    *("loss", "score", "means", "training", "evaluation", "fingerprint", "train_sizes"),
)
"""What every task has (`tasks.base.Task`)."""
