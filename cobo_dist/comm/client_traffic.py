"""What clients would send and receive if each were a machine of its own: the same on any number of ranks.

A pure function of what the algorithm asks of the exchange:

  send_models   up and down: a model for each drawn pair of the client
  alignment     up and down: half a gradient and two numbers for each such pair
  mix           up: its model to each client that gives it a weight; down: a model for each client that it
                gives a weight; where W is not symmetric, both ways also one weight for each other client
  all_reduce    up: its model, once, if any sum contains it, or its row for each sum with rows of its own;
                down: each sum that contains another client's
  all_gather    up: its numbers; down: the numbers of all others
  gram          up: its rows, once; down: a number for each client
  visits        up: its model, once; down: the models of all others that visit
  send_back     up: an answer to each visitor; down: the answers of all others to its own model

With one client on each rank, ranks send just that for the first three, and for `send_back`. For `all_reduce`
and `visits` they send their part to every other rank, while here it goes up once, as to a server. Logging and
migration do not count.

Shapes: n clients in all, c of them on this rank, k sums.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cobo_dist.comm.pair_plan import PairPlan
from cobo_dist.maths.alignment import middle
from cobo_dist.maths.compression import Compression, message_bytes
from cobo_dist.maths.weights import Weights

_NUMBER_BYTES = 8  # a float64, in which inner products and gathered numbers travel


class ClientTraffic:
    """Counts for this rank's clients together; over all ranks, `up` and `down` are the sums over n clients.

    >>> traffic = ClientTraffic(clients=3, wire_bytes=4)
    >>> traffic.mix(Weights([0, 1, 2], groups_n=[0, 0, 1], symmetric=True), size=10)
    >>> traffic.up, traffic.down
    (80, 80)
    """

    def __init__(
        self, clients: int, wire_bytes: int, compression: Compression | None = None
    ) -> None:
        """Count among `clients` clients, whose models travel as numbers of `wire_bytes` bytes.

        Models of pairs and those that are mixed may be compressed.
        """
        self.clients, self.wire_bytes, self.compression = clients, wire_bytes, compression
        self.up = self.down = 0
        self._links: tuple[Weights, int, int] | None = None  # W, its version, its links

    def send_models(self, plan: PairPlan, size: int) -> None:
        """Count models of `size` numbers at this rank's ends of the drawn pairs."""
        self._both_ways(len(plan.clients) * self._model_bytes(size))

    def alignment(self, plan: PairPlan, size: int) -> None:
        """Count half gradients and two numbers: the pair's first client sends the second half."""
        firsts = int(plan.first.sum())
        seconds, cut = len(plan.first) - firsts, middle(size)
        self.up += (firsts * (size - cut) + seconds * cut) * self.wire_bytes
        self.down += (firsts * cut + seconds * (size - cut)) * self.wire_bytes
        self._both_ways(2 * len(plan.first) * _NUMBER_BYTES)

    def mix(self, weights: Weights, size: int) -> None:
        """Count models for this rank's rows of W.

        A model that a client receives is one that another sends, so over all ranks the sums are equal.
        """
        known = self._links
        if known is None or known[0] is not weights or known[1] != weights.version:
            known = self._links = weights, weights.version, count_links(weights)
        self._both_ways(known[2] * self._model_bytes(size))
        if not weights.known_to_senders:
            self._both_ways(weights.shape[0] * (self.clients - 1) * weights.dtype.itemsize)

    def mix_all(self, size: int, weight_bytes: int) -> None:
        """Count a mix of all clients without a weight of 0; `weight_bytes`: 0 where W is symmetric."""
        others = self.clients * (self.clients - 1)
        self._both_ways(others * (self._model_bytes(size) + weight_bytes))

    def _model_bytes(self, size: int) -> int:
        return message_bytes(self.compression, size, self.wire_bytes)

    def all_reduce(
        self,
        weights_kn: NDArray[np.floating],
        ids_c: NDArray[np.int64],
        size: int,
        *,
        own_rows: bool = False,
    ) -> None:
        """Count the models of the clients `ids_c`, and the sums, with `own_rows`, that they receive."""
        if self.clients == 1:
            return
        there_kn = weights_kn != 0
        mine_kc = there_kn[:, ids_c]
        others_kc = there_kn.sum(axis=1, keepdims=True) - mine_kc
        sent = mine_kc.sum() if own_rows else mine_kc.any(axis=0).sum()
        self.up += int(sent) * size * self.wire_bytes
        self.down += int((others_kc > 0).sum()) * size * self.wire_bytes

    def all_gather(self, count: int) -> None:
        """Count `count` numbers of this rank's clients, sent once, and as many from every other client."""
        self.up += count * _NUMBER_BYTES * (self.clients > 1)
        self.down += count * _NUMBER_BYTES * (self.clients - 1)

    def gram(self, count: int, size: int) -> None:
        """Count rows of `count` clients, `size` numbers each, and their inner products."""
        if self.clients > 1:
            self.up += count * size * self.wire_bytes
            self.down += count * self.clients * _NUMBER_BYTES

    def visits(self, among_n: NDArray[np.bool_], ids_c: NDArray[np.int64], size: int) -> None:
        """Count models of `size` numbers that visit all clients that take part."""
        mine, others = int(among_n[ids_c].sum()), int(among_n.sum()) - 1
        self.up += mine * size * self.wire_bytes * (others > 0)
        self.down += mine * max(0, others) * size * self.wire_bytes

    def send_back(
        self,
        among_n: NDArray[np.bool_],
        ids_c: NDArray[np.int64],
        visiting_k: NDArray[np.int64],
        size: int,
    ) -> None:
        """Count answers of `size` numbers to the visitors; a client's own answer stays with it."""
        own = int(np.isin(visiting_k, ids_c).sum())
        mine, every = int(among_n[ids_c].sum()), int(among_n.sum())
        self.up += (mine * len(visiting_k) - own) * size * self.wire_bytes
        self.down += own * (every - 1) * size * self.wire_bytes

    def totals(self) -> tuple[int, int]:
        """Return the bytes up and down so far."""
        return self.up, self.down

    def _both_ways(self, nbytes: int) -> None:
        self.up += nbytes
        self.down += nbytes


def count_links(weights: Weights) -> int:
    """Return how many weights of these rows are not 0, without clients' weights for themselves."""
    rows, columns, values = weights.entries()
    off = weights.ids_c[rows] != columns
    stored = int(np.count_nonzero(values[off]))
    stored -= int(np.count_nonzero(weights.base(rows, columns)[off]))
    if not weights.level:
        return stored
    grouped_c = ~weights.ungrouped_c
    sizes_n = np.bincount(weights.groups_n)
    groups_k = weights.groups_c[grouped_c & (weights.groups_c >= 0)]
    own = int(np.count_nonzero(weights.groups_c == weights.groups_n[weights.ids_c]))
    return stored + int(sizes_n[groups_k].sum()) - own
