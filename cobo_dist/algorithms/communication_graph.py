"""Which clients a decentralized method lets talk to each other: all of them, or neighbors on a ring.

Shapes: n clients, m of them present.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cobo_dist.algorithms.algorithm import AlgorithmSection

Ints = NDArray[np.int64]


class CommunicationGraphConfig(AlgorithmSection):
    """What decentralized methods with a fixed graph can be told."""

    graph: Literal["complete", "ring"] = Field(
        "complete",
        description="who may talk to whom: complete, all clients; ring, those with the next ids on both "
        "sides, of those in the run",
    )


def edges(graph: str, present_n: NDArray[np.bool_]) -> Ints:
    """Return the pairs i < j of present clients that may talk, int64 [k, 2].

    >>> edges("ring", np.array([True, True, False, True])).tolist()
    [[0, 1], [0, 3], [1, 3]]
    """
    ids_m = np.flatnonzero(present_n)
    if graph == "complete":
        first, second = np.triu_indices(len(ids_m), k=1)
        return np.stack([ids_m[first], ids_m[second]], axis=1)
    pairs_k2 = np.sort(np.stack([ids_m, np.roll(ids_m, -1)], axis=1), axis=1)
    found: Ints = np.unique(pairs_k2[pairs_k2[:, 0] < pairs_k2[:, 1]], axis=0)
    return found


def partners(graph: str, client: int, present_n: NDArray[np.bool_]) -> Ints:
    """Return the present clients that a present client may talk to, ascending.

    >>> partners("ring", 3, np.array([True, True, False, True])).tolist()
    [0, 1]
    """
    ids_m = np.flatnonzero(present_n)
    if graph == "ring":
        place = int(np.searchsorted(ids_m, client))
        ids_m = np.unique(ids_m[[place - 1, (place + 1) % len(ids_m)]])
    found: Ints = ids_m[ids_m != client]
    return found
