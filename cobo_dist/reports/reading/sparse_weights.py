"""Reads the sparse W of many clients, and reduces it to the size of a picture: means of cells of clients.

W.npz keeps it as lists: a snapshot lists the weights that differ from the default, row by row. The default
is `level` between two clients of one of its groups, and 0 elsewhere and in rows marked `apart`. No array
here is n x n.

Shapes: n clients, k snapshots, m entries of one, b cells.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cobo_dist.maths.graph import component_labels, link_threshold
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
Floats = npt.NDArray[np.float64]


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


@dataclass(frozen=True)
class _Snapshot:
    groups: Ints  # [n]
    level: float
    apart: npt.NDArray[np.bool_]  # [n]
    rows: Ints  # [m], like the others
    columns: Ints
    more: Floats  # the difference of a listed weight from the default


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
        order = by_component(_components(stored, rounds[-1], n, link_threshold(share_of(n))))
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
        snapshot = _read(stored, number, n)
        means.append(_cell_means(snapshot, of))
        now = truths[bisect_right(switches, number) if len(truths) > 1 else 0]
        for name, mean in zip(links, _mean_by_truth(snapshot, now), strict=True):
            links[name][number] = mean
    if clusters is None:
        links = {"all pairs": links["within"]}
    oracle = None
    if clusters is not None:
        none = np.empty(0, dtype=np.int64)
        same = _Snapshot(truth, 1.0, np.zeros(n, dtype=bool), none, none, none.astype(np.float64))
        oracle = _cell_means(same, of)
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


def _components(
    stored: Mapping[str, npt.NDArray[np.generic]], number: int, n: int, threshold: float
) -> Ints:
    """The connected component of each client in one snapshot. [n]"""
    parts, ids = _parts(stored, number, n), np.arange(n)
    empty = Weights(ids, parts["groups"], float(parts["level"][0]), symmetric=True)
    return component_labels(empty.with_arrays(ids, parts), threshold)


def _read(stored: Mapping[str, npt.NDArray[np.generic]], number: int, n: int) -> _Snapshot:
    parts = _parts(stored, number, n)
    columns = parts["columns"].astype(np.int64)
    rows = np.repeat(np.arange(n), parts["counts"].astype(np.int64))
    groups, apart = _numbers(parts["groups"]), parts["apart"].astype(bool)
    level = float(parts["level"][0])
    base = np.where((groups[rows] == groups[columns]) & ~apart[rows], level, 0.0)
    off = rows != columns
    more = parts["values"].astype(np.float64) - base
    return _Snapshot(groups, level, apart, rows[off], columns[off], more[off])


def _numbers(labels: npt.NDArray[np.generic]) -> Ints:
    numbers: Ints = np.unique(labels, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return numbers


def _cell_means(snapshot: _Snapshot, of: Ints) -> npt.NDArray[np.float32]:
    """The mean weight of each pair of cells, without clients' weights for themselves. [b, b]"""
    from scipy.sparse import coo_array

    sizes, stays = np.bincount(of), ~snapshot.apart
    b, groups = len(sizes), 1 + int(snapshot.groups.max())
    every = np.ones(len(of))
    columns = coo_array((every, (of, snapshot.groups)), shape=(b, groups)).tocsr()
    rows = coo_array((every[stays], (of[stays], snapshot.groups[stays])), shape=(b, groups)).tocsr()
    grouped = (rows @ columns.T).toarray() - np.diag(np.bincount(of[stays], minlength=b))
    places = of[snapshot.rows] * b + of[snapshot.columns]
    sums = np.bincount(places, weights=snapshot.more, minlength=b * b).reshape(b, b)
    counts = np.outer(sizes, sizes) - np.diag(sizes)
    means = (snapshot.level * grouped + sums) / np.maximum(counts, 1)
    return np.asarray(means, dtype=np.float32)


def _mean_by_truth(snapshot: _Snapshot, truth: Ints) -> tuple[float, float]:
    """The mean weight within and across true clusters; NaN where there is no pair."""
    n, stays = len(truth), ~snapshot.apart
    both = _numbers(snapshot.groups * n + truth)
    sizes = np.bincount(snapshot.groups)[snapshot.groups]
    grouped_within = int((np.bincount(both)[both] - 1)[stays].sum())
    grouped = np.array([grouped_within, int((sizes - 1)[stays].sum()) - grouped_within])
    within = int((np.bincount(truth)[truth] - 1).sum())
    counts = np.array([within, n * (n - 1) - within])
    same = truth[snapshot.rows] == truth[snapshot.columns]
    more = np.array([snapshot.more[same].sum(), snapshot.more[~same].sum()])
    with np.errstate(invalid="ignore"):
        means = np.where(
            counts > 0, (snapshot.level * grouped + more) / np.maximum(counts, 1), np.nan
        )
    return float(means[0]), float(means[1])
