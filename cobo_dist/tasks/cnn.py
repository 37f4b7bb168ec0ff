"""The small convolutional network of McMahan et al. (AISTATS 2017), which federated benchmarks share."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from cobo_dist.errors import ConfigError
from cobo_dist.settings import Section, Width

SMALLEST = 4  # pixels a side: two poolings by 2 must leave one


class CnnConfig(Section):
    """Two 5x5 convolutions with max-pooling, a hidden layer, a linear layer; no normalisation."""

    name: Literal["cnn"] = "cnn"
    width: Width = Field(
        32, description="channels of the first convolution; the second has twice as many"
    )
    hidden: Width = Field(512, description="width of the hidden layer")


def build_cnn(config: CnnConfig, shape: torch.Size, classes: int) -> nn.Sequential:
    """Return the network for images of `shape` [channels, H, W], not yet started.

    Raises:
        ConfigError: images too small.
    """
    channels, height, width = shape
    if min(height, width) < SMALLEST:
        raise ConfigError(
            f"model.name=cnn needs images of at least {SMALLEST} x {SMALLEST} pixels, and these have "
            f"{height} x {width}; set model.name=mlp"
        )
    w = config.width
    return nn.Sequential(
        nn.Conv2d(channels, w, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(w, 2 * w, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * w * (height // 4) * (width // 4), config.hidden),
        nn.ReLU(inplace=True),
        nn.Linear(config.hidden, classes),
    )
