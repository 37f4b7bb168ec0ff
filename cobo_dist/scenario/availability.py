"""When clients are available: a trace of rounds, from a file."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cobo_dist.errors import ConfigError
from cobo_dist.scenario.tables import read_table, whole_number

COLUMNS = ("client", "from", "to")


class Availability:
    """Which of n clients are available in each round t = 0 .. T-1: a pure function of the trace.

    >>> Availability(2, [(0, 1, 3), (1, 2, 2)])(1).tolist()
    [True, True]
    """

    def __init__(self, clients: int, spans: list[tuple[int, int, int]]) -> None:
        """Take spans (client, first round, last round), rounds from 1; those of a client do not overlap."""
        self.clients = clients
        self.spans = sorted(spans, key=lambda span: (span[1], span[0]))
        self._client_k, self._from_k, self._to_k = (
            np.array(column, dtype=np.int64) for column in zip(*self.spans, strict=True)
        )

    def __call__(self, t: int) -> NDArray[np.bool_]:
        """Return whether each client is available in round t, [n]."""
        found_n = np.zeros(self.clients, dtype=bool)
        found_n[self._client_k[(self._from_k <= t + 1) & (t + 1 <= self._to_k)]] = True
        return found_n

    @property
    def changes(self) -> list[int]:
        """The rounds, from 1, in which a span begins or that follow one, ascending."""
        return sorted({*self._from_k.tolist(), *(self._to_k + 1).tolist()})


def read_availability(file: str, clients: int) -> Availability:
    """Return the trace of so many clients in a file: client, first and last round of each span.

    Raises:
        ConfigError: it cannot be read, or says nothing of a client, or not clearly; one line.
    """
    key, spans, places = "participation.trace", [], []
    for row in read_table(file, key, COLUMNS):
        client = whole_number(row, "client")
        begin, end = (whole_number(row, column, least=1) for column in ("from", "to"))
        if client >= clients:
            raise ConfigError(
                f"{row.place}: client {client} is none of the {clients} clients, 0 to {clients - 1}"
            )
        if begin > end:
            raise ConfigError(f"{row.place}: from {begin} comes after to {end}; swap them")
        spans.append((client, begin, end))
        places.append(row.place)
    order = sorted(range(len(spans)), key=lambda k: spans[k])
    for one, other in pairwise(order):
        if spans[one][0] == spans[other][0] and spans[one][2] >= spans[other][1]:
            raise ConfigError(
                f"{places[other]}: client {spans[other][0]} is available twice in round {spans[other][1]}; "
                "let its spans not overlap"
            )
    if missing := sorted(set(range(clients)) - {client for client, _, _ in spans}):
        raise ConfigError(
            f"{key}={file} has no row for client {missing[0]}; give every client one, for example "
            f"{missing[0]},1,1000 for a client that always is available"
        )
    return Availability(clients, spans)
