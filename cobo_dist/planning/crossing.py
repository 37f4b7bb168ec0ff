"""How many models cross between ranks for sum_k w_ik x_k, by the plans of the exchange.

Shapes: n clients, R ranks, S of them counted, k sums.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from cobo_dist.comm.mixing_plan import Planner, planner
from cobo_dist.comm.placement import Placement
from cobo_dist.maths.blocks import Block
from cobo_dist.maths.weights import Weights

Ints = NDArray[np.int64]


class CrossingModels:
    """Counts the models that some ranks exchange with all other ranks."""

    def __init__(self, placement: Placement, ranks: Ints, deterministic: bool) -> None:
        """Count for `ranks`, with the plans that comm.deterministic asks for."""
        self.placement, self.ranks, self.deterministic = placement, ranks, deterministic
        self._plan = planner(deterministic)

    def mix(self, weights: Weights) -> tuple[Ints, Ints]:
        """Return the models that each counted rank receives from every rank and sends to it, [S, R] twice.

        `weights` has all n rows of W. A rank exchanges none with itself.
        """
        blocks = _BlocksByRank(weights, self.placement, self._plan)
        size = len(self.ranks), self.placement.ranks
        received_sr, sent_sr = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
        for s, rank in enumerate(self.ranks.tolist()):
            for peer in blocks.peers_of(rank):
                received_sr[s, peer] = blocks.models(rank, peer)
                sent_sr[s, peer] = blocks.models(peer, rank)
        return received_sr, sent_sr

    def mix_unlike(self) -> tuple[Ints, Ints]:
        """As `mix`, for weights of which no two are equal: then no plan saves a model."""
        clients_r = np.array([len(clients) for clients in self.placement.by_rank])
        other_sr = self.ranks[:, None] != np.arange(self.placement.ranks)
        received_sr = np.where(other_sr, clients_r, 0)
        sent_sr = np.where(other_sr, clients_r[self.ranks, None], 0)
        if self.deterministic:
            return received_sr, sent_sr
        fewest_sr = np.minimum(received_sr, sent_sr)
        return fewest_sr, fewest_sr

    def all_reduce(self, weights_kn: NDArray[np.floating], own_rows: bool = False) -> Ints:
        """Return the models that each rank sends to every other for the same k sums on all ranks, [R].

        `own_rows`: each sum has rows of its own.
        """
        block_of = Block.of_own_rows if own_rows else Block.of
        models_r = np.zeros(self.placement.ranks, dtype=np.int64)
        known: dict[bytes, int] = {}  # many ranks of a large run have the same weights
        used_n = (weights_kn != 0).any(axis=0)
        for rank in np.unique(self.placement.owner_n[used_n]).tolist():
            weights_kc = np.ascontiguousarray(weights_kn[:, self.placement.by_rank[rank]])
            key = weights_kc.tobytes()
            if key not in known:
                known[key] = self._plan(block_of(weights_kc)).models
            models_r[rank] = known[key]
        return models_r


class _BlocksByRank:
    """The blocks of W between ranks, of which many are alike where no entry is listed."""

    def __init__(self, weights: Weights, placement: Placement, plan: Planner) -> None:
        self.weights, self.placement, self.plan = weights, placement, plan
        # Rows of one group are equal where nothing is listed, and a plan depends on the different rows only.
        groups_of = [weights.groups_c[ids] for ids in placement.by_rank]
        self._rows = [np.unique(groups_c) for groups_c in groups_of]
        self._columns = [weights.groups_n[ids] for ids in placement.by_rank]
        self._row_kinds, self._column_kinds = _kinds(self._rows), _kinds(self._columns)
        self._known: dict[tuple[int, int], int] = {}
        rows, columns, values = weights.entries()
        pairs_m = placement.owner_n[rows] * placement.ranks + placement.owner_n[columns]
        order = np.argsort(pairs_m, kind="stable")
        self._entry_rows = placement.row_n[rows[order]]
        self._entry_columns = placement.row_n[columns[order]]
        self._entry_values = values[order]
        pairs, starts = np.unique(pairs_m[order], return_index=True)
        bounds = np.append(starts, len(order)).tolist()
        self._listed = {
            divmod(pair, placement.ranks): slice(*bounds[k : k + 2])
            for k, pair in enumerate(pairs.tolist())
        }

    def peers_of(self, rank: int) -> list[int]:
        """Return the other ranks whose blocks with this one may hold a weight that is not 0."""
        peers = {source for to, source in self._listed if to == rank}
        peers |= {to for to, source in self._listed if source == rank}
        if self.weights.level:
            mine = np.zeros(int(self.weights.groups_n.max()) + 1, dtype=bool)
            mine[self._columns[rank]] = True
            mine[self._rows[rank][self._rows[rank] >= 0]] = True
            groups_n = self.weights.groups_c  # of the rows, which may be in groups of other columns
            alike_n = mine[self.weights.groups_n] | ((groups_n >= 0) & mine[groups_n])
            peers |= set(np.flatnonzero(np.bincount(self.placement.owner_n[alike_n])).tolist())
        return sorted(peers - {rank})

    def models(self, to: int, source: int) -> int:
        """Return how many models cross for the block W[to's clients, source's clients]."""
        if (listed := self._listed.get((to, source))) is not None:
            groups_c = self.weights.groups_c[self.placement.by_rank[to]]
            return self.plan(self._block(groups_c, source, listed)).models
        kinds = self._row_kinds[to], self._column_kinds[source]
        if kinds not in self._known:
            block = self._block(self._rows[to], source, slice(0))
            self._known[kinds] = self.plan(block).models
        return self._known[kinds]

    def _block(self, row_groups: Ints, source: int, listed: slice) -> Block:
        return Block(
            row_groups,
            self._columns[source],
            self.weights.level,
            self._entry_rows[listed],
            self._entry_columns[listed],
            self._entry_values[listed],
        )


def _kinds(groups_of: Iterable[Ints]) -> list[int]:
    """Return a number for each array: the same for equal ones."""
    seen: dict[bytes, int] = {}
    return [seen.setdefault(groups.tobytes(), len(seen)) for groups in groups_of]
