"""The snapshots of W of one run, as W.npz has them.

Shapes: n clients, k logged rounds of the weights.
"""

from __future__ import annotations

import zipfile
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cobo_dist.errors import ConfigError, words_of
from cobo_dist.maths.weights import Weights as Rows
from cobo_dist.reports.reading.events import Event
from cobo_dist.reports.reading.seriation import seriate
from cobo_dist.reports.reading.series import Series, link_strengths
from cobo_dist.reports.reading.sparse_weights import Cells, read_listed, read_snapshot
from cobo_dist.storage.array_schema import DENSE_WEIGHTS, OF_CLIENTS, check_arrays, listed_rounds
from cobo_dist.storage.files import open_file
from cobo_dist.storage.reading import SchemaError


@dataclass(frozen=True)
class Weights:
    """The logged collaboration weights of a run."""

    rounds: npt.NDArray[np.int64]  # [k], increasing
    weights: npt.NDArray[np.floating[Any]]  # [k, n, n], or the means [k, b, b] of `cells`
    clusters: npt.NDArray[np.int64] | None  # [n], or None where they are unknown
    names: tuple[str, ...] = ()  # of the n clients; empty where they have none
    true_graph: npt.NDArray[np.float32] | None = None  # [n, n], where clusters do not say it
    true_order: npt.NDArray[np.int64] | None = None  # [n], of clients in figures with `true_graph`
    share: float = 0.0  # one client's equal share where the weights of a row sum to 1, else 0
    cells: Cells | None = None  # of clients, where there are too many for a W that is written out
    absent: npt.NDArray[np.bool_] | None = (
        None  # [k, n], clients that are not in the run; None: all are
    )
    switches: tuple[int, ...] = ()  # rounds before which clients change cluster, ascending
    later_clusters: npt.NDArray[np.int64] | None = None  # [s, n], from each of `switches` on
    later_graphs: npt.NDArray[np.float32] | None = None  # [g, n, n], the same for `true_graph`
    path: Path | None = None  # W.npz

    def snapshot(self, number: int) -> Rows:
        """All rows of W after one of `rounds`; of many clients, they are read again. [n, n]

        Raises:
            ConfigError: W.npz cannot be read any more.
        """
        if not self.cells or self.path is None:
            matrix = self.weights[self._place(number)]
            return Rows.of_rows(range(self.clients), np.asarray(matrix))
        with _opened(self.path) as stored:
            return read_snapshot(stored, number, self.clients)

    def away_at(self, number: int) -> npt.NDArray[np.bool_] | None:
        """Which clients are not in the run after one of `rounds`; None: all are. [n]"""
        absent = self.cells.absent if self.cells else self.absent
        return None if absent is None else np.asarray(absent[self._place(number)])

    def _place(self, number: int) -> int:
        return int(np.searchsorted(self.rounds, number))

    def phase(self, number: int) -> int:
        """How many of `switches` are not after a round."""
        return bisect_right(self.switches, number)

    def clusters_at(self, number: int) -> npt.NDArray[np.int64] | None:
        """The true clusters in a round. [n]"""
        phase = self.phase(number)
        if self.clusters is None or self.later_clusters is None or not phase:
            return self.clusters
        return np.asarray(self.later_clusters[phase - 1])

    def graph_at(self, number: int) -> npt.NDArray[np.float32] | None:
        """The right graph in a round, where clusters do not say it; None where it is not stored. [n, n]"""
        phase = self.phase(number)
        if self.true_graph is None or not phase:
            return self.true_graph
        later = self.later_graphs
        return None if later is None or phase > len(later) else np.asarray(later[phase - 1])

    @property
    def clients(self) -> int:
        """The number of clients n."""
        return self.cells.clients if self.cells else int(self.weights.shape[1])

    @cached_property
    def order(self) -> npt.NDArray[np.int64]:
        """Rows of `weights` by cluster, so that links are blocks on the diagonal. [n] or [b]

        A right graph has an order of its own. Where neither is known, the last logged W decides
        (`seriation.seriate`).
        """
        if self.cells:  # they are in order
            return np.arange(self.weights.shape[1])
        if self.true_order is not None:
            return self.true_order
        if self.clusters is None:
            return seriate(self.weights[-1])
        return np.argsort(self.clusters, kind="stable").astype(np.int64)

    @property
    def links(self) -> Mapping[str, Series]:
        """Mean weights of links, as `series.link_strengths` gives them."""
        if self.cells:
            return self.cells.links
        clusters = self.clusters
        if clusters is not None and self.switches:
            found = (self.clusters_at(number) for number in self.rounds.tolist())
            clusters = np.stack([one for one in found if one is not None])
        return link_strengths(self.rounds, self.weights, clusters, self.absent)

    @property
    def labels(self) -> list[str]:
        """What to call the clients: their names, or their numbers."""
        return list(self.names) or [str(client) for client in range(self.clients)]

    @cached_property
    def top(self) -> float:
        """Where a scale of colours ends: at 1 or, where rows sum to 1, at the largest weight logged.

        Such weights are about an equal share, and on a scale up to 1 all of them would be pale. A client's
        weight for itself does not count.
        """
        if not self.share:
            return 1.0
        others = self.weights
        if not self.cells:
            others = others[:, ~np.eye(self.clients, dtype=bool)]
        largest = float(others[np.isfinite(others)].max(initial=0.0))
        return largest if largest > 0.0 else 1.0

    @property
    def moves(self) -> bool:
        """Whether any weight differs from its first value at some logged round."""
        first = np.broadcast_to(self.weights[:1], self.weights.shape)
        return not np.array_equal(first, self.weights, equal_nan=True)


def read_weights(path: Path, share_of: Callable[[int], float]) -> Weights | None:
    """Return the snapshots of W.npz; None where a run has none yet.

    `share_of` gives one client's equal share of a row of W among n clients, 0 if rows do not sum to 1.

    Raises:
        ConfigError: the file cannot be read, or is malformed.
    """
    if not path.exists():
        return None
    with _opened(path) as stored:
        of_clients = {one.name: stored[one.name] for one in OF_CLIENTS if one.name in stored}
        cells = None
        if listed_rounds(stored):
            rounds, weights, cells = read_listed(stored, share_of)
            n = cells.clients
        else:
            arrays = {name: stored[name] for name in ("rounds", "weights") if name in stored}
            n = check_arrays(DENSE_WEIGHTS, arrays | of_clients)["n"]
            rounds, weights = arrays["rounds"], arrays["weights"]
            if 0 in weights.shape or (np.diff(rounds) <= 0).any():
                raise SchemaError(
                    f"`weights` has shape {weights.shape}, or `rounds` do not increase"
                )
        if (np.diff(of_clients.get("switches", np.ones(1))) <= 0).any():
            raise SchemaError("`switches` do not increase")
        graph, order = (of_clients.get(f"true_{name}") for name in ("graph", "order"))
        if (graph is None) != (order is None) or (
            order is not None and not np.array_equal(np.sort(order), np.arange(n))
        ):
            raise SchemaError("`true_order` is no order of the clients of `true_graph`")
    clusters, names = of_clients.get("clusters"), of_clients.get("names", np.empty(0))
    later = of_clients.get("later_clusters")
    return Weights(
        rounds.astype(np.int64),
        weights,
        None if clusters is None else clusters.astype(np.int64),
        tuple(names.tolist()),
        graph,
        order,
        share_of(n),
        cells,
        switches=tuple(of_clients.get("switches", np.empty(0, dtype=np.int64)).tolist()),
        later_clusters=None if later is None else later.astype(np.int64),
        later_graphs=of_clients.get("later_graphs"),
        path=path,
    )


@contextmanager
def _opened(path: Path) -> Iterator[Mapping[str, npt.NDArray[Any]]]:
    """Open W.npz; what is wrong with it becomes a `ConfigError`."""
    try:
        with open_file(path) as file, np.load(file, allow_pickle=False) as stored:
            yield stored
    except OSError as error:
        raise ConfigError(f"{error.filename or path} cannot be read: {error.strerror}") from None
    except SchemaError as error:
        raise ConfigError(f"{path}: {error}; remove it or rerun") from None
    except (ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        reason = words_of(error) or type(error).__name__
        raise ConfigError(f"{path} is not a readable npz ({reason}); remove it or rerun") from None


def without_absent(weights: Weights | None, events: Sequence[Event]) -> Weights | None:
    """Mark the clients that are not in the run at each logged round; W of round r is that of its members."""
    if weights is None or not events:
        return weights
    absent = np.zeros((len(weights.rounds), weights.clients), dtype=bool)
    seen: set[int] = set()
    for r, client, joins in sorted(events):
        if not client < weights.clients:
            raise ConfigError(f"metrics.jsonl tells of client {client}, and W.npz has none; rerun")
        if client not in seen and joins:
            absent[:, client] = True
        seen.add(client)
        absent[weights.rounds >= r, client] = not joins
        if r == 1:  # round 0 is shown with the clients of round 1
            absent[:, client] = not joins
    if weights.cells:
        return replace(weights, cells=replace(weights.cells, absent=absent))
    return replace(weights, absent=absent)
