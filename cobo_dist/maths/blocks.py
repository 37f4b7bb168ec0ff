"""A block of W: the weights that one rank's clients give another's, in groups and stored entries like W.

A plan needs to know how many weights in each row and column are not 0 or are 1, and which rows are equal. The
answers depend on the weights alone, not on how they are stored, and cost O(clients + entries). So two ranks
that read a block from their own rows each get the same answers.

Shapes: r receivers, s senders, m stored entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from cobo_dist.maths import seeds
from cobo_dist.maths.weights import Floats, Ints, Weights

Hashes = NDArray[np.uint64]

MAX_DENSE = 1 << 14
"""Weights up to which a block is made dense: then looking at all of them is faster."""


@dataclass(frozen=True)
class Block:
    """B [r, s]: `level` where receiver and sender are in one group, 0 elsewhere, except for the entries.

    Entries are in any order, none of them twice. A negative number is no group.
    """

    row_groups: Ints
    column_groups: Ints
    level: float
    rows: Ints
    columns: Ints
    values: Floats

    @classmethod
    def of(cls, block_rs: Floats) -> Block:
        """Return a dense matrix as a block."""
        rows, columns = np.nonzero(block_rs)
        none = np.full(block_rs.shape[0], -1), np.full(block_rs.shape[1], -2)
        return cls(*none, 0.0, rows, columns, block_rs[rows, columns])

    @classmethod
    def of_own_rows(cls, block_rs: Floats) -> Block:
        """Return [r, r * s]: each receiver of a dense matrix has s senders of its own."""
        r, s = block_rs.shape
        rows, columns = np.nonzero(block_rs)
        none = np.full(r, -1), np.full(r * s, -2)
        return cls(*none, 0.0, rows, rows * s + columns, block_rs[rows, columns])

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of receivers and of senders, (r, s)."""
        return len(self.row_groups), len(self.column_groups)

    @property
    def transposed(self) -> Block:
        """The transpose, [s, r]."""
        # Rows and columns without a group must have different numbers.
        rows = np.where(self.column_groups < 0, -1, self.column_groups)
        columns = np.where(self.row_groups < 0, -2, self.row_groups)
        return Block(rows, columns, self.level, self.columns, self.rows, self.values)

    @cached_property
    def dense(self) -> Floats:
        """The dense matrix [r, s]; only for a small block."""
        block_rs = np.zeros(self.shape, dtype=self.values.dtype)
        if self.level:
            block_rs[self.row_groups[:, None] == self.column_groups[None, :]] = self.level
        block_rs[self.rows, self.columns] = self.values
        return block_rs

    @property
    def base(self) -> Floats:
        """What the groups say of the stored entries, [m]."""
        same = self.row_groups[self.rows] == self.column_groups[self.columns]
        return np.where(same, self.level, 0.0).astype(self.values.dtype)

    def counts(self) -> tuple[Ints, Ints, Ints, Ints]:
        """Return how many weights in each row [r] and column [s] are not 0, then how many are 1."""
        r, s = self.shape
        if r * s <= MAX_DENSE:
            block_rs = self.dense
            nonzero_rs, ones_rs = block_rs != 0, block_rs == 1
            return nonzero_rs.sum(1), nonzero_rs.sum(0), ones_rs.sum(1), ones_rs.sum(0)
        base = self.base
        more = (self.values != 0).astype(np.int8) - (base != 0)
        ones = (self.values == 1).astype(np.int8) - (base == 1)
        rows, columns = _group_sizes(self.row_groups, self.column_groups) if self.level else (0, 0)
        full = int(self.level == 1.0)
        return (
            rows + _count(self.rows, more, r),
            columns + _count(self.columns, more, s),
            full * rows + _count(self.rows, ones, r),
            full * columns + _count(self.columns, ones, s),
        )

    def row_classes(self) -> Ints:
        """Return a number for each row, [r]: the same for equal rows, in order of appearance.

        In a large block, rows are compared by a 128-bit hash that is a sum over their weights.
        """
        r, s = self.shape
        if r * s <= MAX_DENSE:
            seen: dict[bytes, int] = {}
            without_minus_zero = self.dense + 0.0
            return np.array(
                [seen.setdefault(row.tobytes(), len(seen)) for row in without_minus_zero]
            )
        senders = np.arange(s, dtype=np.uint64)
        level_s = _hash(senders, np.full(s, self.level, dtype=self.values.dtype))
        entries = _hash(senders[self.columns], self.values)
        same = (self.base != 0).astype(np.uint64)
        sums = []
        for level, entry in zip(level_s, entries, strict=True):
            sum_r = np.zeros(r, dtype=np.uint64)
            if self.level:
                sum_r += _sum_in_group(self.row_groups, self.column_groups, level)
            np.add.at(sum_r, self.rows, entry - same * level[self.columns])
            sums.append(sum_r)
        both = np.rec.fromarrays(sums)
        _, first, number = np.unique(both, return_index=True, return_inverse=True)
        order = np.empty(len(first), dtype=np.int64)
        order[np.argsort(first)] = np.arange(len(first))
        found: Ints = order[number.reshape(-1)]
        return found


def blocks_of(weights: Weights, by_rank: Sequence[Ints]) -> list[Block]:
    """Return the blocks of some rows of W, one for the clients of each rank."""
    rows, columns, values = weights.entries()
    row_groups, groups_n = weights.groups_c, weights.groups_n
    owner_n, place_n = np.empty(len(groups_n), np.int64), np.empty(len(groups_n), np.int64)
    for rank, ids in enumerate(by_rank):
        owner_n[ids], place_n[ids] = rank, np.arange(len(ids))
    owner_m = owner_n[columns]
    blocks = []
    for rank, ids in enumerate(by_rank):
        mine = np.flatnonzero(owner_m == rank) if len(by_rank) > 1 else slice(None)
        entries = rows[mine], place_n[columns[mine]], values[mine]
        blocks.append(Block(row_groups, groups_n[ids], weights.level, *entries))
    return blocks


def rows_of(block: Block, rows: Ints) -> Block:
    """Return some rows of a block, in ascending order."""
    place = np.full(block.shape[0], -1)
    place[rows] = np.arange(len(rows))
    kept = place[block.rows] >= 0
    entries = place[block.rows[kept]], block.columns[kept], block.values[kept]
    return Block(block.row_groups[rows], block.column_groups, block.level, *entries)


def columns_of(block: Block, columns: Ints) -> Block:
    """Return some columns of a block, in ascending order."""
    if len(columns) == block.shape[1]:
        return block
    return rows_of(block.transposed, columns).transposed


def _count(places: Ints, amounts: NDArray[np.int8], length: int) -> Ints:
    # Whole numbers: floats hold them exactly.
    return np.bincount(places, weights=amounts, minlength=length).astype(np.int64)


def _group_sizes(row_groups: Ints, column_groups: Ints) -> tuple[Ints, Ints]:
    """Return how many columns are in each row's group [r], and how many rows in each column's [s]."""
    one = np.ones(1, dtype=np.uint64)
    rows = _sum_in_group(row_groups, column_groups, np.broadcast_to(one, len(column_groups)))
    columns = _sum_in_group(column_groups, row_groups, np.broadcast_to(one, len(row_groups)))
    return rows.astype(np.int64), columns.astype(np.int64)


def _sum_in_group(groups: Ints, other_groups: Ints, amounts: Hashes) -> Hashes:
    """Return for each element the sum of the amounts of the others in its group, modulo 2^64."""
    count = 1 + max(int(groups.max(initial=0)), int(other_groups.max(initial=0)))
    sums = np.zeros(count, dtype=np.uint64)
    known = other_groups >= 0
    np.add.at(sums, other_groups[known], amounts[known])
    return np.where(groups >= 0, sums[np.maximum(groups, 0)], np.uint64(0))


def _hash(senders: Hashes, values: Floats) -> tuple[Hashes, Hashes]:
    """Return two hashes of each (sender, weight), [m]; both are 0 for weight 0."""
    bits = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}").astype(np.uint64)
    one = _mix(_mix(senders) ^ bits)
    other = _mix(one ^ np.uint64(0x6A09E667F3BCC909))
    nothing = values == 0
    one[nothing] = other[nothing] = 0
    return one, other


def _mix(numbers: Hashes) -> Hashes:
    """Apply SplitMix64's step and finalizer."""
    mixed = seeds.mix(torch.from_numpy(numbers.view(np.int64)) + seeds.signed(seeds.STEP))
    return mixed.numpy().view(np.uint64)
