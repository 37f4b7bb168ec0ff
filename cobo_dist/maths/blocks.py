"""A block of W, the weights that one rank's clients give another's, as W itself keeps it: groups and entries.

What is asked of a block, how many of its columns or rows are all zeros or all ones and which rows are
alike, follows from the numbers in it, however they are listed, and costs as much as there are clients and
entries. So both ranks find the same of a block that each reads from its own rows.

Shapes: r receivers, s senders, m entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cobo_dist.maths.weights import Floats, Ints, Weights

Hashes = NDArray[np.uint64]

SMALL = 1 << 14
"""Numbers up to which a block is written out: to look at them all takes less time than to spare them."""


@dataclass(frozen=True)
class Block:
    """B [r, s]: `level` where receiver and sender are of one group, 0 elsewhere, but for the entries.

    Entries are in any order, no place twice. A group that is nobody's else is a negative number.
    """

    row_groups: Ints
    column_groups: Ints
    level: float
    rows: Ints
    columns: Ints
    values: Floats

    @classmethod
    def of(cls, block_rs: Floats) -> Block:
        """Return a matrix that is written out as a block."""
        rows, columns = np.nonzero(block_rs)
        none = np.full(block_rs.shape[0], -1), np.full(block_rs.shape[1], -2)
        return cls(*none, 0.0, rows, columns, block_rs[rows, columns])

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of receivers and of senders, (r, s)."""
        return len(self.row_groups), len(self.column_groups)

    @property
    def transposed(self) -> Block:
        """The same weights seen from the other side."""
        # The numbers that mean no group must not meet.
        rows = np.where(self.column_groups < 0, -1, self.column_groups)
        columns = np.where(self.row_groups < 0, -2, self.row_groups)
        return Block(rows, columns, self.level, self.columns, self.rows, self.values)

    @cached_property
    def dense(self) -> Floats:
        """The block written out, [r, s]; only for a small one."""
        block_rs = np.zeros(self.shape, dtype=self.values.dtype)
        if self.level:
            block_rs[self.row_groups[:, None] == self.column_groups[None, :]] = self.level
        block_rs[self.rows, self.columns] = self.values
        return block_rs

    @property
    def base(self) -> Floats:
        """What the groups say of the places that are listed, [m]."""
        same = self.row_groups[self.rows] == self.column_groups[self.columns]
        return np.where(same, self.level, 0.0).astype(self.values.dtype)

    def counts(self) -> tuple[Ints, Ints, Ints, Ints]:
        """Return how many weights are not 0 in each row [r] and column [s], and how many are 1, likewise."""
        r, s = self.shape
        if r * s <= SMALL:
            block_rs = self.dense
            nonzero_rs, ones_rs = block_rs != 0, block_rs == 1
            return nonzero_rs.sum(1), nonzero_rs.sum(0), ones_rs.sum(1), ones_rs.sum(0)
        base = self.base
        more = (self.values != 0).astype(np.int8) - (base != 0)
        ones = (self.values == 1).astype(np.int8) - (base == 1)
        rows, columns = _meetings(self.row_groups, self.column_groups) if self.level else (0, 0)
        full = int(self.level == 1.0)
        return (
            rows + _tally(self.rows, more, r),
            columns + _tally(self.columns, more, s),
            full * rows + _tally(self.rows, ones, r),
            full * columns + _tally(self.columns, ones, s),
        )

    def row_classes(self) -> Ints:
        """Return a number for each row, [r]: the same for rows that are equal, by order of appearance.

        Rows are told apart by 128 bits of a hash that adds up over their weights.
        """
        r, s = self.shape
        if r * s <= SMALL:
            seen: dict[bytes, int] = {}
            plain = self.dense + 0.0  # of the two zeros there are, one
            return np.array([seen.setdefault(row.tobytes(), len(seen)) for row in plain])
        senders = np.arange(s, dtype=np.uint64)
        level_s = _hash(senders, np.full(s, self.level, dtype=self.values.dtype))
        entries = _hash(senders[self.columns], self.values)
        same = (self.base != 0).astype(np.uint64)
        sums = []
        for level, entry in zip(level_s, entries, strict=True):
            sum_r = np.zeros(r, dtype=np.uint64)
            if self.level:
                sum_r += _of_groups(self.row_groups, self.column_groups, level)
            np.add.at(sum_r, self.rows, entry - same * level[self.columns])
            sums.append(sum_r)
        both = np.rec.fromarrays(sums)
        _, first, number = np.unique(both, return_index=True, return_inverse=True)
        order = np.empty(len(first), dtype=np.int64)
        order[np.argsort(first)] = np.arange(len(first))
        found: Ints = order[number.reshape(-1)]
        return found


def blocks_of(weights: Weights, by_rank: Sequence[Ints]) -> list[Block]:
    """Return the blocks of some rows of W against the clients of each rank."""
    rows, columns, values = weights.entries()
    row_groups, groups_n = weights.groups_c, weights.groups_n
    owner_n, place_n = np.empty(len(groups_n), np.int64), np.empty(len(groups_n), np.int64)
    for rank, ids in enumerate(by_rank):
        owner_n[ids], place_n[ids] = rank, np.arange(len(ids))
    owner_m = owner_n[columns]
    blocks = []
    for rank, ids in enumerate(by_rank):
        mine = np.flatnonzero(owner_m == rank) if len(by_rank) > 1 else slice(None)
        listed = rows[mine], place_n[columns[mine]], values[mine]
        blocks.append(Block(row_groups, groups_n[ids], weights.level, *listed))
    return blocks


def rows_of(block: Block, rows: Ints) -> Block:
    """Return some rows of a block, in ascending order."""
    place = np.full(block.shape[0], -1)
    place[rows] = np.arange(len(rows))
    kept = place[block.rows] >= 0
    listed = place[block.rows[kept]], block.columns[kept], block.values[kept]
    return Block(block.row_groups[rows], block.column_groups, block.level, *listed)


def columns_of(block: Block, columns: Ints) -> Block:
    """Return some columns of a block, in ascending order."""
    if len(columns) == block.shape[1]:
        return block
    return rows_of(block.transposed, columns).transposed


def _tally(places: Ints, amounts: NDArray[np.int8], length: int) -> Ints:
    # Whole numbers: floats hold them exactly.
    return np.bincount(places, weights=amounts, minlength=length).astype(np.int64)


def _meetings(row_groups: Ints, column_groups: Ints) -> tuple[Ints, Ints]:
    """Return how many columns are of each row's group [r], and how many rows of each column's [s]."""
    one = np.ones(1, dtype=np.uint64)
    rows = _of_groups(row_groups, column_groups, np.broadcast_to(one, len(column_groups)))
    columns = _of_groups(column_groups, row_groups, np.broadcast_to(one, len(row_groups)))
    return rows.astype(np.int64), columns.astype(np.int64)


def _of_groups(asking: Ints, asked: Ints, amounts: Hashes) -> Hashes:
    """Return for each that asks the sum of the amounts of those of its group, modulo 2^64."""
    sums = np.zeros(1 + max(int(asking.max(initial=0)), int(asked.max(initial=0))), dtype=np.uint64)
    known = asked >= 0
    np.add.at(sums, asked[known], amounts[known])
    return np.where(asking >= 0, sums[np.maximum(asking, 0)], np.uint64(0))


def _hash(senders: Hashes, values: Floats) -> tuple[Hashes, Hashes]:
    """Return two hashes of each (sender, weight), [m]; of weight 0 they are 0."""
    bits = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}").astype(np.uint64)
    one = _mix(_mix(senders) ^ bits)
    other = _mix(one ^ np.uint64(0x6A09E667F3BCC909))
    nothing = values == 0
    one[nothing] = other[nothing] = 0
    return one, other


def _mix(x: Hashes) -> Hashes:
    """SplitMix64's step and finaliser."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
