"""Dropout whose mask is a pure function of a key that comes with each example.

The key names (seed, stream, round, client, place in the batch); the layer adds its own name. So masks are the
same on any number of ranks, however a batch is cut, and again when gradient checkpointing computes a
layer for the second time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cobo_dist.maths import seeds

_LANES = 4  # decisions from one 64-bit word
_SIZE = 1 << 16


class Keys:
    """The keys of the examples that are passing through the model now."""

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
        if len(keys) != len(x):  # a layer that mixes examples: one mask for all
            keys = keys[:1]
        kept = kept_lanes(keys ^ self._name, x.numel() // len(keys), self.share).view(x.shape)
        return x.masked_fill(~kept, 0.0) * (1.0 / (1.0 - self.share))

    def extra_repr(self) -> str:
        """Say the share."""
        return f"share={self.share:g}"


def kept_lanes(keys_b: Tensor, count: int, share: float) -> Tensor:
    """Return which of `count` numbers each key keeps, bool [B, count]; dropped with `share` to 1/65536.

    A SplitMix64 stream a key (see `maths.seeds`), each word cut into four decisions: 16 bits are enough for
    a share, and words are what this costs.
    """
    words = seeds.words(keys_b[:, None], -(-count // _LANES), 0, keys_b.device)
    dropped = min(round(share * _SIZE), _SIZE - 1)
    return words.view(torch.int16)[:, :count] >= dropped - _SIZE // 2


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
