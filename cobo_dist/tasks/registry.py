"""Tasks by name."""

from __future__ import annotations

from cobo_dist.errors import ConfigError
from cobo_dist.lazy import torch
from cobo_dist.tasks.base import DataConfig, Task
from cobo_dist.tasks.cross_device import CrossDeviceConfig
from cobo_dist.tasks.cross_silo import CrossSiloConfig
from cobo_dist.tasks.digits import DigitsConfig
from cobo_dist.tasks.language.config import Adapters, LanguageConfig, LanguageModelConfig
from cobo_dist.tasks.language.task import Language
from cobo_dist.tasks.models import ClassifierConfig
from cobo_dist.tasks.quadratic import Quadratic, QuadraticConfig
from cobo_dist.tasks.supervised import Classification

TaskConfig = DigitsConfig | QuadraticConfig | CrossSiloConfig | CrossDeviceConfig | LanguageConfig
ModelConfig = ClassifierConfig | LanguageModelConfig


def build_task(
    config: TaskConfig, model: ModelConfig, data: DataConfig, seed: int, dtype: torch.dtype
) -> Task:
    """Read the data and return the task.

    Raises:
        ConfigError: missing or malformed data, or a model of another kind.
    """
    if isinstance(config, QuadraticConfig):
        return Quadratic(config, seed, dtype)
    if isinstance(config, LanguageConfig):
        if not isinstance(model, Adapters):
            raise ConfigError(
                f"model.name={model.name} is no language model; task.name=language takes gpt2, "
                "causal-lm, gguf or tiny-gpt2"
            )
        return Language(config, model, data, seed)
    if isinstance(model, Adapters):
        raise ConfigError(
            f"model.name={model.name} is a language model; task.name={config.name} takes mlp, cnn or resnet9"
        )
    return Classification(config, model, data, seed, dtype)
