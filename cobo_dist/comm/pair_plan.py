"""Which models and gradients a rank exchanges for the pairs of a round: pure functions, no messages.

A plan depends on (pairs, placement, rank) alone, so the plans of any number of ranks can be examined in one
process. Between two ranks a phase sends at most one message each way, so there is no order to get wrong.

Shapes: m pairs, e ends of pairs on this rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cobo_dist.comm.placement import Placement

Index = NDArray[np.int64]


@dataclass(frozen=True)
class PeerTransfer:
    """What this rank and one peer exchange for the pairs that join their clients.

    `send_clients` and `receive_clients` are client ids, each once, ascending. `first_ends` and
    `second_ends` number this rank's ends of the common pairs (see `PairPlan`): those that are the pair's
    first client, and those that are its second, each in the order of the pairs.
    """

    send_clients: Index
    receive_clients: Index
    first_ends: Index
    second_ends: Index


@dataclass(frozen=True)
class PairPlan:
    """This rank's ends of the drawn pairs.

    A pair has two ends, (client i, partner j) and (client j, partner i); an end belongs to the owner
    of its client. A pair within the rank has both ends here. Arrays are [e], ordered by pair.
    """

    clients: Index
    partners: Index
    first: NDArray[np.bool_]  # the client is the pair's first (lower) one
    local: NDArray[np.bool_]  # both ends are on this rank
    transfers: dict[int, PeerTransfer]  # by peer, ascending

    @classmethod
    def empty(cls) -> PairPlan:
        """Return the plan of no pairs."""
        none = np.empty(0, dtype=np.int64)
        return cls(none, none, none.astype(bool), none.astype(bool), {})


def plan_pairs(pairs_m2: Index, placement: Placement, rank: int) -> PairPlan:
    """Return the plan of `rank` for the pairs (i, j), i < j.

    >>> plan = plan_pairs(np.array([[0, 2], [2, 3]]), Placement.contiguous(4, 2), rank=1)
    >>> plan.clients.tolist(), plan.partners.tolist(), plan.transfers[0].receive_clients.tolist()
    ([2, 2, 3], [0, 3, 2], [0])
    """
    owner_m2 = placement.owner_n[pairs_m2]
    pair_e, side_e = np.nonzero(owner_m2 == rank)  # row-major: by pair, first end before second
    clients, partners = pairs_m2[pair_e, side_e], pairs_m2[pair_e, 1 - side_e]
    peers = owner_m2[pair_e, 1 - side_e]
    first = side_e == 0
    transfers = {}
    for peer in np.unique(peers[peers != rank]):
        with_peer = peers == peer
        transfers[int(peer)] = PeerTransfer(
            send_clients=np.unique(clients[with_peer]),
            receive_clients=np.unique(partners[with_peer]),
            first_ends=np.flatnonzero(with_peer & first),
            second_ends=np.flatnonzero(with_peer & ~first),
        )
    return PairPlan(clients, partners, first, peers == rank, transfers)
