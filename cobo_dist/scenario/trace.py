"""Times of clients from a CSV file, one line for each; what cannot be used is refused with its line."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cobo_dist.errors import ConfigError, words_of

REQUIRED, OPTIONAL = ("client", "seconds"), ("latency", "megabytes_a_second")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Trace:
    """What a trace says of each client, [n]; None for a column that it lacks."""

    seconds_n: Floats
    latency_n: Floats | None
    megabytes_n: Floats | None

    @property
    def fingerprint(self) -> str:
        """A text that other times do not have."""
        columns = (self.seconds_n, self.latency_n, self.megabytes_n)
        return repr([None if one is None else one.tolist() for one in columns])


def read_trace(path: str, clients: int) -> Trace:
    """Return the times of clients 0 .. n-1.

    Raises:
        ConfigError: the file cannot be read, or lacks a client, or has an unknown one, one twice, or a time
            that is none. The line names the line of the file.
    """
    key = f"clock.trace={path}"
    try:
        with Path(path).expanduser().open(newline="", encoding="utf-8-sig") as file:
            rows = [(number, row) for number, row in enumerate(csv.reader(file), start=1) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else words_of(error)
        raise ConfigError(f"{key} cannot be read: {reason}; name a CSV file") from None
    names = [one.strip() for one in rows[0][1]] if rows else []
    _check_header(key, names)
    found: dict[int, list[float]] = {}
    for number, row in rows[1:]:
        client, times = _line(f"{key}, line {number}", names, [one.strip() for one in row], clients)
        if client in found:
            raise ConfigError(
                f"{key}, line {number}: client {client} has a line already; keep one of them"
            )
        found[client] = times
    if missing := [i for i in range(clients) if i not in found]:
        raise ConfigError(
            f"{key} has no line for client {missing[0]} and lacks {len(missing)} of {clients} clients; add "
            "a line for each"
        )
    table = np.array([found[i] for i in range(clients)])
    columns = dict(zip((one for one in names if one != "client"), table.T, strict=True))
    return Trace(columns["seconds"], columns.get("latency"), columns.get("megabytes_a_second"))


def _check_header(key: str, names: Sequence[str]) -> None:
    wrong = [one for one in names if one not in REQUIRED + OPTIONAL]
    lacking = [one for one in REQUIRED if one not in names]
    if wrong or lacking or len(set(names)) < len(names):
        raise ConfigError(
            f"{key}, line 1: the columns are {', '.join(names) or 'missing'}; name them client, seconds "
            "and, if wanted, latency and megabytes_a_second"
        )


def _line(
    where: str, names: Sequence[str], row: Sequence[str], clients: int
) -> tuple[int, list[float]]:
    """Return the client of a line, and its numbers in the order of the other columns."""
    if len(row) != len(names):
        raise ConfigError(
            f"{where}: it has {len(row)} values for {len(names)} columns; give each column one"
        )
    client, times = -1, []
    for name, text in zip(names, row, strict=True):
        if name == "client":
            digits = text.isascii() and text.isdigit() and len(text) < 10
            if not digits or int(text) >= clients:
                raise ConfigError(
                    f"{where}: client {text or '(empty)'} is unknown; the {clients} clients are 0 to "
                    f"{clients - 1}"
                )
            client = int(text)
            continue
        times.append(_number(where, name, text))
    return client, times


def _number(where: str, name: str, text: str) -> float:
    least = "0 or more" if name == "latency" else "above 0"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0 or (value == 0 and name != "latency"):
        unit = "megabytes a second" if name == "megabytes_a_second" else "seconds"
        raise ConfigError(
            f"{where}: {name} is {text or '(empty)'}; it must be a number {least}, in {unit}"
        )
    return value
