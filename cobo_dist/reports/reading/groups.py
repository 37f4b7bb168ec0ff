"""The groups of clients that W shows, as members and in words.

Shapes: n clients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

_MAX_GROUPS, _MAX_MEMBERS = 12, 8
"""Groups, and clients or ranges of clients in one of them, that a sentence lists."""


@dataclass(frozen=True, eq=False)
class Groups:
    """Clients in groups: the connected components of the graph of links, a weight of `threshold` or more.

    `labels` are the numbers of the clients' groups, from 0 in the order of their first clients; -1 for
    clients that are not in the run. `names` of the clients, if they have any. Looping over it gives each
    group's clients; `str` says them in words.

    >>> found = Groups(np.array([0, 0, 1, -1, 1, 2]), threshold=0.5)
    >>> len(found), list(found)
    (3, [[0, 1], [2, 4], [5]])
    >>> print(found)
    2 groups: {0,1} {2,4}; 1 client alone: 5
    """

    labels: Ints  # [n]
    threshold: float
    names: tuple[str, ...] = ()

    @cached_property
    def members(self) -> list[list[int]]:
        """The clients of each group, ascending; a client without links is a group of its own."""
        order = np.argsort(self.labels, kind="stable")
        order = order[self.labels[order] >= 0]
        cuts = np.flatnonzero(np.diff(self.labels[order])) + 1
        return [part.tolist() for part in np.split(order, cuts) if part.size]

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.members)

    def __str__(self) -> str:
        return groups_in_words(self.labels, self.names)


def groups_in_words(labels_n: Sequence[int] | npt.NDArray[Any], names: Sequence[str] = ()) -> str:
    """Return which clients are in one group, as one line.

    Args:
        labels_n: the number of each client's group; negative for clients that are left out. [n]
        names: of the clients, to be listed in place of their numbers. [n] or empty

    >>> groups_in_words([0, 0, 1, 1])
    '2 groups: {0,1} {2,3}'
    >>> groups_in_words([0] * 20)
    '1 group of all 20 clients'
    >>> groups_in_words([0, 0, 1], ["north", "south", "Rome, GA"])
    '1 group: {north, south}; 1 client alone: Rome, GA'
    >>> groups_in_words([0, 1, 2])
    'no groups: each of the 3 clients is alone'
    """
    members = Groups(np.asarray(labels_n), 0.0).members
    together = [group for group in members if len(group) > 1]
    alone = [group[0] for group in members if len(group) == 1]
    count = len(alone) + sum(map(len, together))
    if count < 2:
        return "no groups: there is only one client" if count else "no groups: there are no clients"
    if not together:
        return f"no groups: each of the {count} clients is alone"
    if len(members) == 1:
        return f"1 group of all {count} clients"
    shown = [f"{{{listed(group, names)}}}" for group in together[:_MAX_GROUPS]]
    more = len(together) - len(shown)
    words = f"{_count(len(together), 'group')}: {' '.join(shown)}"
    words += f" and {more} more" if more else ""
    return words + (
        f"; {_count(len(alone), 'client')} alone: {listed(alone, names)}" if alone else ""
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(clients: Sequence[int], names: Sequence[str]) -> str:
    """Return clients, ascending, as text: names or, of numbers, three or more in a row as a range.

    Many of them are cut.

    >>> listed([0, 1, 2, 5, 7], ())
    '0-2,5,7'
    >>> listed(range(0, 40, 2), ())
    '0,2,4,6,8,10,12,14,... 20 clients'
    """
    if names:
        parts = [names[client] for client in clients]
    else:
        ids = np.asarray(clients)
        runs = np.split(ids, np.flatnonzero(np.diff(ids) != 1) + 1)
        parts = [text for run in runs for text in _range(run.tolist())]
    if len(parts) > _MAX_MEMBERS:
        parts = [*parts[:_MAX_MEMBERS], f"... {len(clients)} clients"]
    return (", " if names else ",").join(parts)


def _range(run: list[int]) -> list[str]:
    return [f"{run[0]}-{run[-1]}"] if len(run) > 2 else [str(client) for client in run]
