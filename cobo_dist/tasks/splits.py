"""Each client's examples for training, validation and test."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cobo_dist.errors import ConfigError
from cobo_dist.tasks.partitions import PartitionSection, shuffled
from cobo_dist.tasks.shares import Shares, grouped
from cobo_dist.tasks.sources import Labeled

Fractions = dict[str, float]
"""For "test" and "validation" the share of a client's examples; without a split it is not made."""


def split(
    shares: Shares, found: Labeled, partition: PartitionSection, fractions: Fractions, seed: int
) -> dict[str, list[NDArray[np.int64]]]:
    """Return each client's example indices; the test set of the source takes the place of a fraction.

    Raises:
        ConfigError: a client has too few examples for one in each split.
    """
    splits: dict[str, list[NDArray[np.int64]]] = {"train": [], "validation": [], "test": []}
    parts = {name: one for name, one in fractions.items() if name != "test" or not found.test}
    for client, own in enumerate(grouped(shares.owners[: found.train], shares.clients)):
        order = shuffled(seed, "split", own, client)
        if len(order) <= len(parts):
            wanted = ["train", *reversed(parts)]
            small = np.sum(np.bincount(shares.owners[: found.train]) <= len(parts)) - 1
            raise ConfigError(
                f"task.partition.name={partition.name} leaves client {shares.called(client)} {len(order)} "
                f"of {found.train} examples, and it needs {len(wanted)}: one each for "
                f"{', '.join(wanted)}; {partition.remedy}"
                + (", or set task.validation_fraction=0" if "validation" in parts else "")
                + (f"; {small} other clients have too few" if small else "")
            )
        left, waiting = len(order), len(parts)
        for part, fraction in parts.items():
            size = min(max(1, round(fraction * len(order))), left - waiting)
            left -= size
            splits[part].append(order[left : left + size])
        splits["train"].append(order[:left])
    if found.test:
        splits["test"] = [
            own + found.train for own in grouped(shares.owners[found.train :], shares.clients)
        ]
        if empty := [i for i, own in enumerate(splits["test"]) if not len(own)]:
            raise ConfigError(
                f"client {shares.called(empty[0])} gets none of the {found.test} test examples of "
                f"{found.source}, by its share of each class; {partition.remedy}, or give a source without "
                "a test set"
            )
    splits["validation"] = splits["validation"] or [order[:0]] * shares.clients
    return splits
