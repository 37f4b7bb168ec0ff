"""The small convolutional network of McMahan et al. (AISTATS 2017), which federated benchmarks share."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from cobo_dist.lazy import nn, torch
from cobo_dist.registry import register
from cobo_dist.settings import Width
from cobo_dist.tasks.sections import ModelSection


@register.model("cnn")
class CnnConfig(ModelSection):
    """Two 5x5 convolutions with max-pooling, a hidden layer, a linear layer; no normalization."""

    min_pixels: ClassVar[int] = 4  # of a side: after two poolings by 2, one is left

    name: Literal["cnn"] = "cnn"
    width: Width = Field(
        32, description="channels of the first convolution; the second has twice as many"
    )
    hidden: Width = Field(512, description="width of the hidden layer")

    def build(self, shape: torch.Size, classes: int) -> nn.Module:
        """Return the network for images of `shape` [channels, H, W], not yet initialized."""
        channels, height, width = shape
        w = self.width
        return nn.Sequential(
            nn.Conv2d(channels, w, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(w, 2 * w, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * w * (height // 4) * (width // 4), self.hidden),
            nn.ReLU(inplace=True),
            nn.Linear(self.hidden, classes),
        )
