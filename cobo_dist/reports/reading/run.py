"""Reads one run folder into a `Run` and refuses, with the place named, what it cannot trust.

Shapes: n clients, k logged rounds of the weights.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from cobo_dist.errors import ConfigError
from cobo_dist.reports.reading.events import (
    METRICS,
    Profile,
    number,
    number_or_nan,
    one_line,
    read_metrics,
)
from cobo_dist.reports.reading.series import Series, link_strengths
from cobo_dist.reports.reading.sparse_weights import Cells, Unfit, is_listed, read_listed


@dataclass(frozen=True)
class Weights:
    """The logged collaboration weights of a run."""

    rounds: npt.NDArray[np.int64]  # [k], increasing
    weights: npt.NDArray[np.float32]  # [k, n, n], or the means [k, b, b] of `cells`
    clusters: npt.NDArray[np.int64] | None  # [n], or None where they are unknown
    names: tuple[str, ...] = ()  # of the n clients; empty where they have none
    share: float = 0.0  # one client's equal share where the weights of a row sum to 1, else 0
    cells: Cells | None = None  # of clients, where there are too many for a W that is written out

    @property
    def clients(self) -> int:
        """The number of clients n."""
        return self.cells.clients if self.cells else int(self.weights.shape[1])

    @property
    def order(self) -> npt.NDArray[np.int64]:
        """Rows of `weights` by cluster, so that the true links are blocks on the diagonal. [n] or [b]"""
        if self.clusters is None or self.cells:  # cells are in order
            return np.arange(self.weights.shape[1])
        return np.argsort(self.clusters, kind="stable").astype(np.int64)

    @property
    def links(self) -> Mapping[str, Series]:
        """Mean weights of links, as `series.link_strengths` gives them."""
        if self.cells:
            return self.cells.links
        return link_strengths(self.rounds, self.weights, self.clusters)

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
class Summary:
    """What a finished run says of itself. Seconds and bytes are of the whole run, all ranks."""

    rounds: int
    seconds: float
    bytes_sent: float
    final: Mapping[str, float]
    per_client: Mapping[int, Mapping[str, float]]
    cluster_match: float | None


@dataclass(frozen=True)
class Run:
    """One run folder. `summary` is None while a run is unfinished, `weights` where it kept none.

    `evals[split, metric][client]` and `rounds[quantity]` are values by round; the client None is
    the mean over clients. `parts[split]` holds the rounds at which only a part of the split was
    evaluated, and on how many examples a client (None: not said). `config` is flat: dotted key ->
    value.
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
    if not path.is_dir():
        what = "is a file, not a run folder" if path.exists() else "does not exist"
        raise ConfigError(f"{path} {what}; give the run.dir of a run")
    for name in ("config.yaml", "metrics.jsonl"):
        if not (path / name).is_file():
            raise ConfigError(
                f"{path} is no run folder: it has no {name}; give the run.dir of a run"
            )
    try:
        config = _read_config(path / "config.yaml")
        metrics = read_metrics(path / "metrics.jsonl")
        weights = _read_weights(path / "W.npz", config) if (path / "W.npz").exists() else None
        summary = _read_summary(path / "summary.json") if (path / "summary.json").exists() else None
    except OSError as error:
        raise ConfigError(f"{error.filename or path} cannot be read: {error.strerror}") from None
    run = Run(
        path=path,
        config=config,
        evals=metrics.evals,
        rounds=metrics.rounds,
        parts=metrics.parts,
        weights=weights,
        summary=summary,
        notes=tuple(metrics.notes),
        profile=_of_last_ranks(metrics.profile),
    )
    _check_clients(run)
    return run


def _of_last_ranks(profile: Profile) -> Profile:
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
    count = len(known)
    if run.summary is not None:
        count = max(count, len(run.summary.per_client))
    if run.weights is not None and count and run.weights.clients != count:
        raise ConfigError(
            f"{run.path / 'W.npz'} holds weights of {run.weights.clients} clients, but metrics and "
            f"summary tell of {count}; remove it or rerun"
        )


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    flat: dict[str, object] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _read_config(path: Path) -> dict[str, object]:
    try:
        nested = yaml.safe_load(path.read_text(encoding="utf-8"))
    # The last three: PyYAML's own, of tags that do not fit their values and of endless nesting.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} is not YAML: {one_line(error)}; restore the file") from None
    if not isinstance(nested, dict):
        raise ConfigError(f"{path} holds no mapping of settings; restore the file")
    flat = flatten(nested)
    for key in ("task.name", "algorithm.name", "run.seed"):
        if flat.get(key) is None:
            raise ConfigError(f"{path} has no {key}; restore the resolved config of the run")
    if type(flat["run.seed"]) is not int:
        raise ConfigError(f"{path}: run.seed is {flat['run.seed']!r}, not a whole number")
    return flat


def _read_weights(path: Path, config: Mapping[str, object]) -> Weights:
    try:
        with np.load(path, allow_pickle=False) as stored:
            if is_listed(stored.files):
                return _read_listed(stored, config)
            arrays = {name: stored[name] for name in stored.files}
    except Unfit as error:
        raise ConfigError(f"{path}: {error}; remove it or rerun") from None
    except (ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        reason = one_line(error)
        raise ConfigError(f"{path} is not a readable npz ({reason}); remove it or rerun") from None
    if missing := {"rounds", "weights"} - arrays.keys():
        raise ConfigError(f"{path} has no array `{sorted(missing)[0]}`; remove it or rerun")
    rounds, weights, clusters = arrays["rounds"], arrays["weights"], arrays.get("clusters")
    if weights.ndim != 3 or weights.shape[1] != weights.shape[2] or 0 in weights.shape:
        raise ConfigError(f"{path}: weights have shape {weights.shape}, not [k, n, n]; rerun")
    if rounds.shape != weights.shape[:1] or (np.diff(rounds) <= 0).any():
        raise ConfigError(
            f"{path}: rounds have shape {rounds.shape} for {len(weights)} matrices, or do not "
            "increase; remove it or rerun"
        )
    if clusters is not None and clusters.shape != weights.shape[1:2]:
        raise ConfigError(
            f"{path}: clusters have shape {clusters.shape}, but there are {weights.shape[1]} "
            "clients; remove it or rerun"
        )
    if not np.issubdtype(weights.dtype, np.floating) or not all(
        np.issubdtype(array.dtype, np.integer) for array in (rounds, clusters) if array is not None
    ):
        raise ConfigError(f"{path}: weights must be floats, rounds and clusters integers; rerun")
    names = arrays.get("names", np.empty(0, dtype=np.str_))
    if names.dtype.kind != "U" or (names.size and names.shape != weights.shape[1:2]):
        raise ConfigError(
            f"{path}: names are {names.dtype} {list(names.shape)}, not one text for each of "
            f"{weights.shape[1]} clients; remove it or rerun"
        )
    return Weights(
        rounds.astype(np.int64),
        weights.astype(np.float32),
        None if clusters is None else clusters.astype(np.int64),
        tuple(names.tolist()),
        _equal_share(config, weights.shape[1]),
    )


def _read_listed(stored: Mapping[str, npt.NDArray[Any]], config: Mapping[str, object]) -> Weights:
    clusters = stored["clusters"].astype(np.int64) if "clusters" in stored else None
    rounds, means, cells = read_listed(stored, clusters)
    names = tuple(map(str, stored["names"].tolist())) if "names" in stored else ()
    if names and len(names) != cells.clients:
        raise Unfit(f"names are {len(names)}, not one text for each of {cells.clients} clients")
    return Weights(rounds, means, clusters, names, _equal_share(config, cells.clients), cells)


def _equal_share(config: Mapping[str, object], clients: int) -> float:
    """One client's equal share of a row of W where the method keeps rows that sum to 1, else 0."""
    if config["algorithm.name"] == "validation_based":  # its own model takes part
        return 1.0 / clients
    if config.get("algorithm.domain") == "simplex":
        own = config.get("algorithm.own_weight") == "included"
        return 1.0 / max(1, clients if own else clients - 1)
    return 0.0


def _read_summary(path: Path) -> Summary:
    try:
        raw = json.loads(path.read_bytes())
        final = {name: raw["final"][name] for name in METRICS if name in raw["final"]}
        clients = {int(entry["client"]): entry for entry in raw.get("per_client") or []}
        rounds, seconds, sent = (raw[key] for key in ("rounds", "seconds", "bytes_sent"))
    except KeyError as error:
        raise ConfigError(
            f"{path} has no {error}; remove it to report the run as unfinished"
        ) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is malformed ({one_line(error)}); remove it to report the run as unfinished"
        ) from None
    if type(rounds) is not int:
        raise ConfigError(f"{path}: rounds is {rounds!r}, not a whole number")
    match = raw.get("cluster_match")
    place = str(path)
    return Summary(
        rounds=rounds,
        seconds=number(seconds, "seconds", place),
        bytes_sent=number(sent, "bytes_sent", place),
        final={name: number_or_nan(value, name, place) for name, value in final.items()},
        per_client={
            client: {
                name: number_or_nan(entry[name], name, place) for name in METRICS if name in entry
            }
            for client, entry in clients.items()
        },
        cluster_match=None if match is None else number(match, "cluster_match", place),
    )
