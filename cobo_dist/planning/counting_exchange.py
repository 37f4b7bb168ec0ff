"""The exchanges of all ranks at once, without ranks: what they would send and keep room for.

An algorithm that is given this in the place of an `Exchange`, and all clients at once, gets the same
answers, computed densely. What each rank would send for them is worked out from the same plans (`plans`,
`maths.mixing`) and entered into its ledger. Rows here are as short as the clients' stand-ins make them:
`sizes` says what they stand for.

Shapes: n clients, m pairs, e ends of pairs, of all ranks together; c clients of one rank, d parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobo_dist.comm.channel import INCOMING, OUTGOING
from cobo_dist.comm.exchange import PairEnds
from cobo_dist.comm.mixing_plan import planner
from cobo_dist.comm.pair_plan import PairPlan, plan_pairs
from cobo_dist.comm.placement import Placement
from cobo_dist.comm.traffic_counter import TrafficCounter
from cobo_dist.maths import mixing
from cobo_dist.maths.alignment import middle
from cobo_dist.maths.blocks import Block, blocks_of, rows_of
from cobo_dist.maths.flat import row_bytes, widest
from cobo_dist.maths.weights import Weights

_ARRIVED = "arrived"  # what came in the type of the models, where it travels in another
_SCALAR = 8  # bytes of a float64, in which inner products and shared numbers travel


class CountingExchange:
    """Stands for the exchange of every rank.

    `ledgers[r]` is what rank r would have sent; `room[r]` the bytes of each buffer that it would keep;
    `work[r]` how it would bring sums of models together: `additions` of a row to a row, the numbers `added`
    so, and those `multiplied` with a weight and added, where a block is more than one sum.
    """

    def __init__(
        self,
        placement: Placement,
        sizes: Mapping[int, int],
        dtype: torch.dtype,
        *,
        deterministic: bool = False,
        wire: torch.dtype | None = None,
    ) -> None:
        """Count for a placement; a row of k numbers here stands for one of `sizes[k]` of `dtype`.

        Models and gradients travel as `wire`, if that is another type.
        """
        self.placement, self.sizes, self.dtype = placement, dict(sizes), dtype
        self.wire = wire or dtype
        self.deterministic = deterministic
        self.traffic = [TrafficCounter() for _ in range(placement.ranks)]
        self.room: list[Counter[str]] = [Counter() for _ in range(placement.ranks)]
        self._laid: list[Counter[str]] = [Counter() for _ in range(placement.ranks)]
        self.work: list[Counter[str]] = [Counter() for _ in range(placement.ranks)]
        self._plan = planner(deterministic)
        self._alone = Placement.contiguous(placement.clients, 1)
        self._meetings: list[PairPlan] = []
        self._x_nd = torch.empty(0)

    # -- partners' models -----------------------------------------------------------------------

    def send_models(self, x_nd: Tensor, pairs_m2: Tensor) -> None:
        """Count the models of the drawn pairs, each once to a rank that needs it."""
        self._x_nd = x_nd
        model = self._size(x_nd) * self.wire.itemsize
        for rank, pair_plan in enumerate(self._meet(pairs_m2)):
            for transfer in pair_plan.transfers.values():
                self._send(rank, "pairs", len(transfer.send_clients) * model, OUTGOING)
                self._lay(rank, "models", len(transfer.receive_clients) * model)
        self._settle()

    def receive_models(self) -> None:
        """Have nothing to wait for."""

    def midpoints(self, pairs_k2: Tensor) -> tuple[PairEnds, Tensor]:
        """Return all ends of some of the sent pairs, and each end's midpoint."""
        self._meetings = self._meet(pairs_k2)
        row = row_bytes(self._size(self._x_nd), self.dtype)
        for rank, pair_plan in enumerate(self._meetings):
            self._keep(rank, "midpoints", len(pair_plan.clients) * row)
        every = plan_pairs(pairs_k2.numpy(), self._alone, 0)
        ends = PairEnds(every.clients, every.clients, every.partners, every.first)
        x_i, x_j = (self._x_nd[torch.from_numpy(ids)] for ids in (every.clients, every.partners))
        return ends, (x_i + x_j) / 2

    def alignment(self, gradients_ed: Tensor, kind: str) -> NDArray[np.float64]:
        """Count half gradients and their scalars; return 0 for every end: no weight moves."""
        size = self._size(gradients_ed)
        cut = middle(size)
        for rank, pair_plan in enumerate(self._meetings):
            for peer, transfer in pair_plan.transfers.items():
                firsts, seconds = len(transfer.first_ends), len(transfer.second_ends)
                out = firsts * (size - cut) + seconds * cut
                back = seconds * (size - cut) + firsts * cut
                if out:
                    self._send(rank, "gradients", out * self.wire.itemsize, OUTGOING)
                self._lay(rank, INCOMING, back * self.wire.itemsize)
                if self.wire != self.dtype:
                    self._lay(rank, _ARRIVED, back * self.dtype.itemsize)
                scalars = 2 * (firsts + seconds) * _SCALAR
                self._send(rank, "gradients", scalars)
                for way in ("to", "from"):
                    self._keep(rank, f"scalars {way} {peer}", scalars)
        self._settle()
        return np.zeros(len(gradients_ed))

    # -- mixing -----------------------------------------------------------------------------------

    def mix(
        self, weights: Weights, x_nd: Tensor, *, symmetric: bool = True
    ) -> Iterator[tuple[slice, Tensor]]:
        """Return sum_k w_ik x_k for all clients, all columns at once, and count it as planned."""
        by_rank, size = self.placement.by_rank, self._size(x_nd)
        blocks = blocks_of(weights, by_rank)

        def block(to: int, source: int) -> Block:
            return rows_of(blocks[source], by_rank[to])

        self._mix(
            lambda to, source: self._plan(block(to, source)).models,
            size,
            0 if symmetric else weights.dtype.itemsize,
        )
        for rank, rows in enumerate(by_rank):
            own = block(rank, rank)
            if self.deterministic:
                self._work(rank, len(rows), self._plan(own).models, size)
            else:
                self._work_own(rank, mixing.Product(own), size)
        (whole,) = blocks_of(weights, self._alone.by_rank)
        mixed_nd = torch.zeros_like(x_nd)
        mixing.Product(whole).add(x_nd, mixed_nd)
        return iter([(slice(None), mixed_nd)])

    def mix_unlike(self, x_nd: Tensor, itemsize: int, *, symmetric: bool = True) -> None:
        """Count a mix by weights of `itemsize` bytes of which no two are alike: no plan saves a model."""

        def models(to: int, source: int) -> int:
            receivers, senders = (len(self.placement.by_rank[rank]) for rank in (to, source))
            return senders if self.deterministic else min(receivers, senders)

        size = self._size(x_nd)
        self._mix(models, size, 0 if symmetric else itemsize)
        for rank, clients in enumerate(self.placement.by_rank):
            if self.deterministic:
                self._work(rank, len(clients), len(clients), size)
            else:
                self.work[rank].update(multiplied=len(clients) ** 2 * size)

    def _mix(self, models: Callable[[int, int], int], size: int, told: int) -> None:
        """Count what crosses between ranks, and `told` bytes a weight where the sender does not know them."""
        by_rank = self.placement.by_rank
        for to, rows in enumerate(by_rank):
            self._keep_sums(to, "mixed", len(rows), widest(len(rows), size))
            for source, columns in enumerate(by_rank):
                if to == source:  # multiplied as it lies
                    continue
                if told:
                    self._send(to, "mixing", len(rows) * len(columns) * told)
                count = models(to, source)
                self._deliver(to, source, count, size)
                self._work(to, len(rows), count, size)
        self._settle()

    def all_reduce(self, weights_kn: NDArray[np.floating], x_nd: Tensor) -> Tensor:
        """Return k combinations of all rows, and count them as brought to every rank."""
        size = self._size(x_nd)
        for source, columns in enumerate(self.placement.by_rank):
            self._keep_sums(source, "sums", len(weights_kn), size)
            models = self._plan(Block.of(weights_kn[:, columns])).models
            for to in range(self.placement.ranks):
                # The same for all: packed once.
                packed = to == (0 if source else 1)
                self._deliver(to, source, models, size, packed=packed, alike=True)
                self._work(to, len(weights_kn), models, size)
        self._settle()
        return torch.from_numpy(np.ascontiguousarray(weights_kn)).to(x_nd) @ x_nd

    def all_gather(self, numbers_n: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the numbers, and count them as gathered by rank 0."""
        for rank, clients in enumerate(self.placement.by_rank):
            if rank:
                self._send(rank, "mixing", len(clients) * _SCALAR)
        return numbers_n

    # -- counting ---------------------------------------------------------------------------------

    def _meet(self, pairs_m2: Tensor) -> list[PairPlan]:
        pairs = pairs_m2.numpy()
        return [plan_pairs(pairs, self.placement, rank) for rank in range(self.placement.ranks)]

    def _size(self, rows: Tensor) -> int:
        return self.sizes[rows.shape[1]]

    def _send(self, rank: int, purpose: str, nbytes: int, buffer: str = "") -> None:
        self.traffic[rank].sent(purpose, nbytes)
        if buffer:
            self._lay(rank, buffer, nbytes)

    def _lay(self, rank: int, buffer: str, nbytes: int) -> None:
        """Lay a message into a buffer, behind those that are there."""
        self._laid[rank][buffer] += nbytes

    def _settle(self) -> None:
        """Be done with the messages of one kind: the next lie where these lay."""
        for rank, laid in enumerate(self._laid):
            for buffer, nbytes in laid.items():
                self._keep(rank, buffer, nbytes)
            laid.clear()

    def _keep(self, rank: int, buffer: str, nbytes: int) -> None:
        """A buffer is kept at the largest size it was ever needed in (`maths.flat.Scratch`)."""
        self.room[rank][buffer] = max(self.room[rank][buffer], nbytes)

    def _keep_sums(self, rank: int, name: str, rows: int, size: int) -> None:
        self._keep(rank, f"{name} {size}", rows * row_bytes(size, self.dtype))
        if self.deterministic:
            self._keep(rank, "term", size * self.dtype.itemsize)

    def _deliver(
        self,
        to: int,
        source: int,
        models: int,
        size: int,
        *,
        packed: bool = True,
        alike: bool = False,
    ) -> None:
        """Count one part of a sum, `packed` for this rank; alone, a rank has its own in a buffer too."""
        nbytes = models * size * self.wire.itemsize
        if models:
            if to != source:
                self._send(source, "mixing", nbytes, OUTGOING if packed else "")
            if to != source or self.placement.ranks == 1:
                self._lay(to, f"{INCOMING} {source}" if alike else INCOMING, nbytes)
            if self.wire != self.dtype:
                nbytes = models * size * self.dtype.itemsize
                self._lay(to, f"{_ARRIVED} {source}" if alike else _ARRIVED, nbytes)
                self._keep(source, "to pack", models * size * self.dtype.itemsize)

    def _work(self, to: int, rows: int, models: int, size: int) -> None:
        if models == 1:
            self.work[to].update(additions=rows, added=rows * size)
        else:
            self.work[to].update(multiplied=rows * models * size)

    def _work_own(self, rank: int, own: mixing.Product, size: int) -> None:
        if own.is_written_out:
            rows, columns = own.shape
            self.work[rank].update(multiplied=rows * columns * size)
        else:
            self.work[rank].update(additions=own.additions, added=own.additions * size)
