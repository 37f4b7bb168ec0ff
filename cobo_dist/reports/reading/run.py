"""Reads one run folder into a `Run` and refuses, with the place named, what it cannot trust.

Shapes: n clients, k logged rounds of the weights.
"""

from __future__ import annotations

import zipfile
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cobo_dist.errors import ConfigError, words_of
from cobo_dist.reports.reading.events import Event, Gpus, MetricsReader, Profile, Timeline
from cobo_dist.reports.reading.method import read_method
from cobo_dist.reports.reading.seriation import seriate
from cobo_dist.reports.reading.series import Series, link_strengths
from cobo_dist.reports.reading.sparse_weights import Cells, read_listed
from cobo_dist.reports.reading.summary import Summary, read_summary
from cobo_dist.settings import flatten
from cobo_dist.storage import schema
from cobo_dist.storage.array_schema import DENSE_WEIGHTS, OF_CLIENTS, check_arrays, listed_rounds
from cobo_dist.storage.files import MAX_CONFIG_BYTES, open_file, read_file
from cobo_dist.storage.reading import SchemaError
from cobo_dist.yaml_text import read_yaml


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


@dataclass(frozen=True)
class Run:
    """One run folder. `summary` is None while a run is unfinished, `weights` where it kept none.

    `evals[split, metric][client]` and `rounds[quantity]` are values by round; the client None is
    the mean over clients. `parts[split]` holds the rounds at which only a part of the split was
    evaluated, and on how many examples a client (None: not said). `sizes[split][client]` is on how many
    examples a client was evaluated last. `events` are clients that join and leave. `config` is flat: dotted
    key -> value.
    """

    path: Path
    config: Mapping[str, object]
    evals: Mapping[tuple[str, str], Mapping[int | None, Series]]
    rounds: Mapping[str, Series]
    parts: Mapping[str, Mapping[int, int | None]]
    weights: Weights | None
    summary: Summary | None
    notes: tuple[str, ...]
    profile: Profile = field(default_factory=dict)
    gpus: Gpus = field(default_factory=dict)
    timeline: Timeline = field(default_factory=dict)
    method: schema.Method = field(default_factory=schema.Method)
    sizes: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    warnings: tuple[schema.WarningRow, ...] = ()

    @property
    def task(self) -> str:
        """Name of the task."""
        return str(self.config["task.name"])

    @property
    def algorithm(self) -> str:
        """Name of the algorithm."""
        return str(self.config["algorithm.name"])

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(str(self.config["run.seed"]))

    @property
    def switches(self) -> tuple[int, ...]:
        """Rounds before which clients change cluster (`task.drift`), ascending."""
        return () if self.weights is None else self.weights.switches

    @property
    def last_round(self) -> int:
        """Rounds done: as the summary says, or the last round that left a line."""
        if self.summary is not None:
            return self.summary.rounds
        series = list(self.rounds.values())
        series += [values for clients in self.evals.values() for values in clients.values()]
        return max((max(values) for values in series if values), default=0)


def read_run(path: Path) -> Run:
    """Read a run folder, finished or not.

    Raises `ConfigError` where the folder does not exist, is no run, or holds a malformed file.
    """
    return RunReader(path).read(ended=True)


class RunReader:
    """Reads one run folder, and again as its run goes on: only files that have changed, and new rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._metrics = MetricsReader(path / schema.METRICS_FILE)
        self._files: dict[str, tuple[tuple[int, ...], Any]] = {}

    def read(self, ended: bool = False) -> Run:
        """Return the run as its folder is now; `ended`: half a line at the end is noted, not waited for.

        Raises `ConfigError` where the folder does not exist, is no run, or holds a malformed file.
        """
        self._check_folder()
        path = self.path
        try:
            config = self._file(schema.CONFIG_FILE, _read_config)
            method_of = partial(read_method, path / schema.ENVIRONMENT_FILE, config)
            self._metrics.read()
            if ended:
                self._metrics.end()
            weights = self._file(
                schema.WEIGHTS_FILE,
                lambda file: _read_weights(file, lambda clients: method_of(clients).equal_share),
            )
            summary = self._file(schema.SUMMARY_FILE, read_summary)
        except OSError as error:
            raise ConfigError(
                f"{error.filename or path} cannot be read: {error.strerror}"
            ) from None
        metrics = self._metrics.metrics
        run = Run(
            path=path,
            config=config,
            evals=metrics.evals,
            rounds=metrics.rounds,
            parts=metrics.parts,
            weights=_without_absent(weights, metrics.events),
            summary=summary,
            notes=(*metrics.notes, *_kept(path, config)),
            profile=_of_last_ranks(metrics.profile),
            gpus=_of_last_ranks(metrics.gpus),
            timeline=metrics.timeline,
            method=method_of(1 if weights is None else weights.clients),
            sizes=metrics.sizes,
            events=tuple(metrics.events),
            warnings=tuple(metrics.warnings),
        )
        _check_clients(run)
        return run

    def _check_folder(self) -> None:
        path = self.path
        if not path.is_dir():
            what = "is a file, not a run folder" if path.exists() else "does not exist"
            raise ConfigError(f"{path} {what}; give the run.dir of a run")
        for name in (schema.CONFIG_FILE, schema.METRICS_FILE):
            if not (path / name).is_file():
                raise ConfigError(
                    f"{path} is no run folder: it has no {name}; give the run.dir of a run"
                )

    def _file(self, name: str, read: Callable[[Path], Any]) -> Any:
        """What a file says; it is read again once it has changed."""
        path = self.path / name
        stamp = file_stamp(path)
        if name not in self._files or self._files[name][0] != stamp:
            self._files[name] = stamp, read(path)
        return self._files[name][1]


def file_stamp(path: Path) -> tuple[int, ...]:
    """Return what tells whether a file has changed; empty where there is none."""
    try:
        found = path.lstat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _without_absent(weights: Weights | None, events: Sequence[Event]) -> Weights | None:
    """Mark the clients that are not in the run at each logged round; W of round r is that of its members."""
    if weights is None or weights.cells or not events:
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
    return replace(weights, absent=absent)


def _kept(path: Path, config: Mapping[str, object]) -> list[str]:
    """Say where final metrics are not those of the last models, which the curves end with."""
    keep = config.get("run.keep", "last")
    return (
        []
        if keep == "last"
        else [f"{path}: final metrics are of the kept models (run.keep={keep})"]
    )


def _of_last_ranks(profile: Profile | Gpus) -> Profile:
    """Leave out rounds of a run that was resumed on another number of ranks, with other kinds of work."""
    if not profile:
        return {}
    shape = {kind: len(ranks) for kind, ranks in profile[max(profile)].items()}
    return {
        r: seconds
        for r, seconds in profile.items()
        if {kind: len(ranks) for kind, ranks in seconds.items()} == shape
    }


def _check_clients(run: Run) -> None:
    """Refuse a W of other clients than those evaluated, such as a file from another run."""
    known = {client for clients in run.evals.values() for client in clients if client is not None}
    count = max(known, default=-1) + 1 if run.events else len(known)
    if run.summary is not None:
        count = max(count, len(run.summary.per_client))
    unknown = run.summary is None and bool(run.events)  # the last clients may not have joined yet
    clients = 0 if run.weights is None else run.weights.clients
    if run.weights is not None and count and clients != count and not (unknown and clients > count):
        raise ConfigError(
            f"{run.path / schema.WEIGHTS_FILE} holds weights of {run.weights.clients} clients, but "
            f"metrics and summary tell of {count}; remove it or rerun"
        )


def _read_config(path: Path) -> dict[str, object]:
    try:
        nested = read_yaml(read_file(path, MAX_CONFIG_BYTES).decode())
    except ValueError as error:
        raise ConfigError(f"{path} is not YAML: {_one_line(error)}; restore the file") from None
    if not isinstance(nested, dict):
        raise ConfigError(f"{path} holds no mapping of settings; restore the file")
    flat = flatten(nested)
    for key in ("task.name", "algorithm.name", "run.seed"):
        if flat.get(key) is None:
            raise ConfigError(f"{path} has no {key}; restore the resolved config of the run")
    if type(flat["run.seed"]) is not int:
        raise ConfigError(f"{path}: run.seed is {flat['run.seed']!r}, not a whole number")
    return flat


def _read_weights(path: Path, share_of: Callable[[int], float]) -> Weights | None:
    if not path.exists():
        return None
    try:
        with open_file(path) as file, np.load(file, allow_pickle=False) as stored:
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
    except SchemaError as error:
        raise ConfigError(f"{path}: {error}; remove it or rerun") from None
    except (ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        reason = _one_line(error)
        raise ConfigError(f"{path} is not a readable npz ({reason}); remove it or rerun") from None
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
    )


def _one_line(error: Exception) -> str:
    return words_of(error) or type(error).__name__
