"""Tasks by name."""

from __future__ import annotations

import torch

from .base import DataConfig, Task
from .cross_device import CrossDevice, CrossDeviceConfig
from .cross_silo import CrossSilo, CrossSiloConfig
from .digits import Digits, DigitsConfig
from .models import ModelConfig
from .quadratic import Quadratic, QuadraticConfig

TaskConfig = DigitsConfig | QuadraticConfig | CrossSiloConfig | CrossDeviceConfig


def build_task(
    config: TaskConfig, model: ModelConfig, data: DataConfig, seed: int, dtype: torch.dtype
) -> Task:
    """Read the data and return the task.

    Raises:
        Refusal: missing or malformed data, in one line.
    """
    if isinstance(config, QuadraticConfig):
        return Quadratic(config, seed, dtype)
    if isinstance(config, CrossSiloConfig):
        return CrossSilo(config, model, data, seed, dtype)
    if isinstance(config, CrossDeviceConfig):
        return CrossDevice(config, model, data, seed, dtype)
    return Digits(config, model, data, seed, dtype)
