"""Which examples a client sees: a pure function of (seed, purpose, client, round), nothing to save."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cobo_dist.maths import seeds

_BLOCK = 64  # rounds whose batches are worked out together


class BatchIndices:
    """Mini-batches of example numbers, epoch by epoch without replacement.

    Client i reads its examples in a new random order every epoch, batch after batch without a gap: a
    batch at the end of an epoch is filled up from the next, so each epoch shows every example once.
    Batch t is elements tB .. (t+1)B-1 of that endless reading.
    """

    def __init__(
        self,
        seed: int,
        purpose: str,
        clients: Sequence[int],
        examples: Sequence[Tensor],
        batch_size: int,
    ) -> None:
        """Read for `clients` (ids) from their `examples` (int64 [N_i] each, N_i >= 1)."""
        self.seed, self.purpose, self.clients = seed, purpose, tuple(clients)
        self.examples, self.batch_size = list(examples), batch_size
        self._block = -1
        self._indices = torch.empty(0)

    def batch(self, t: int) -> Tensor:
        """Return the example numbers of round t, int64 [c, B]."""
        block, offset = divmod(t, _BLOCK)
        if block != self._block:
            rows = [self._read(row, block) for row in range(len(self.clients))]
            self._indices, self._block = torch.stack(rows, dim=1).contiguous(), block
        return self._indices[offset]

    def _read(self, row: int, block: int) -> Tensor:
        """Return one client's batches of a block of rounds, [_BLOCK, B]."""
        examples, length = self.examples[row], _BLOCK * self.batch_size
        start = block * length
        first, last = start // len(examples), (start + length - 1) // len(examples)
        epochs = [
            seeds.permutation(
                seeds.key(self.seed, self.purpose, self.clients[row], epoch), len(examples)
            )
            for epoch in range(first, last + 1)
        ]
        order = torch.cat(epochs)[start - first * len(examples) :][:length]
        return examples[order.to(examples.device)].view(_BLOCK, self.batch_size)
