"""Local work: the steps that a client takes on its own data in one round.

Shapes: c clients of a rank, e rows of some clients, k of them with batches of equal size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobo_dist.clients.local_config import LocalWorkConfig

Rows = NDArray[np.int64]
ALL = slice(None)


class Batches(NamedTuple):
    """Batches of equal size of some clients: the arguments of `BatchSource.batch`.

    `at` are the places of the clients among those asked for, ascending; None: all of them.
    """

    number: int
    part: int | None
    at: Rows | None


class LocalSchedule:
    """Which batches clients read in the local steps of each round.

    With `local.steps` K, step k of round t reads batch tK + k of the client's endless sequence. With
    `local.epochs` E, the steps of round t read epochs tE .. tE + E - 1, each a whole pass in a new order.
    """

    def __init__(self, config: LocalWorkConfig, sizes_c: Sequence[int], batch_size: int) -> None:
        """Schedule clients with `sizes_c` examples [c]."""
        self.config, self.batch_size = config, batch_size
        self.sizes_c = np.asarray(sizes_c, dtype=np.int64)

    @property
    def counts_c(self) -> Rows:
        """Local steps of each client in a round."""
        return np.array(self.config.steps_of(self.sizes_c.tolist(), self.batch_size))

    def steps(self, t: int, rows_e: Rows | None = None, work: slice = ALL) -> Iterator[Batches]:
        """Yield the batches of round t's local steps of the clients in these rows (None: all), in order.

        Those of one step are of one size each; a client is in as many of them as it takes steps.
        `work`: only some of the steps, or with epochs some of the epochs.
        """
        if not self.config.epochs:
            for k in range(t * self.config.steps, (t + 1) * self.config.steps)[work]:
                yield Batches(k, None, None)
            return
        for epoch in range(t * self.config.epochs, (t + 1) * self.config.epochs)[work]:
            for part in range(-(-int(self._used(rows_e).max(initial=0)) // self.batch_size)):
                yield from self._parts(epoch, part, rows_e)

    def share_of_epoch(self, number: int, share: float, rows_e: Rows) -> Iterator[Batches]:
        """Yield the first batches of an epoch of the clients in these rows, a share of each one's examples.

        They are whole batches, at least one a client; of a client with fewer examples, all of them.
        """
        most_e = np.maximum(1, np.floor(self.sizes_c[rows_e] * share) // self.batch_size)
        for part in range(int(most_e.max(initial=0))):
            left_e = np.where(part < most_e, self._left(self.sizes_c[rows_e], part), 0)
            yield from self._of_equal_size(number, part, left_e)

    def first(self, t: int, rows_e: Rows | None = None) -> list[Batches]:
        """Return the batches of the first local step of round t."""
        if not self.config.epochs:
            return [Batches(t * self.config.steps, None, None)]
        return list(self._parts(t * self.config.epochs, 0, rows_e))

    def _used(self, rows_e: Rows | None) -> Rows:
        """Return how many examples an epoch of each client has, [e]."""
        sizes_e = self.sizes_c if rows_e is None else self.sizes_c[rows_e]
        return sizes_e - sizes_e % self.batch_size if self.config.drop_last else sizes_e

    def _parts(self, epoch: int, part: int, rows_e: Rows | None) -> Iterator[Batches]:
        yield from self._of_equal_size(epoch, part, self._left(self._used(rows_e), part))

    def _left(self, sizes_e: Rows, part: int) -> Rows:
        """Return how many examples batch `part` of an epoch has."""
        return np.clip(sizes_e - part * self.batch_size, 0, self.batch_size)

    def _of_equal_size(self, epoch: int, part: int, left_e: Rows) -> Iterator[Batches]:
        """Yield the batches of clients whose batch `part` has as many examples each, `left_e`."""
        for size in np.unique(left_e[left_e > 0]).tolist():
            chosen_e = left_e == size
            yield Batches(epoch, part, None if chosen_e.all() else np.flatnonzero(chosen_e))


def clip_rows(gradients_kd: Tensor, most: float) -> None:
    """Scale each row down to the norm `most` where it is longer, as `torch.nn.utils.clip_grad_norm_` does."""
    norms_k1 = torch.linalg.vector_norm(gradients_kd, dim=1, keepdim=True)
    gradients_kd.mul_((most / (norms_k1 + 1e-6)).clamp_(max=1.0))
