"""A model of your own: attention over the rows of an image.

python -m cobo_dist.train plugins=examples/own_model.py task.name=classification task.partition.clients=4 \
    model.name=row_attention model.width=16 run.rounds=100
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from cobo_dist import ConfigError, ModelSection, register


class RowAttention(nn.Module):
    """Images [B, channels, H, W] to logits [B, classes]: rows attend to one another."""

    def __init__(self, shape: torch.Size, classes: int, width: int, heads: int) -> None:
        super().__init__()
        channels, height, row = shape
        self.embedding = nn.Linear(channels * row, width)
        self.position = nn.Parameter(torch.randn(height, width) / 10)  # follows from run.seed
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        x = self.embedding(images.transpose(1, 2).flatten(2)) + self.position
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        logits: Tensor = self.last(x.mean(dim=1))
        return logits


@register.model("row_attention")
class RowAttentionConfig(ModelSection):
    """Attention over the rows of an image."""

    min_pixels = 2  # takes images

    width: int = Field(32, ge=1, description="width of the attention; a multiple of model.heads")
    heads: int = Field(2, ge=1, description="attention heads")

    def build(self, shape: torch.Size, classes: int) -> nn.Module:
        """Return the network."""
        if self.width % self.heads:
            raise ConfigError(
                f"model.heads={self.heads} does not divide model.width={self.width}; choose a divisor"
            )
        return RowAttention(shape, classes, self.width, self.heads)
