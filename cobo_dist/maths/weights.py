"""Rows of W in compressed form: groups of clients with one common weight, and the entries that differ.

w_ij is `level` if clients i and j are in one group and 0 otherwise, except for stored entries. W = 1 is one
group of all clients; FedAvg within clusters has one group a cluster; W = 0 has level 0. A learned W stores
the weights that changed, so n clients need n^2 numbers only once that many weights have changed. A row with
fewer non-zero weights than changed ones is ungrouped: it stores those, and the rest of it is 0. Which rows
are ungrouped follows from their weights alone, so a resumed run has the same entries as an uninterrupted one.

Who makes weights says whether W is symmetric, w_ij = w_ji: a rank that holds w_ij then knows w_ji, which
saves a message (`comm.exchange`). Without a word W is directed, which is right for every W.

Shapes: c rows, n clients, m stored entries, k entries or rows requested.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

_MAX_DENSE = 1 << 22
"""Numbers in a dense piece, where rows are made dense one piece after another."""


class Weights:
    """The rows of W of some clients, [c, n].

    `version` counts the changes, so that results computed from the weights can be cached. `symmetric` says
    that w_ij = w_ji in the whole W, whatever is put into it; copies and rows of other clients keep it.

    >>> weights = Weights([0, 2], groups_n=[0, 0, 0])
    >>> weights.put(np.array([1]), np.array([0]), np.array([0.5]))
    >>> weights.dense().tolist(), weights.stored
    ([[1.0, 1.0, 1.0], [0.5, 1.0, 1.0]], 1)
    """

    def __init__(
        self,
        ids: Sequence[int] | Ints,
        groups_n: Sequence[int] | Ints,
        level: float = 1.0,
        dtype: type[np.floating[Any]] = np.float32,
        symmetric: bool = False,
    ) -> None:
        """Start with `level` within groups and 0 between them, for the rows of the clients `ids`."""
        self.symmetric = symmetric
        self.ids_c: Ints = np.asarray(ids, dtype=np.int64)
        self.groups_n: Ints = np.unique(np.asarray(groups_n), return_inverse=True)[1].reshape(-1)
        self.level = level
        self.dtype = np.dtype(dtype)
        self.ungrouped_c = np.zeros(len(self.ids_c), dtype=bool)
        self.groups_c = self.groups_n[self.ids_c]  # of each row; -1 where it is ungrouped
        self._sizes_c = np.bincount(self.groups_n)[self.groups_c]  # of each row's group
        self.version = 0
        self._changed_n = np.zeros(len(self.groups_n), dtype=np.int64)  # version of last change
        self.transpose: Weights | None = None
        """The same clients' rows of W^T, where this rank knows them though W is not symmetric."""
        self._keys: Ints = np.empty(0, dtype=np.int64)  # row * n + column, ascending
        self._values: Floats = np.empty(0, dtype=self.dtype)

    @classmethod
    def of_rows(
        cls, ids: Sequence[int] | Ints, rows_cn: Floats, symmetric: bool = False
    ) -> Weights:
        """Return weights without groups from dense rows [c, n]."""
        weights = cls(ids, np.arange(rows_cn.shape[1]), 0.0, rows_cn.dtype.type, symmetric)
        weights.put_rows(np.arange(len(rows_cn)), rows_cn)
        return weights

    @classmethod
    def of_lists(cls, lists: dict[str, NDArray[Any]]) -> Weights:
        """Return all n rows from `groups`, `level` and what `arrays` gives."""
        ids = np.arange(len(lists["groups"]))
        empty = cls(ids, lists["groups"], float(lists["level"][0]), lists["values"].dtype.type)
        return empty.with_arrays(ids, lists)

    @property
    def shape(self) -> tuple[int, int]:
        """The number of rows and of clients, (c, n)."""
        return len(self.ids_c), len(self.groups_n)

    @property
    def stored(self) -> int:
        """The number m of stored entries."""
        return len(self._keys)

    @property
    def nbytes(self) -> int:
        """The bytes of the rows."""
        return self.bytes_of(self.shape[0])

    def bytes_of(self, count: int) -> int:
        """Return the bytes that `count` of such rows would take."""
        own = (
            self.ids_c, self.ungrouped_c, self.groups_c, self._sizes_c, self._keys, self._values,
        )  # fmt: skip
        shared = self.groups_n.nbytes + self._changed_n.nbytes
        return shared + sum(one.nbytes for one in own) * count // max(1, self.shape[0])

    def copy(self) -> Weights:
        """Return an independent copy."""
        return self._with(
            self.ids_c, self.ungrouped_c.copy(), self._keys.copy(), self._values.copy()
        )

    @property
    def known_to_senders(self) -> bool:
        """Whether ranks know each other's weights for their own clients without a message."""
        return self.symmetric or self.transpose is not None

    def among(
        self,
        part_n: NDArray[np.bool_],
        *,
        all_receive: bool = False,
        receivers_n: NDArray[np.bool_] | None = None,
    ) -> Weights:
        """Return these weights with 0 for clients that do not take part: in their columns and their rows.

        `all_receive`: only in their columns, so all clients have weights for those that take part. W is then
        not symmetric; otherwise it stays so. `receivers_n`: only the rows of these are not 0. Of a symmetric
        W the senders then still know the weights.
        """
        if all_receive:
            receivers_n = np.ones(len(part_n), dtype=bool)
        if receivers_n is None:
            return self._masked(part_n, part_n, self.symmetric)
        other = self._masked(part_n, receivers_n, False)
        if self.symmetric and not all_receive:
            other.transpose = self._masked(receivers_n, part_n, False)
        return other

    def _masked(
        self, columns_n: NDArray[np.bool_], rows_n: NDArray[np.bool_], symmetric: bool
    ) -> Weights:
        """Return these weights with 0 outside of some columns and rows."""
        n, here_c = self.shape[1], rows_n[self.ids_c]
        # A client whose column is 0 is in a group of its own, to which no row belongs.
        labels_n = np.where(columns_n, self.groups_n, n + np.arange(n))
        other = Weights(self.ids_c, labels_n, self.level, self.dtype.type, symmetric)
        label_of = np.full(n, -1)  # of each group, the label of its members that are left
        label_of[self.groups_n[columns_n]] = other.groups_n[columns_n]
        other.ungrouped_c = self.ungrouped_c | ~here_c
        other.groups_c = np.where(other.ungrouped_c, -1, label_of[self.groups_c])
        sizes_n = np.bincount(other.groups_n)
        other._sizes_c = np.where(other.groups_c < 0, 0, sizes_n[other.groups_c])
        rows, columns, values = self.entries()
        kept = columns_n[columns] & here_c[rows]
        other._keys, other._values = self._keys[kept], values[kept]
        return other

    def only(self, clients_m: Ints) -> Weights:
        """Return the rows and columns of some clients, ascending, with new ids from 0; of all n rows."""
        place_n = np.full(self.shape[1], -1)
        place_n[clients_m] = np.arange(len(clients_m))
        groups_m = self.groups_n[clients_m]
        other = Weights(place_n[clients_m], groups_m, self.level, self.dtype.type, self.symmetric)
        other._set_ungrouped(self.ungrouped_c[clients_m])
        rows, columns, values = self.entries()
        kept = (place_n[rows] >= 0) & (place_n[columns] >= 0)
        other._keys = place_n[rows[kept]] * len(clients_m) + place_n[columns[kept]]
        other._values = values[kept]
        return other

    def entries(self) -> tuple[Ints, Ints, Floats]:
        """Return rows, columns and values of the stored entries, [m] each, row by row."""
        rows, columns = np.divmod(self._keys, self.shape[1])
        return rows, columns, self._values

    def _with(
        self, ids: Ints, ungrouped_c: NDArray[np.bool_], keys: Ints, values: Floats
    ) -> Weights:
        """Return the rows of some clients with the same groups and these entries."""
        other = Weights(ids, self.groups_n, self.level, self.dtype.type, self.symmetric)
        other._set_ungrouped(ungrouped_c)
        other._keys, other._values = keys, values
        return other

    def _set_ungrouped(self, ungrouped_c: NDArray[np.bool_]) -> None:
        self.ungrouped_c = ungrouped_c
        self.groups_c = np.where(ungrouped_c, -1, self.groups_n[self.ids_c])

    def changed_since(self, version: int, columns: Ints) -> bool:
        """Return whether a weight in these columns has changed since that version."""
        return version < self.version and bool((self._changed_n[columns] > version).any())

    # -- single weights ---------------------------------------------------------------------------

    def base(self, rows_k: Ints, columns_k: Ints) -> Floats:
        """Return what the groups say of these entries: their weights where they are not stored, [k]."""
        if not self.level:
            return np.zeros(len(rows_k), dtype=self.dtype)
        same = self.groups_c[rows_k] == self.groups_n[columns_k]
        return np.where(same, self.level, 0.0).astype(self.dtype)

    def at(self, rows_k: Ints, columns_k: Ints) -> Floats:
        """Return the weights at these entries, [k]."""
        keys = np.asarray(rows_k, dtype=np.int64) * self.shape[1] + columns_k
        place, found = self._find(keys)
        values = self.base(rows_k, columns_k)
        values[found] = self._values[place[found]]
        return values

    def put(self, rows_k: Ints, columns_k: Ints, values_k: Floats) -> None:
        """Set the weights at these entries, none of them twice."""
        keys = np.asarray(rows_k, dtype=np.int64) * self.shape[1] + columns_k
        order = np.argsort(keys)
        keys, values = keys[order], np.asarray(values_k, dtype=self.dtype)[order]
        rows, columns = np.asarray(rows_k)[order], np.asarray(columns_k)[order]
        place, found = self._find(keys)
        base = self.base(rows, columns)
        old = base.copy()
        old[found] = self._values[place[found]]
        changed = old != values
        if not changed.any():
            return
        self.version += 1
        self._changed_n[columns[changed]] = self.version
        self._values[place[found]] = values[found]
        plain = values == base
        new = ~found & ~plain
        if new.any():
            self._insert(place[new], keys[new], values[new])
        if (found & plain).any():  # the groups say the same, so they need not be stored
            kept = np.ones(len(self._keys), dtype=bool)
            kept[self._find(keys[found & plain])[0]] = False
            self._keys, self._values = self._keys[kept], self._values[kept]
        if self.level:
            self._regroup(np.unique(rows[changed]))

    def _insert(self, place: Ints, keys: Ints, values: Floats) -> None:
        at = place + np.arange(len(keys))
        old = np.ones(len(self._keys) + len(keys), dtype=bool)
        old[at] = False
        all_keys, all_values = np.empty(len(old), np.int64), np.empty(len(old), self.dtype)
        all_keys[old], all_keys[at] = self._keys, keys
        all_values[old], all_values[at] = self._values, values
        self._keys, self._values = all_keys, all_values

    def _find(self, keys: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        place = np.searchsorted(self._keys, keys)
        found = np.zeros(len(keys), dtype=bool)
        inside = place < len(self._keys)
        found[inside] = self._keys[place[inside]] == keys[inside]
        return place, found

    def _regroup(self, rows_k: Ints) -> None:
        """Make changed rows ungrouped or grouped, whichever stores fewer entries."""
        n = self.shape[1]
        starts = np.searchsorted(self._keys, np.stack([rows_k, rows_k + 1]) * n)
        sizes_k = self._sizes_c[rows_k]
        near = 2 * (starts[1] - starts[0]) >= sizes_k  # the others cannot store fewer
        if not near.any():
            return
        rows_k, sizes_k, (begin, end) = rows_k[near], sizes_k[near], starts[:, near]
        lengths = end - begin
        at = np.repeat(begin - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
        owner = np.repeat(np.arange(len(rows_k)), lengths)
        values = self._values[at]
        same = self.groups_n[self._keys[at] % n] == self.groups_n[self.ids_c[rows_k]][owner]

        def count(which: NDArray[np.bool_]) -> Ints:
            return np.bincount(owner[which], minlength=len(rows_k))

        ungrouped_k, across_k = self.ungrouped_c[rows_k], count(~same)
        # An ungrouped row stores its non-zero weights, a grouped one those that differ from the group's.
        nonzero_k = np.where(ungrouped_k, lengths, sizes_k - count(same & (values == 0)) + across_k)
        inside_k = count(same & (values == self.dtype.type(self.level)))
        differ_k = np.where(ungrouped_k, sizes_k - inside_k + across_k, lengths)
        flips = rows_k[(nonzero_k < differ_k) != ungrouped_k]
        for piece in _pieces(flips, n):
            self._store(piece, self.rows(piece))

    # -- whole rows -------------------------------------------------------------------------------

    def rows(self, rows_k: Ints) -> Floats:
        """Return some rows, dense, [k, n]."""
        rows_k = np.asarray(rows_k, dtype=np.int64)
        n = self.shape[1]
        same_kn = self.groups_c[rows_k, None] == self.groups_n[None, :]
        dense_kn = np.where(same_kn, self.level, 0.0).astype(self.dtype)
        for k, row in enumerate(rows_k.tolist()):
            begin, end = np.searchsorted(self._keys, (row * n, (row + 1) * n))
            dense_kn[k, self._keys[begin:end] - row * n] = self._values[begin:end]
        return dense_kn

    def dense(self) -> Floats:
        """Return all rows, dense, [c, n]."""
        return self.rows(np.arange(self.shape[0]))

    def each_row(self) -> Iterator[Floats]:
        """Yield each row, dense, [n]."""
        for row in range(self.shape[0]):
            yield self.rows(np.array([row]))[0]

    def put_rows(self, rows_k: Ints, dense_kn: Floats) -> None:
        """Set whole rows from a matrix [k, n]."""
        rows_k = np.asarray(rows_k, dtype=np.int64)
        self.version += 1
        self._changed_n[:] = self.version
        order = np.argsort(rows_k)
        for piece in _pieces(order, self.shape[1]):
            self._store(rows_k[piece], dense_kn[piece].astype(self.dtype))

    def _store(self, rows_k: Ints, dense_kn: Floats) -> None:
        """Store rows in the way that needs fewer entries; `rows_k` ascends."""
        n = self.shape[1]
        same_kn = self.groups_n[self.ids_c[rows_k], None] == self.groups_n[None, :]
        stored_kn = dense_kn != np.where(same_kn, self.level, 0.0).astype(self.dtype)
        if self.level:
            nonzero_kn = dense_kn != 0
            ungrouped_k = nonzero_kn.sum(axis=1) < stored_kn.sum(axis=1)
            stored_kn[ungrouped_k] = nonzero_kn[ungrouped_k]
            self.ungrouped_c[rows_k] = ungrouped_k
            self._set_ungrouped(self.ungrouped_c)
        row, column = np.nonzero(stored_kn)
        kept = np.ones(len(self._keys), dtype=bool)
        for begin, end in zip(
            *np.searchsorted(self._keys, np.stack([rows_k, rows_k + 1]) * n), strict=True
        ):
            kept[begin:end] = False
        keys = np.concatenate([self._keys[kept], rows_k[row] * n + column])
        values = np.concatenate([self._values[kept], dense_kn[row, column]])
        order = np.argsort(keys, kind="stable")
        self._keys, self._values = keys[order], values[order]

    def sums(self, factors_n: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Return the sum of every row, [c]; with `factors_n`, sum_k w_ik f_k."""
        rows, columns, values = self.entries()
        more = values.astype(np.float64) - self.base(rows, columns)
        sizes_c: NDArray[Any] = self._sizes_c
        if factors_n is not None:
            more *= factors_n[columns]
            sizes_c = np.bincount(self.groups_n, weights=factors_n)[self.groups_c]
        counted = np.bincount(rows, weights=more, minlength=self.shape[0])
        answer: NDArray[np.float64] = (
            float(self.level) * np.where(self.groups_c < 0, 0, sizes_c) + counted
        )
        return answer

    # -- to send and to save ----------------------------------------------------------------------

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return `apart` (ungrouped) [c], `counts` of entries a row [c], their `columns` and `values` [m]."""
        n = self.shape[1]
        starts = np.searchsorted(self._keys, np.arange(self.shape[0] + 1) * n)
        return {
            "apart": self.ungrouped_c.astype(np.uint8),
            "counts": np.diff(starts),
            "columns": (self._keys % n).astype(np.int32),
            "values": self._values,
        }

    def with_arrays(self, ids: Ints, arrays: dict[str, NDArray[Any]]) -> Weights:
        """Return the rows of other clients with the same groups, in ascending order, from their `arrays`."""
        keys = np.repeat(np.arange(len(ids)), arrays["counts"]) * self.shape[1] + arrays["columns"]
        values = arrays["values"].astype(self.dtype)
        return self._with(ids, arrays["apart"].astype(bool), keys, values)


def join(parts: Sequence[Weights]) -> Weights:
    """Return the rows of all parts, which have the same groups, in the order of their clients."""
    ids = np.concatenate([part.ids_c for part in parts])
    order = np.argsort(ids, kind="stable")
    place = np.empty(len(ids), dtype=np.int64)  # of each row among all
    place[order] = np.arange(len(ids))
    n = parts[0].shape[1]
    begin, keys = 0, []
    for part in parts:
        rows, columns, _ = part.entries()
        keys.append(place[begin + rows] * n + columns)
        begin += part.shape[0]
    all_keys = np.concatenate(keys)
    ascending = np.argsort(all_keys, kind="stable")
    ungrouped_n = np.concatenate([part.ungrouped_c for part in parts])[order]
    values = np.concatenate([part._values for part in parts])[ascending]
    return parts[0]._with(ids[order], ungrouped_n, all_keys[ascending], values)


def _pieces(numbers: Ints, n: int) -> Iterator[Ints]:
    """Cut row numbers into pieces whose dense rows are small enough."""
    step = max(1, _MAX_DENSE // max(1, n))
    for at in range(0, len(numbers), step):
        yield numbers[at : at + step]
