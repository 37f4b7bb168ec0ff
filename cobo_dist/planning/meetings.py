"""What the pairs of a round make ranks send: `comm.plans` for all ranks at once, as counts.

Shapes: m pairs, R ranks; keys number ordered pairs of ranks, and pieces of the list, one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cobo_dist.maths.alignment import middle
from cobo_dist.planning.memory_estimate import Model
from cobo_dist.planning.round_cost import Ints

_SCALAR = 8  # bytes of an inner product


@dataclass(frozen=True)
class Room:
    """Bytes of the buffers that each rank's messages lie in, [R] each; of kinds that take turns, the most."""

    outgoing: Ints
    models: Ints  # that came for the pairs
    incoming: Ints
    arrived: Ints  # once more, in the type of the models where they travel in another
    scalars: Ints

    @property
    def total(self) -> Ints:
        """All of them."""
        return self.outgoing + self.models + self.incoming + self.arrived + self.scalars


@dataclass(frozen=True)
class Meetings:
    """What each rank does for the pairs, [R] each; `ends` for each piece of the list."""

    pairs: int
    ends: list[Ints]
    model_messages: Ints
    model_bytes: Ints
    gradient_messages: Ints
    gradient_bytes: Ints
    most: Ints  # ends of the largest piece
    room: Room

    @classmethod
    def none(cls, ranks: int) -> Meetings:
        """Return what nobody does."""
        nothing = np.zeros(ranks, dtype=np.int64)
        room = Room(nothing, nothing, nothing, nothing, nothing)
        return cls(0, [], nothing, nothing, nothing, nothing, nothing, room)


def count_meetings(pairs_m2: NDArray[np.int64], n: int, ranks: int, model: Model) -> Meetings:
    """Count for pairs i < j of n clients, of which rank r owns those with i R // n = r."""
    first, second = (pairs_m2 * ranks // n).T
    piece = np.arange(len(first)) // n  # as the algorithm meets them: n at a time
    pieces = int(piece[-1]) + 1 if len(piece) else 1
    ends = [
        np.bincount(first[at], minlength=ranks) + np.bincount(second[at], minlength=ranks)
        for at in (slice(k * n, (k + 1) * n) for k in range(pieces))
    ]
    across = first != second
    first, second, piece = first[across], second[across], piece[across]
    # A model goes once to each rank that needs it.
    trips = [
        client * ranks + to for client, to in zip(pairs_m2[across].T, (second, first), strict=True)
    ]
    client, to = np.divmod(np.unique(np.concatenate(trips)), ranks)
    links, models = np.unique(client * ranks // n * ranks + to, return_counts=True)
    source, to = np.divmod(links, ranks)
    one_model = model.size * model.wire.itemsize
    # Halves: the first client's owner sends the rest behind the cut, the other what lies before it.
    cut = middle(model.size)
    rest = model.size - cut
    keys = np.concatenate([(first * ranks + second), (second * ranks + first)])
    keys = np.concatenate([piece, piece]) * ranks**2 + keys
    numbers = np.repeat([rest, cut], len(first))
    transfers, inverse, each = np.unique(keys, return_inverse=True, return_counts=True)
    halves = np.bincount(inverse.reshape(-1), weights=numbers, minlength=len(transfers)).astype(
        np.int64
    )
    which = transfers % ranks**2
    sender, receiver = np.divmod(which, ranks)
    scalars = 2 * each * _SCALAR  # products and squared norms

    def most(rank_k: Ints) -> Ints:
        """Buffers are kept from piece to piece, as long as the most that lay in them."""
        sums = _sum(transfers // ranks**2 * ranks + rank_k, halves, pieces * ranks)
        found: Ints = sums.reshape(pieces, ranks).max(axis=0)
        return found

    links, place = np.unique(which, return_inverse=True)
    longest = np.zeros(len(links), dtype=np.int64)  # those of scalars are kept for each peer
    np.maximum.at(longest, place.reshape(-1), scalars)
    came, converts = most(receiver), model.wire != model.dtype
    room = Room(
        np.maximum(_sum(source, models * one_model, ranks), most(sender) * model.wire.itemsize),
        _sum(to, models * one_model, ranks),
        came * model.wire.itemsize,
        came * model.dtype.itemsize * converts,
        _at_both_ends(*np.divmod(links, ranks), longest, ranks),
    )
    return Meetings(
        len(pairs_m2),
        ends,
        np.bincount(source, minlength=ranks),
        _sum(source, models * one_model, ranks),
        np.bincount(sender, minlength=ranks) + np.bincount(sender[halves > 0], minlength=ranks),
        _sum(sender, halves * model.wire.itemsize + scalars, ranks),
        np.max(ends, axis=0),
        room,
    )


def _sum(ranks_k: Ints, values_k: Ints, ranks: int) -> Ints:
    """Add up values by rank, exactly."""
    total = np.zeros(ranks, dtype=np.int64)
    np.add.at(total, ranks_k, values_k)
    return total


def _at_both_ends(source_k: Ints, to_k: Ints, values_k: Ints, ranks: int) -> Ints:
    return _sum(source_k, values_k, ranks) + _sum(to_k, values_k, ranks)
