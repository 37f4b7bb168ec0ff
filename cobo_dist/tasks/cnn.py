"""The small convolutional network of McMahan et al. (AISTATS 2017), which federated benchmarks share."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from cobo_dist.errors import ConfigError
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
    padding: int = Field(
        2, ge=0, le=2, description="pixels added around each convolution's input; 0: as in PFLlib"
    )

    def build(self, shape: torch.Size, classes: int) -> nn.Module:
        """Return the network for images of `shape` [channels, H, W], not yet initialized.

        Raises:
            ConfigError: images that are too small without padding.
        """
        channels, w, padding = shape[0], self.width, self.padding
        height, width = (self._left(self._left(side)) for side in shape[1:])
        if min(height, width) < 1:
            raise ConfigError(
                f"model.padding={padding}: of images of {shape[1]} x {shape[2]} pixels nothing is left "
                "after two convolutions of 5 x 5; set model.padding=2"
            )
        return nn.Sequential(
            nn.Conv2d(channels, w, 5, padding=padding),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(w, 2 * w, 5, padding=padding),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * w * height * width, self.hidden),
            nn.ReLU(inplace=True),
            nn.Linear(self.hidden, classes),
        )

    def _left(self, side: int) -> int:
        """Return the side of an image after a convolution and a pooling."""
        return (side + 2 * self.padding - 4) // 2
