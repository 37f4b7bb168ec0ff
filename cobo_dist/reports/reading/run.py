"""Reads one run folder into a `Run` and refuses, with the place named, what it cannot trust."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cobo_dist.errors import ConfigError, words_of
from cobo_dist.reports.reading.events import Event, Gpus, MetricsReader, Profile, Timeline
from cobo_dist.reports.reading.method import read_method
from cobo_dist.reports.reading.series import Series
from cobo_dist.reports.reading.summary import Summary, read_summary
from cobo_dist.reports.reading.weights import Weights, read_weights, without_absent
from cobo_dist.settings import flatten
from cobo_dist.storage import schema
from cobo_dist.storage.files import MAX_CONFIG_BYTES, read_file
from cobo_dist.yaml_text import read_yaml


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
                lambda file: read_weights(file, lambda clients: method_of(clients).equal_share),
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
            weights=without_absent(weights, metrics.events),
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


def _one_line(error: Exception) -> str:
    return words_of(error) or type(error).__name__
