"""ResNet-9, the network of the paper's vision experiments."""

from __future__ import annotations

from torch import Tensor, nn

from cobo_dist.tasks.resnet9 import Resnet9Config


class ResNet9(nn.Module):
    """Images [B, channels, H, W] to logits [B, classes].

    conv w, conv 2w + pool, residual(2w, 2w), conv 4w + pool, conv 8w + pool, residual(8w, 8w), max, linear.
    The last max-pool takes what is left of the image: 4 x 4 of 32 x 32, as in the paper.
    """

    def __init__(self, config: Resnet9Config, channels: int, classes: int) -> None:
        super().__init__()
        self.config, w = config, config.width
        self.conv1, self.conv2 = self._conv(channels, w), self._conv(w, 2 * w)
        self.residual1 = nn.Sequential(self._conv(2 * w, 2 * w), self._conv(2 * w, 2 * w))
        self.conv3, self.conv4 = self._conv(2 * w, 4 * w), self._conv(4 * w, 8 * w)
        self.residual2 = nn.Sequential(self._conv(8 * w, 8 * w), self._conv(8 * w, 8 * w))
        self.pool = nn.MaxPool2d(2)
        self.classifier = nn.Linear(8 * w, classes)

    def _conv(self, inputs: int, outputs: int) -> nn.Sequential:
        if self.config.norm == "group":
            norm: nn.Module = nn.GroupNorm(self.config.groups, outputs)
        else:
            norm = nn.BatchNorm2d(outputs)
        # No bias: the normalization removes it.
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), norm, nn.ReLU(inplace=True)
        )

    def forward(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """Classify; in training, features are multiplied by `kept` [B, 8w] (see `dropout_mask`).

        The mask is an input because it must depend on (seed, client, round) only.
        """
        x = self.pool(self.conv2(self.conv1(images)))
        x = x + self.residual1(x)
        x = self.pool(self.conv4(self.pool(self.conv3(x))))
        x = x + self.residual2(x)
        x = x.amax(dim=(2, 3))
        if self.training and kept is not None:
            x = x * kept.to(x.dtype)
        logits: Tensor = self.classifier(x)
        return logits
