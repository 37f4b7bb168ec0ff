"""The model of task `quadratic`: one point."""

from __future__ import annotations

from torch import Tensor, nn


class Point(nn.Module):
    """A model that is one point x [d]; a call with a client's problem returns the loss."""

    def __init__(self, start_d: Tensor) -> None:
        super().__init__()
        self.x = nn.Parameter(start_d.clone())

    def forward(self, center_d: Tensor, curvature: Tensor, noise_d: Tensor) -> Tensor:
        """Return a/2 ||x - mu||^2, with a gradient of a (x - mu) + noise."""
        zero_d = self.x - self.x.detach()  # value 0, gradient 1
        return 0.5 * curvature * (self.x - center_d).square().sum() + (noise_d * zero_d).sum()
