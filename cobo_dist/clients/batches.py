"""Which examples a client sees: a pure function of (seed, purpose, client, round), so nothing is saved.

Shapes: c clients, B examples in a batch, N_i examples of client i, k clients with as many examples each.
"""

from __future__ import annotations

from collections.abc import Sequence

from cobo_dist.lazy import Tensor, torch
from cobo_dist.maths import seeds
from cobo_dist.maths.flat import to_device

TRAINING_STREAMS = ("local", "midpoint", "meta", "hessian", "adaptation")
"""Independent orders in which a client reads its training data, by what the gradients are for."""

_BLOCK = 64  # rounds whose batches are computed together
_MAX_PARTS = 1 << 32  # batches of an epoch
_MAX_SHUFFLED = 1 << 20  # example numbers shuffled in one call, which needs about 40 MB


def bytes_ahead(batch_size: int) -> int:
    """Return the bytes of the example numbers that `BatchIndices` keeps for one client."""
    return _BLOCK * batch_size * torch.int64.itemsize


def number_of(t: int, part: int | None) -> int:
    """Return the number that names batch t of an endless sequence, or batch `part` of epoch t."""
    return t if part is None else t * _MAX_PARTS + part


class BatchIndices:
    """Mini-batches of example numbers, epoch by epoch without replacement.

    Client i reads its examples in a new random order every epoch, and the epochs follow one another
    without a gap: a batch at the end of an epoch continues in the next. So each epoch has every example
    once, and batch t is elements tB .. (t+1)B-1 of that endless sequence.
    """

    def __init__(
        self,
        seed: int,
        purpose: str,
        clients: Sequence[int],
        examples: Sequence[Tensor],
        batch_size: int,
    ) -> None:
        """Draw batches of `clients` (ids) from their `examples` (numbers, int64 [N_i] each, N_i >= 1)."""
        self.seed, self.purpose, self.clients = seed, purpose, tuple(clients)
        self.examples, self.batch_size = list(examples), batch_size
        self._device = self.examples[0].device if self.examples else torch.device("cpu")
        self._groups = self._group_rows()
        self._block = -1
        self._indices = torch.empty(0)
        self._epoch, self._orders = -1, dict[int, Tensor]()  # by row, the examples of that epoch

    def _group_rows(self) -> list[list[int]]:
        """Return groups of rows whose clients have equally many examples, small enough for one call."""
        by_count: dict[int, list[int]] = {}
        for row, numbers in enumerate(self.examples):
            by_count.setdefault(len(numbers), []).append(row)
        groups = []
        for count, rows in by_count.items():
            size = max(1, _MAX_SHUFFLED // (_BLOCK * self.batch_size + 2 * count))
            groups += [rows[at : at + size] for at in range(0, len(rows), size)]
        return groups

    def batch(self, t: int) -> Tensor:
        """Return the example numbers of round t, int64 [c, B]."""
        block, offset = divmod(t, _BLOCK)
        if block != self._block:
            self._indices = torch.empty(0)  # frees the last block
            shape = (_BLOCK, len(self.clients), self.batch_size)
            self._indices = torch.empty(shape, dtype=torch.int64, device=self._device)
            for rows in self._groups:
                self._indices[:, rows] = self._read(rows, block).transpose(0, 1)
            self._block = block
        return self._indices[offset]

    def part(self, epoch: int, number: int, rows: Sequence[int]) -> Tensor:
        """Return the example numbers of one batch of an epoch, int64 [len(rows), B] or fewer at its end.

        The epoch is a whole pass in the same order as in the endless sequence, but no batch crosses its end.
        The clients in `rows` must have equally many examples in this batch.
        """
        if epoch != self._epoch:
            self._epoch, self._orders = epoch, {}
        wanted = [row for row in rows if row not in self._orders]
        by_count: dict[int, list[int]] = {}
        for row in wanted:
            by_count.setdefault(len(self.examples[row]), []).append(row)
        for count, alike in by_count.items():
            clients = torch.tensor([self.clients[row] for row in alike])
            names = seeds.keys(self.seed, self.purpose, clients, torch.tensor(epoch))
            orders = to_device(seeds.permutations(names, count), self._device)
            for row, order in zip(alike, orders, strict=True):
                self._orders[row] = self.examples[row][order]
        begin = number * self.batch_size
        return torch.stack([self._orders[row][begin : begin + self.batch_size] for row in rows])

    def _read(self, rows: list[int], block: int) -> Tensor:
        """Return the batches of a block of rounds of clients in one group, [k, _BLOCK, B]."""
        examples_kn = torch.stack([self.examples[row] for row in rows])
        count, length = examples_kn.shape[1], _BLOCK * self.batch_size
        start = block * length
        first, last = start // count, (start + length - 1) // count
        epochs = torch.arange(first, last + 1)
        clients = torch.tensor([self.clients[row] for row in rows])
        names = seeds.keys(self.seed, self.purpose, clients[:, None], epochs)
        order = seeds.permutations(names.flatten(), count).view(len(rows), -1)
        order = to_device(order[:, start - first * count :][:, :length], examples_kn.device)
        return examples_kn.gather(1, order).view(len(rows), _BLOCK, self.batch_size)
