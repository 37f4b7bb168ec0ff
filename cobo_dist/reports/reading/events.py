"""The lines of `metrics.jsonl`: what was measured in which round, on which client, on which data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from cobo_dist.errors import ConfigError
from cobo_dist.reports.reading.series import Series

METRICS = ("accuracy", "perplexity", "loss")

Profile = dict[int, dict[str, list[float]]]
"""By round and kind of work, the seconds on each rank."""


@dataclass
class Metrics:
    """What the lines say. A resumed run repeats some rounds: the later line wins.

    `evals[split, metric][client]` and `rounds[quantity]` are values by round; the client None is
    the mean over clients. `parts[split]` holds the rounds at which only a part of the split was
    evaluated, and the most examples a client had then (None where the lines do not say).
    """

    evals: dict[tuple[str, str], dict[int | None, Series]] = field(default_factory=dict)
    rounds: dict[str, Series] = field(default_factory=dict)
    parts: dict[str, dict[int, int | None]] = field(default_factory=dict)
    profile: Profile = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, event: Mapping[str, Any], place: str) -> None:
        """Enter one line. Events of other kinds are left to those who know them."""
        if event["event"] not in ("eval", "round", "profile"):
            return
        round_ = event.get("round")
        if type(round_) is not int or round_ < 0:
            raise ConfigError(
                f"{place}: round is {round_!r}, not a whole number >= 0; repair the line"
            )
        if event["event"] == "eval":
            self._add_eval(event, round_, place)
            return
        if event["event"] == "profile":
            self._add_profile(event.get("seconds"), round_, place)
            return
        for key, value in event.items():
            # A quantity that had nothing to measure (no pair drawn) is null: no point, not NaN.
            if key not in ("event", "round") and value is not None:
                self.rounds.setdefault(key, {})[round_] = number(value, key, place)

    def _add_profile(self, seconds: object, round_: int, place: str) -> None:
        ranks = {len(one) for one in seconds.values()} if _lists(seconds) else set()
        if not _lists(seconds) or len(ranks) != 1:
            raise ConfigError(
                f"{place}: seconds are not one list of all ranks for each kind; repair it"
            )
        self.profile[round_] = {
            kind: [number(one, kind, place) for one in values] for kind, values in seconds.items()
        }

    def _add_eval(self, event: Mapping[str, Any], round_: int, place: str) -> None:
        if event.get("model", "personal") != "personal":
            return
        client = event.get("client")
        if client is not None and type(client) is not int:
            raise ConfigError(f"{place}: client is {client!r}, not a client's number or null")
        split = str(event.get("split", "test"))
        for metric in METRICS:
            if metric in event:
                clients = self.evals.setdefault((split, metric), {})
                value = number_or_nan(event[metric], metric, place)
                clients.setdefault(client, {})[round_] = value
        self._add_part(event, split, client, round_, place)

    def _add_part(
        self, event: Mapping[str, Any], split: str, client: int | None, round_: int, place: str
    ) -> None:
        # Runs older than this key always evaluated everything.
        whole = event.get("whole", True)
        if type(whole) is not bool:
            raise ConfigError(f"{place}: whole is {whole!r}, not true or false; repair the line")
        parts = self.parts.setdefault(split, {})
        if whole:
            parts.pop(round_, None)
            return
        parts.setdefault(round_, None)
        examples = event.get("examples")
        # The line of the mean counts the examples of all clients together.
        if client is not None and examples is not None:
            parts[round_] = max(parts[round_] or 0, int(number(examples, "examples", place)))


def _lists(value: object) -> TypeGuard[dict[str, list[object]]]:
    return isinstance(value, dict) and all(isinstance(one, list) for one in value.values())


def read_metrics(path: Path) -> Metrics:
    """Read `metrics.jsonl`. Raises `ConfigError` that names the line which is malformed.

    A torn last line is left out and noted: a run that was killed, or is writing right now, may
    leave half a line at the end.
    """
    metrics = Metrics()
    lines = path.read_bytes().split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    for index, line in enumerate(lines, start=1):
        place = f"{path}, line {index}"
        try:
            event = json.loads(line)
        except ValueError as error:
            if index == len(lines):
                metrics.notes.append(f"{place} is torn (the last line); it is left out")
                break
            reason = one_line(error)
            raise ConfigError(f"{place} is not JSON ({reason}); repair or remove it") from None
        if not isinstance(event, dict) or "event" not in event:
            raise ConfigError(f"{place} is not an object with an `event`; repair or remove it")
        metrics.add(event, place)
    return metrics


def number(value: object, key: str, place: str) -> float:
    """Return a value as float. Raises `ConfigError` where it is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{place}: {key} is {value!r}, not a number; repair it")
    return float(value)


def number_or_nan(value: object, key: str, place: str) -> float:
    """Return a value as float, NaN for null."""
    # Strict JSON has no NaN, so a writer may put null where a measured value was NaN.
    return float("nan") if value is None else number(value, key, place)


def one_line(error: Exception) -> str:
    """The message of an error, on one line: refusals are one line."""
    return " ".join(str(error).split()) or type(error).__name__
