"""Reads the sparse W of many clients, and reduces it to the size of a picture: means of cells of clients.

W.npz keeps it as lists: a snapshot lists the weights that differ from the default, row by row. The default
is `level` between two clients of one of its groups, and 0 elsewhere and in rows marked `apart`. No array
here is n x n.

Shapes: n clients, k snapshots, b cells.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cobo_dist.maths.graph import component_labels, link_threshold, means_by_truth
from cobo_dist.maths.weights import Weights
from cobo_dist.reports.reading.seriation import by_component
from cobo_dist.reports.reading.series import Series
from cobo_dist.storage.array_schema import (
    OF_CLIENTS,
    WEIGHT_LISTS,
    check_arrays,
    check_lists,
    listed_rounds,
)

CELLS = 250
"""The most rows and columns of a picture."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Cells:
    """The assignment of clients to cells, for pictures of W that have fewer pixels than clients.

    `of` [n] is each client's cell; clients of one cluster are next to each other or, where the true
    clusters are unknown, those of one connected component of the last W, the largest first. `links` are
    the mean weights over single clients, as `series.link_strengths` computes them for a dense W.
    """

    of: Ints
    oracle: npt.NDArray[np.float32] | None  # [b, b], the share of pairs of one true cluster
    links: Mapping[str, Series]
    absent: npt.NDArray[np.bool_] | None = (
        None  # [k, n], clients that are not in the run; None: all are
    )

    @property
    def clients(self) -> int:
        """The number of clients n."""
        return len(self.of)

    @cached_property
    def largest(self) -> int:
        """The most clients in a cell."""
        return int(np.bincount(self.of).max())

    def first(self, cell: int) -> int:
        """How many clients come before a cell."""
        return int((self.of < cell).sum())


def read_listed(
    stored: Mapping[str, npt.NDArray[np.generic]], share_of: Callable[[int], float] = lambda _: 0.0
) -> tuple[Ints, npt.NDArray[np.float32], Cells]:
    """Return the rounds [k], the mean weights of cells [k, b, b], and the cells. Reads a snapshot at a time.

    `share_of` gives one client's equal share of a row of W among n clients, 0 if rows do not sum to 1.

    Raises:
        SchemaError: arrays are missing or do not go together.
    """
    rounds = listed_rounds(stored)
    n = check_arrays(OF_CLIENTS, stored, n=len(stored[f"{rounds[0]}.groups"]))["n"]
    clusters = stored.get("clusters")
    if clusters is None:
        last = read_snapshot(stored, rounds[-1], n)
        order = by_component(component_labels(last, link_threshold(share_of(n))))
    else:
        order = np.argsort(clusters, kind="stable")
    of = np.empty(n, dtype=np.int64)
    of[order] = np.arange(n) * min(n, CELLS) // n
    truth = np.zeros(n, dtype=np.int64) if clusters is None else _numbers(clusters)
    switches = np.asarray(stored.get("switches", ())).tolist()
    truths = [truth, *map(_numbers, stored.get("later_clusters", ()))]
    means: list[npt.NDArray[np.float32]] = []
    links: dict[str, Series] = {"within": {}, "across": {}}
    for number in rounds:
        snapshot = read_snapshot(stored, number, n)
        means.append(cell_means(snapshot, of))
        now = truths[bisect_right(switches, number) if len(truths) > 1 else 0]
        for name, mean in zip(links, means_by_truth(snapshot, now.tolist()), strict=True):
            links[name][number] = mean
    if clusters is None:
        links = {"all pairs": links["within"]}
    oracle = None
    if clusters is not None:
        oracle = cell_means(Weights(range(n), truth), of)
    found = {name: one for name, one in links.items() if np.isfinite(list(one.values())).any()}
    return np.asarray(rounds, dtype=np.int64), np.stack(means), Cells(of, oracle, found)


def _parts(
    stored: Mapping[str, npt.NDArray[np.generic]], number: int, n: int
) -> dict[str, npt.NDArray[Any]]:
    """The lists of one snapshot, by name."""
    names = [f"{number}.{one.name}" for one in WEIGHT_LISTS]
    found = {name: np.asarray(stored[name]) for name in names if name in stored}
    check_lists(found, f"{number}.", n=n)
    return {name.partition(".")[2]: array for name, array in found.items()}


def read_snapshot(stored: Mapping[str, npt.NDArray[np.generic]], number: int, n: int) -> Weights:
    """Return W after a logged round, all rows of the n clients.

    Raises:
        SchemaError: arrays are missing or do not go together.
    """
    found = Weights.of_lists(_parts(stored, number, n))
    rows, columns, values = found.entries()
    # Of an asymmetric W, components need a dense matrix (`maths.graph`).
    found.symmetric = np.array_equal(found.at(columns, rows), values, equal_nan=True)
    return found


def _numbers(labels: npt.NDArray[np.generic]) -> Ints:
    numbers: Ints = np.unique(labels, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return numbers


def cell_means(weights: Weights, of: Ints) -> npt.NDArray[np.float32]:
    """The mean weight of each pair of b cells, without clients' weights for themselves. [b, b]

    `of` is the cell of each client, [n].
    """
    from scipy.sparse import coo_array

    sizes, stays = np.bincount(of), ~weights.ungrouped_c
    b, groups = len(sizes), 1 + int(weights.groups_n.max())
    every = np.ones(len(of))
    columns = coo_array((every, (of, weights.groups_n)), shape=(b, groups)).tocsr()
    kept = every[stays], (of[stays], weights.groups_n[stays])
    grouped = (coo_array(kept, shape=(b, groups)).tocsr() @ columns.T).toarray()
    grouped -= np.diag(np.bincount(of[stays], minlength=b))
    row, column, values = weights.entries()
    off = row != column
    more = (values.astype(np.float64) - weights.base(row, column))[off]
    places = of[row[off]] * b + of[column[off]]
    sums = np.bincount(places, weights=more, minlength=b * b).reshape(b, b)
    counts = np.outer(sizes, sizes) - np.diag(sizes)
    means = (weights.level * grouped + sums) / np.maximum(counts, 1)
    return np.asarray(means, dtype=np.float32)
