"""The config of ResNet-9."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from cobo_dist.errors import ConfigError
from cobo_dist.lazy import nn, torch
from cobo_dist.registry import register
from cobo_dist.tasks.sections import ModelSection


@register.model("resnet9")
class Resnet9Config(ModelSection):
    """ResNet-9: eight 3x3 convolutions, two residual blocks, one linear layer."""

    min_pixels: ClassVar[int] = 8  # of a side: after three poolings by 2, one is left

    name: Literal["resnet9"] = "resnet9"
    width: int = Field(
        64, ge=1, le=4096, description="channels of the first convolution (paper: 64)"
    )
    norm: Literal["batch", "group"] = Field(
        "batch", description="normalisation after each convolution: BatchNorm (paper) or GroupNorm"
    )
    groups: int = Field(
        4, ge=1, description="norm=group: groups of channels; must divide model.width"
    )
    dropout: float = Field(
        0.2, ge=0, lt=1, description="share of features dropped before the classifier, in training"
    )

    def dropped_features(self) -> tuple[float, int]:
        """Return the dropout before the linear layer, and the number of its inputs."""
        return self.dropout, 8 * self.width

    def build(self, shape: torch.Size, classes: int) -> nn.Module:
        """Return the network for images of `shape` [channels, H, W], not yet initialized.

        Raises:
            ConfigError: groups that do not divide the channels.
        """
        if self.norm == "group" and self.width % self.groups:
            raise ConfigError(
                f"model.groups={self.groups} does not divide model.width={self.width}; choose a "
                "divisor of it"
            )
        from cobo_dist.tasks.resnet9_network import ResNet9

        return ResNet9(self, shape[0], classes)
