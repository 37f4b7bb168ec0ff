"""Which rank owns which client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobo_dist.errors import ConfigError


@dataclass(frozen=True)
class Placement:
    """The owner of each of n clients. Ids are stable; a rank keeps its clients in ascending order.

    >>> placement = Placement.contiguous(5, 2)
    >>> placement.owners, [ids.tolist() for ids in placement.by_rank]
    ((0, 0, 0, 1, 1), [[0, 1, 2], [3, 4]])
    """

    owners: tuple[int, ...]
    ranks: int

    @classmethod
    def contiguous(cls, clients: int, ranks: int) -> Placement:
        """Place clients in runs of consecutive ids whose lengths differ by at most one.

        Raises:
            ConfigError: there are more ranks than clients.
        """
        if ranks > clients:
            raise ConfigError(
                f"{ranks} ranks for {clients} clients: {ranks - clients} ranks would own no client; "
                f"start at most {clients} ranks (torchrun --nproc_per_node) or raise the task's "
                "number of clients"
            )
        return cls(tuple(i * ranks // clients for i in range(clients)), ranks)

    @property
    def clients(self) -> int:
        """The number n of clients."""
        return len(self.owners)

    @cached_property
    def owner_n(self) -> NDArray[np.int64]:
        """The owner of each client, [n]."""
        return np.asarray(self.owners, dtype=np.int64)

    @cached_property
    def by_rank(self) -> tuple[NDArray[np.int64], ...]:
        """The client ids of each rank, ascending."""
        return tuple(np.flatnonzero(self.owner_n == rank) for rank in range(self.ranks))

    @cached_property
    def row_n(self) -> NDArray[np.int64]:
        """The row of each client in its owner's X, [n]."""
        rows = np.empty(self.clients, dtype=np.int64)
        for ids in self.by_rank:
            rows[ids] = np.arange(len(ids))
        return rows

    def in_client_order(self, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Join what each rank has of its clients, [c, ...] by rank, into [n, ...] by client id."""
        joined = np.empty((self.clients, *parts[0].shape[1:]), dtype=parts[0].dtype)
        for ids, part in zip(self.by_rank, parts, strict=True):
            joined[ids] = part
        return joined
