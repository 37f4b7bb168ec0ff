"""Each client's examples for training, validation and test."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cobo_dist.errors import ConfigError
from cobo_dist.tasks.partitions import PartitionSection, shuffled
from cobo_dist.tasks.shares import Shares, grouped
from cobo_dist.tasks.sources import Labeled

Fractions = dict[str, float]
"""For "test" and "validation" the share of a client's examples; without a split it is not made."""

Assign = Callable[[PartitionSection], Shares]
"""Partitions the same examples in another way."""

_MAX_TRIED_EXAMPLES = 1_000_000
"""For more, a refusal does not look for the number of clients that helps, which takes seconds."""


def split(
    found: Labeled, partition: PartitionSection, assign: Assign, fractions: Fractions, seed: int
) -> tuple[Shares, dict[str, list[NDArray[np.int64]]]]:
    """Return which client has which example, and its indices of each split.

    The test set of the source, or what the partition says, takes the place of a fraction.

    Raises:
        ConfigError: a client has too few examples for one in each split.
    """
    shares = assign(partition)
    splits: dict[str, list[NDArray[np.int64]]] = {"train": [], "validation": [], "test": []}
    parts = {name: one for name, one in fractions.items() if name != "test" or not found.test}
    for client, own in enumerate(grouped(shares.owners[: found.train], shares.clients)):
        order = shuffled(seed, "split", own, client)
        if shares.tests is not None:  # they come last
            order = order[np.argsort(shares.tests[order], kind="stable")]
        if len(order) <= len(parts):
            raise _too_few(shares, found, partition, assign, client, ["train", *reversed(parts)])
        left, waiting = len(order), len(parts)
        for part, fraction in parts.items():
            size = min(max(1, round(fraction * len(order))), left - waiting)
            if part == "test" and shares.tests is not None:
                size = int(shares.tests[order].sum())
            left -= size
            splits[part].append(order[left : left + size])
        splits["train"].append(order[:left])
    if found.test:
        splits["test"] = [
            own + found.train for own in grouped(shares.owners[found.train :], shares.clients)
        ]
        if empty := [i for i, own in enumerate(splits["test"]) if not len(own)]:
            raise _no_test(shares, found, partition, assign, empty, 1 + len(parts))
    splits["validation"] = splits["validation"] or [order[:0]] * shares.clients
    return shares, splits


def _too_few(
    shares: Shares,
    found: Labeled,
    partition: PartitionSection,
    assign: Assign,
    client: int,
    wanted: list[str],
) -> ConfigError:
    """Return the refusal of a client with fewer examples than splits, and remedies that suffice."""
    sizes = np.bincount(shares.owners[: found.train], minlength=shares.clients)
    least, small = len(wanted), int(np.sum(sizes < len(wanted)))
    remedies = [
        _remedy(found, partition, assign, least) or _dropping(small, f"fewer than {least} examples")
    ]
    # Without validation data each needs one less.
    if "validation" in wanted and (sizes >= least - 1).all():
        remedies.append("set task.validation_fraction=0")
    return ConfigError(
        f"task.partition.name={partition.name} leaves client {shares.called(client)} {sizes[client]} "
        f"of {found.train} examples, and it needs {least}: one each for {', '.join(wanted)}; "
        + ", or ".join(remedies)
        + (f"; {small - 1} other clients have too few" if small > 1 and partition.remedy else "")
    )


def _no_test(
    shares: Shares,
    found: Labeled,
    partition: PartitionSection,
    assign: Assign,
    empty: list[int],
    least: int,
) -> ConfigError:
    """Return the refusal of clients without test examples, and remedies that suffice."""
    named = shares.names and found.client is not None and len(found.client) > found.train
    how = "" if named else ", by its share of each class"
    remedy = _remedy(found, partition, assign, least) or _dropping(
        len(empty), "no test examples" if named else "too few examples for one"
    )
    return ConfigError(
        f"client {shares.called(empty[0])} gets none of the {found.test} test examples of "
        f"{found.source}{how}; {remedy}, or give a source without a test set"
    )


def _remedy(found: Labeled, partition: PartitionSection, assign: Assign, least: int) -> str:
    """Return what the partition advises, with a number of clients that was tried where that is its key.

    With it each client has `least` examples or more to train on and validate, and some to test.
    """
    low, high = 0, int(getattr(partition, "clients", 0))

    def helps(clients: int) -> bool:
        try:
            other = assign(partition.model_copy(update={"clients": clients}))
        except ConfigError:
            return False
        train, test = np.split(other.owners, [found.train])
        enough = (np.bincount(train, minlength=clients) >= least).all()
        return bool(enough) and (not len(test) or len(np.unique(test)) == clients)

    if not partition.remedy.endswith("task.partition.clients"):
        return partition.remedy
    if high == 1:
        return "give more examples"
    while high - low > 1 and found.train <= _MAX_TRIED_EXAMPLES:
        middle = (low + high) // 2
        low, high = (middle, high) if helps(middle) else (low, middle)
    return partition.remedy + (f" to {low}" if low else "")


def _dropping(clients: int, which: str) -> str:
    """Return the remedy for natural clients."""
    return f"drop the {clients} client{'s' * (clients != 1)} with {which}"
