"""The dropout layer whose masks follow from keys."""

from __future__ import annotations

from torch import Tensor, nn

from cobo_dist.tasks.language.dropout import Keys


class KeyedDropout(nn.Module):
    """Drops `share` of the numbers of each example in training, and scales the rest to keep the mean."""

    def __init__(self, share: float, name: str, keys: Keys) -> None:
        super().__init__()
        self.share, self.keys = share, keys
        self._layer = keys.add(name)

    def forward(self, x: Tensor) -> Tensor:
        """Drop from x [B, ...], where the B keys belong to its examples."""
        if not self.training:
            return x
        alone = len(self.keys.now_b) != len(x)
        count = x.numel() if alone else x.numel() // len(x)
        dropped = self.keys.dropped(self._layer, count, self.share, alone).view(x.shape)
        return x.masked_fill(dropped, 0.0) * (1.0 / (1.0 - self.share))

    def extra_repr(self) -> str:
        """Return the share, for printing."""
        return f"share={self.share:g}"
