"""Dropout whose mask is a pure function of a key of each example.

The key is that of (seed, stream, round, client, position in the batch); each layer adds its own name. So
masks are the same on any number of ranks, for any split of a batch, and when gradient checkpointing
computes a layer a second time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cobo_dist.maths import seeds

_LANES = 4  # 16-bit random numbers in one 64-bit word
_LANE_VALUES = 1 << 16


class Keys:
    """The keys of the examples that the model computes now."""

    def __init__(self) -> None:
        self.now_b = torch.empty(0, dtype=torch.int64)


class KeyedDropout(nn.Module):
    """Drops `share` of the numbers of each example in training, and scales the rest to keep the mean."""

    def __init__(self, share: float, name: str, keys: Keys) -> None:
        super().__init__()
        self.share, self.keys = share, keys
        self._name = seeds.signed(seeds.key(0, f"layer {name}"))

    def forward(self, x: Tensor) -> Tensor:
        """Drop from x [B, ...], where the B keys belong to its examples."""
        if not self.training:
            return x
        keys = self.keys.now_b
        if len(keys) != len(x):  # a layer without a batch dimension: one mask for all
            keys = keys[:1]
        kept = kept_lanes(keys ^ self._name, x.numel() // len(keys), self.share).view(x.shape)
        return x.masked_fill(~kept, 0.0) * (1.0 / (1.0 - self.share))

    def extra_repr(self) -> str:
        """Return the share, for printing."""
        return f"share={self.share:g}"


def kept_lanes(keys_b: Tensor, count: int, share: float) -> Tensor:
    """Return which of `count` numbers each key keeps, bool [B, count]; dropped with `share` to 1/65536.

    Each key has a SplitMix64 stream (see `maths.seeds`), and each word makes four decisions: 16 bits are
    enough for a share, and the words take most of the time.
    """
    words = seeds.words(keys_b[:, None], -(-count // _LANES), 0, keys_b.device)
    dropped = min(round(share * _LANE_VALUES), _LANE_VALUES - 1)
    return words.view(torch.int16)[:, :count] >= dropped - _LANE_VALUES // 2


def example_keys(seed: int, stream: str, t: int, clients: list[int], batch: int) -> Tensor:
    """Return the keys of a round's examples, int64 [m, batch]."""
    return torch.tensor(
        [
            [
                seeds.signed(seeds.key(seed, f"dropout {stream}", t, client, place))
                for place in range(batch)
            ]
            for client in clients
        ],
        dtype=torch.int64,
    ).view(len(clients), batch)
