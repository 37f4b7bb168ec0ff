"""Compression of models: what a client sends of the difference between its model and what others know of it.

Others know y_i, the sum of all that client i has sent: y_i <- y_i + C(x_i - y_i). What C leaves out of one
message is in the next difference, so no error is lost (Koloskova, Stich and Jaggi, ICML 2019).

Shapes: c clients, d numbers of a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cobo_dist.lazy import Tensor, torch

BLOCK = 1024
"""Numbers that share a scale (int8). Four bytes more for so many."""
_STEPS = 127  # of each sign
_PLACE_BYTES, _SCALE_BYTES = 4, 4


@dataclass(frozen=True)
class Compression:
    """C: to the nearest of 255 multiples of a scale for each block (int8), or its largest numbers (topk).

    >>> import torch
    >>> Compression("topk", share=0.5).of(torch.tensor([[3.0, -0.1, 0.2, -5.0]])).tolist()
    [[3.0, 0.0, 0.0, -5.0]]
    """

    name: Literal["int8", "topk"]
    share: float = 0.01  # of the numbers, topk

    def count(self, size: int) -> int:
        """Return how many of `size` numbers travel."""
        return size if self.name == "int8" else min(size, max(1, round(self.share * size)))

    def message_bytes(self, size: int, number_bytes: int) -> int:
        """Return the bytes of a message about `size` numbers of `number_bytes` bytes, at most theirs."""
        if self.name == "int8":
            return min(size * number_bytes, size + _SCALE_BYTES * -(-size // BLOCK))
        return min(size * number_bytes, self.count(size) * (number_bytes + _PLACE_BYTES))

    def of(self, rows_cd: Tensor) -> Tensor:
        """Return what arrives of each row [c, d], in memory of its own: a function of that row alone."""
        if self.name == "int8":
            return torch.stack([_rounded(row_d) for row_d in rows_cd])
        found_cd, k = torch.zeros_like(rows_cd), self.count(rows_cd.shape[1])
        for row_d, found_d in zip(rows_cd, found_cd, strict=True):
            places = row_d.abs().topk(k, sorted=False).indices
            found_d[places] = row_d[places]
        return found_cd


def message_bytes(compression: Compression | None, size: int, number_bytes: int) -> int:
    """Return the bytes of a message about a model; None: it travels whole."""
    if compression is None:
        return size * number_bytes
    return compression.message_bytes(size, number_bytes)


def _rounded(row_d: Tensor) -> Tensor:
    """Round a row, block by block, to multiples of its greatest size over 127."""
    size = len(row_d)
    blocks = torch.nn.functional.pad(row_d, (0, -size % BLOCK)).view(-1, BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True).div_(_STEPS)
    steps = torch.where(scale > 0, blocks / scale, 0.0).round_()
    return steps.mul_(scale).view(-1)[:size]
