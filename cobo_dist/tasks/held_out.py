"""Validation examples: some of all clients, and why a client has none."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import islice

from cobo_dist.errors import ConfigError

_USUAL_FRACTION = 0.1


def in_turn(sizes: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Return (client, number of its example) of all clients in turn, at most so many.

    >>> in_turn([1, 3], 3)
    [(0, 0), (1, 0), (1, 1)]
    """
    every = ((i, k) for k in range(max(sizes)) for i, size in enumerate(sizes) if k < size)
    return list(islice(every, most))


def explain_lack(
    fraction: float,
    pools: Sequence[int],
    clusters: Sequence[int],
    sizes: Sequence[int],
    validation_sizes: Callable[[float], Sequence[int]],
) -> str:
    """Return one line with the client, the counts and a remedy that was tried.

    Args:
        fraction: `task.validation_fraction`.
        pools: for each client, the examples of which that fraction is kept for validation. [n]
        clusters: of the clients. [n]
        sizes: validation examples of each client, 0 for at least one. [n]
        validation_sizes: gives `sizes` for another fraction; may raise `ConfigError`.
    """
    client = min((i for i, size in enumerate(sizes) if not size), key=lambda i: pools[i])
    if fraction:
        why = (
            f"client {client} of cluster {clusters[client]} has none: {fraction:g} "
            f"(task.validation_fraction) of {pools[client]} examples is less than one; "
            f"{sizes.count(0)} of {len(sizes)} clients have none"
        )
    else:
        why = "this task has only test data with task.validation_fraction=0"
    helps = max(fraction or _USUAL_FRACTION, math.ceil(1000 / pools[client]) / 1000)
    try:
        found = helps < 1 and all(validation_sizes(helps))
    except ConfigError:  # it leaves too few examples to train on
        found = False
    if found:
        return f"{why}; set task.validation_fraction={helps:g}"
    return (
        f"{why}, and no fraction leaves cluster {clusters[client]} enough to train on; give it more "
        "examples, or fewer clients"
    )
