"""An exchange that counts what ranks would send, and sends nothing.

The dry run gives it to an algorithm in place of an `Exchange`, together with all n clients. It computes
the answers densely. From the plans of the real exchange (`comm.pair_plan`, `comm.mixing_plan`) it works
out the messages, bytes and buffers of each rank that is counted. What a rank sends is a function of pairs,
placement and W, so any of the R ranks can be counted by itself.

Shapes: n clients, m pairs, e ends of pairs, R ranks, S of them counted, d parameters, k sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobo_dist.comm.channel import INCOMING, OUTGOING
from cobo_dist.comm.client_traffic import ClientTraffic
from cobo_dist.comm.exchange import PairEnds
from cobo_dist.comm.pair_plan import PairPlan, plan_pairs
from cobo_dist.comm.placement import Placement
from cobo_dist.comm.traffic_counter import TRAINING
from cobo_dist.comm.visits import Visit, plan_visits
from cobo_dist.maths.alignment import Statistic, middle
from cobo_dist.maths.blocks import blocks_of
from cobo_dist.maths.compression import Compression
from cobo_dist.maths.flat import models_at_once, row_bytes, widest
from cobo_dist.maths.mixing import Product
from cobo_dist.maths.sketch import Sketch
from cobo_dist.maths.weights import Weights
from cobo_dist.planning.count_visits import count_answers, count_gram, count_visitors
from cobo_dist.planning.crossing import CrossingModels, Ints

_SCALAR_BYTES = 8  # a float64, in which inner products and gathered numbers travel
_CPU = torch.device("cpu")  # whose buffers for sums are counted; a GPU takes more columns at once


@dataclass(frozen=True)
class RankTraffic:
    """Messages and bytes that the counted ranks sent, int64 [purposes, S]; purposes as in `TRAINING`."""

    messages_ps: Ints
    bytes_ps: Ints

    def __sub__(self, before: RankTraffic) -> RankTraffic:
        return RankTraffic(self.messages_ps - before.messages_ps, self.bytes_ps - before.bytes_ps)


class CountingExchange:
    """Counts for some ranks. `traffic` is what they sent so far, `buffers` what they keep for it."""

    def __init__(
        self,
        placement: Placement,
        sizes: Mapping[int, int],
        dtype: torch.dtype,
        *,
        ranks: Ints | None = None,
        deterministic: bool = False,
        wire: torch.dtype | None = None,
        compression: Compression | None = None,
    ) -> None:
        """Count for a placement.

        Args:
            placement: of all n clients on all R ranks.
            sizes: a row of k numbers here stands for one of `sizes[k]` numbers.
            dtype: type of the models.
            ranks: the ranks to count; all if None.
            deterministic: whether models travel as rows (comm.deterministic).
            wire: type in which models and gradients travel, if it is another one.
            compression: how clients would send models.
        """
        self.placement, self.sizes, self.dtype = placement, sizes, dtype
        self.wire = wire or dtype
        self.deterministic = deterministic
        self.ranks: Ints = np.arange(placement.ranks) if ranks is None else ranks
        self._clients_s = np.array([len(placement.by_rank[r]) for r in self.ranks.tolist()])
        self._crossing = CrossingModels(placement, self.ranks, deterministic)
        self._alone = Placement.contiguous(placement.clients, 1)
        self._messages_ps, self._bytes_ps = (
            np.zeros((len(TRAINING), len(self.ranks)), dtype=np.int64) for _ in range(2)
        )
        self.buffers: dict[str, Ints] = {}
        """Bytes of the buffers of each kind, [S], or [S, R] for a buffer for each peer."""
        self._planned: tuple[NDArray[np.int64], list[PairPlan]] | None = None
        # What clients would send as machines of their own: for pairs, and for all else.
        self.client_pairs, self.client_mixing = (
            ClientTraffic(placement.clients, self.wire.itemsize, compression) for _ in range(2)
        )
        self._ends: PairPlan | None = None  # of the last midpoints
        self._mixed: tuple[Weights, int, tuple[Ints, Ints]] | None = None
        self._x_nd = torch.empty(0)
        self._among_n, self._visiting = np.empty(0, dtype=bool), np.empty(0, dtype=np.int64)

    def traffic(self) -> RankTraffic:
        """Return what was sent so far."""
        return RankTraffic(self._messages_ps.copy(), self._bytes_ps.copy())

    def client_traffic(self) -> Ints:
        """Return what all clients would have sent and received so far as machines of their own.

        Bytes [2, 2]: for pairs and for mixing, up and down.
        """
        return np.array([self.client_pairs.totals(), self.client_mixing.totals()])

    # -- partners' models -----------------------------------------------------------------------

    def send_models(self, x_nd: Tensor, pairs_m2: Tensor) -> None:
        """Count the models of the drawn pairs, each once to a rank that needs it."""
        self._x_nd = x_nd
        model = self._size(x_nd) * self.wire.itemsize
        every = plan_pairs(pairs_m2.numpy(), self._alone, 0)
        self.client_pairs.send_models(every, self._size(x_nd))
        for s, plan in enumerate(self._plans(pairs_m2)):
            sent = [len(transfer.send_clients) * model for transfer in plan.transfers.values()]
            received = [len(transfer.receive_clients) for transfer in plan.transfers.values()]
            self.send("pairs", len(sent), sum(sent), s)
            self.keep(OUTGOING, sum(sent), s)
            self.keep("models", sum(received) * model, s)

    def receive_models(self) -> None:
        """Have nothing to wait for."""

    def midpoints(self, pairs_k2: Tensor) -> tuple[PairEnds, Tensor]:
        """Return all ends of some of the sent pairs, and each end's midpoint."""
        row = row_bytes(self._size(self._x_nd), self.dtype)
        for s, plan in enumerate(self._plans(pairs_k2)):
            self.keep("midpoints", len(plan.clients) * row, s)
        every = self._ends = plan_pairs(pairs_k2.numpy(), self._alone, 0)
        ends = PairEnds(every.clients, every.clients, every.partners, every.first)
        x_i, x_j = (self._x_nd[torch.from_numpy(ids)] for ids in (every.clients, every.partners))
        return ends, (x_i + x_j) / 2

    def alignment(
        self, gradients_ed: Tensor, statistic: Statistic, sketch: Sketch | None = None
    ) -> tuple[PairEnds, NDArray[np.float64]]:
        """Count half gradients or sketches and their scalars; return 0 for every end: no weight moves."""
        assert self._planned is not None
        assert self._ends is not None
        size = self._compared(gradients_ed, sketch)
        self.client_pairs.alignment(self._ends, size)
        cut = middle(size)
        for s, plan in enumerate(self._planned[1]):
            out, back = 0, 0  # numbers
            for peer, transfer in plan.transfers.items():
                firsts, seconds = len(transfer.first_ends), len(transfer.second_ends)
                to_peer = firsts * (size - cut) + seconds * cut
                out += to_peer
                back += seconds * (size - cut) + firsts * cut
                scalars = 2 * (firsts + seconds) * _SCALAR_BYTES
                self.send("gradients", 1 + (to_peer > 0), scalars, s)
                self.keep("scalars, both ways", 2 * scalars, (s, peer))
            self.send("gradients", 0, out * self.wire.itemsize, s)
            self.keep(OUTGOING, out * self.wire.itemsize, s)
            self.keep_arrived(INCOMING, back, s)
        every = self._ends
        ends = PairEnds(every.clients, every.clients, every.partners, every.first)
        return ends, np.zeros(len(gradients_ed))

    def _plans(self, pairs_m2: Tensor) -> list[PairPlan]:
        """Return the pair plan of each counted rank; of the same pairs again, without planning twice."""
        pairs = pairs_m2.numpy()
        if self._planned is None or not np.array_equal(self._planned[0], pairs):
            counted = np.zeros(self.placement.ranks, dtype=bool)
            counted[self.ranks] = True
            # Other ranks' pairs are in none of these plans.
            few = pairs[counted[self.placement.owner_n[pairs]].any(axis=1)]
            plans = [plan_pairs(few, self.placement, rank) for rank in self.ranks.tolist()]
            self._planned = pairs, plans
        return self._planned[1]

    # -- mixing -----------------------------------------------------------------------------------

    def mix(self, weights: Weights, x_nd: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Return sum_k w_ik x_k for all clients, all columns at once, and count it as planned."""
        known = self._mixed
        if known is None or known[0] is not weights or known[1] != weights.version:
            known = self._mixed = weights, weights.version, self._crossing.mix(weights)
        weight_bytes = 0 if weights.known_to_senders else weights.dtype.itemsize
        self._mix(known[2], self._size(x_nd), weight_bytes)
        self.client_mixing.mix(weights, self._size(x_nd))
        (whole,) = blocks_of(weights, self._alone.by_rank)
        mixed_nd = torch.zeros_like(x_nd)
        Product(whole).add(x_nd, mixed_nd)
        return iter([(slice(None), mixed_nd)])

    def mix_unlike(self, weights: Weights, x_nd: Tensor) -> None:
        """Count a mix by weights of the kind of these, of which no two are equal."""
        weight_bytes = 0 if weights.known_to_senders else weights.dtype.itemsize
        self._mix(self._crossing.mix_unlike(), self._size(x_nd), weight_bytes)
        self.client_mixing.mix_all(self._size(x_nd), weight_bytes)

    def _mix(self, crossing: tuple[Ints, Ints], size: int, weight_bytes: int) -> None:
        """Count models received and sent, [S, R] each, and weights that senders do not know."""
        received_sr, sent_sr = crossing
        clients_s = self._clients_s
        if weight_bytes:
            others_s = self.placement.clients - clients_s
            peers = self.placement.ranks - 1
            self.send("mixing", peers, clients_s * others_s * weight_bytes)
        self._keep_sums(
            "mixed", clients_s, np.array([widest(c, size, _CPU) for c in clients_s.tolist()])
        )
        sent_s = sent_sr.sum(axis=1) * size * self.wire.itemsize
        self.send("mixing", (sent_sr > 0).sum(axis=1), sent_s)
        self.keep(OUTGOING, sent_s)
        self.keep_arrived(INCOMING, received_sr.sum(axis=1) * size)
        self._keep_packed(sent_sr.max(axis=1) * size)

    def all_reduce(self, weights_kn: NDArray[np.floating], x: Tensor) -> Tensor:
        """Return k combinations of all rows, [n, d] or [k, n, d], and count them as brought to every rank."""
        size, ranks, own_rows = self._size(x), self.placement.ranks, x.dim() == 3
        every = np.arange(self.placement.clients)
        self.client_mixing.all_reduce(weights_kn, every, size, own_rows=own_rows)
        models_r = self._crossing.all_reduce(weights_kn, own_rows)
        numbers_s = models_r[self.ranks] * size
        self.send(
            "mixing", (ranks - 1) * (numbers_s > 0), (ranks - 1) * numbers_s * self.wire.itemsize
        )
        if ranks > 1:
            self.keep(OUTGOING, numbers_s * self.wire.itemsize)  # the same for all: packed once
        # A rank has its own part in its outgoing buffer, unless it is alone.
        boxes_sr = np.where((self.ranks[:, None] != np.arange(ranks)) | (ranks == 1), models_r, 0)
        self.keep("incoming by rank", boxes_sr * size * self.wire.itemsize)
        if self.wire != self.dtype:
            own_sr = np.broadcast_to(models_r, boxes_sr.shape)
            self.keep("arrived by rank", own_sr * size * self.dtype.itemsize)
        self._keep_packed(numbers_s)
        self._keep_sums("sums", np.full(len(self.ranks), len(weights_kn)), size)
        weights = torch.from_numpy(np.ascontiguousarray(weights_kn)).to(x)
        return (weights[:, None] @ x)[:, 0]

    def all_gather(self, numbers_n: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the numbers, and count them as sent to every other rank."""
        self.client_mixing.all_gather(numbers_n.size)
        nbytes = numbers_n.size // self.placement.clients * _SCALAR_BYTES
        peers = self.placement.ranks - 1
        self.send("mixing", peers * (self._clients_s > 0), peers * self._clients_s * nbytes)
        return numbers_n

    # -- all models with all clients ----------------------------------------------------------------

    def gram(
        self, a_nd: Tensor, b_nd: Tensor | None = None, sketch: Sketch | None = None
    ) -> NDArray[np.float64]:
        """Return all inner products, and count rows, or their sketches, and partial sums."""
        matrices = (a_nd,) if b_nd is None else (a_nd, b_nd)
        size = self._compared(a_nd, sketch)
        self.client_mixing.gram(self.placement.clients, len(matrices) * size)
        count_gram(self, len(matrices), size)
        found: NDArray[np.float64] = (a_nd.double() @ matrices[-1].double().T).numpy()
        return found

    def visits(
        self, *rows_nd: Tensor, among_n: NDArray[np.bool_] | None = None, numbers: int = 0
    ) -> Iterator[Visit]:
        """Yield the visitors group by group, and count them as sent to all ranks."""
        n, sizes = self.placement.clients, [self._size(rows) for rows in rows_nd]
        among_n = np.ones(n, dtype=bool) if among_n is None else among_n
        self._among_n = among_n
        self.client_mixing.visits(among_n, np.arange(n), sum(sizes))
        at_once = models_at_once(max(numbers, sum(sizes)), _CPU)
        for group in plan_visits(self.placement, among_n, at_once):
            self._visiting = group
            count_visitors(self, group, sizes)
            yield group, tuple(rows[torch.from_numpy(group)] for rows in rows_nd)

    def send_back(self, answers_kmd: Tensor) -> tuple[Ints, Tensor]:
        """Return all answers, and count those to clients of other ranks."""
        size, every = self._size(answers_kmd), np.arange(self.placement.clients)
        self.client_mixing.send_back(self._among_n, every, self._visiting, size)
        count_answers(self, self._visiting, self._among_n, size)
        return self._visiting, answers_kmd

    # -- counting ---------------------------------------------------------------------------------

    def _size(self, rows: Tensor) -> int:
        return self.sizes[rows.shape[-1]]

    def _compared(self, rows: Tensor, sketch: Sketch | None) -> int:
        """Return how many numbers of a row travel to be compared."""
        return self._size(rows) if sketch is None else sketch.columns(self._size(rows))

    def send(
        self, purpose: str, messages: int | Ints, nbytes: int | Ints, at: int | slice = slice(None)
    ) -> None:
        """Count messages and bytes that the counted ranks, or the one at `at`, send."""
        row = TRAINING.index(purpose)
        self._messages_ps[row, at] += messages
        self._bytes_ps[row, at] += nbytes

    def keep(
        self, name: str, nbytes: int | Ints, at: int | tuple[int, int] | slice = slice(None)
    ) -> None:
        """A buffer is kept at the largest size it was ever needed in (`maths.flat.Scratch`)."""
        if name not in self.buffers:
            by_peer = isinstance(at, tuple) or np.ndim(nbytes) == 2
            peers = (self.placement.ranks,) * by_peer
            self.buffers[name] = np.zeros((len(self.ranks), *peers), dtype=np.int64)
        held = self.buffers[name]
        held[at] = np.maximum(held[at], nbytes)

    def keep_arrived(self, name: str, numbers: int | Ints, at: int | slice = slice(None)) -> None:
        """Keep what arrived; where it travels in another type, also in the type of the models."""
        self.keep(name, numbers * self.wire.itemsize, at)
        if self.wire != self.dtype:
            self.keep("arrived", numbers * self.dtype.itemsize, at)

    def _keep_packed(self, numbers_s: Ints) -> None:
        if self.wire != self.dtype:
            self.keep("to pack", numbers_s * self.dtype.itemsize)

    def _keep_sums(self, name: str, rows_s: Ints, columns: int | Ints) -> None:
        for width in np.unique(columns).tolist():
            bytes_s = rows_s * row_bytes(width, self.dtype)
            self.keep(f"{name} {width}", np.where(columns == width, bytes_s, 0))
        if self.deterministic:
            self.keep("term", columns * self.dtype.itemsize)
