"""The exchange: what an algorithm may ask of other ranks' clients, in its own words.

`send_models`, `receive_models` and `meet` bring pairs to their midpoints, `alignment` multiplies the
gradients there across ranks, `mix` delivers sum_k w_ik x_k, `gather_rows` brings W to the coordinator. An
algorithm sees models leave and come back, and never a rank, a tag or a handle.

Shapes: c clients on this rank, n in all, d parameters, m pairs, e ends of pairs on this rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobo_dist.comm.mixing_plan import MixingPlans, RankMixing, from_exchanged_blocks, planner
from cobo_dist.comm.pair_plan import PairPlan, plan_pairs
from cobo_dist.comm.pairwise_dot import INCOMING, OUTGOING, PairwiseDot
from cobo_dist.comm.placement import Placement
from cobo_dist.comm.traffic_counter import TrafficCounter
from cobo_dist.comm.transports.base import NothingPending, Pending, Transport
from cobo_dist.maths import mixing
from cobo_dist.maths.alignment import midpoints
from cobo_dist.maths.blocks import Block
from cobo_dist.maths.flat import Scratch, columns_at_once, take_rows, widest
from cobo_dist.maths.weights import Weights
from cobo_dist.phase_timer import PhaseTimer


@dataclass(frozen=True)
class PairEnds:
    """This rank's ends of the drawn pairs: end k is client `ids[k]` (row `rows[k]` of X) meeting
    client `partners[k]`. `first[k]` says that the client is the lower one, so that each pair can be
    counted once over all ranks.
    """

    rows: NDArray[np.int64]
    ids: NDArray[np.int64]
    partners: NDArray[np.int64]
    first: NDArray[np.bool_]


class Exchange:
    """The exchange of one rank over a transport."""

    def __init__(
        self,
        transport: Transport,
        placement: Placement,
        dtype: torch.dtype,
        device: torch.device,
        *,
        deterministic: bool = False,
        timer: PhaseTimer | None = None,
        wire: torch.dtype | None = None,
    ) -> None:
        """Exchange models of `dtype`; they travel as `wire`, if that is another type."""
        self.timer = timer or PhaseTimer.off()
        self.transport = transport
        self.placement = placement
        self.ids = placement.by_rank[transport.rank]
        self.traffic = TrafficCounter()
        self.deterministic = deterministic
        self._scratch = Scratch(dtype, device)
        self._wire = Scratch(wire or dtype, device)  # messages
        self._pairwise_dot = PairwiseDot(
            self._exchange, self._scratch, self._wire, deterministic, self.timer
        )
        self._models: dict[int, Tensor] = {}  # of this round's pairs, by client
        self._travelling: Pending = NothingPending()
        self._pair_plan = PairPlan.empty()
        self._planned = np.empty((0, 2), dtype=np.int64)  # the pairs of `_meeting`
        self._routes = MixingPlans(placement, transport.rank, deterministic)

    # -- partners' models -----------------------------------------------------------------------

    def send_models(self, x_cd: Tensor, pairs_m2: Tensor) -> None:
        """Let the models of the drawn pairs leave for their partners, each once to a rank.

        `x_cd` [c, d] must not change before the last `meet`, and nothing else may be sent before
        `receive_models`. `pairs_m2` int64 [m, 2], i < j, is the same on every rank.
        """
        size, self._models = x_cd.shape[1], {}
        transfers = self._plan(pairs_m2).transfers
        sends = self._messages(
            OUTGOING,
            {peer: len(transfer.send_clients) for peer, transfer in transfers.items()},
            size,
        )
        boxes = self._messages(
            "models",
            {peer: len(transfer.receive_clients) for peer, transfer in transfers.items()},
            size,
        )
        for peer, transfer in transfers.items():
            rows = self.placement.row_n[transfer.send_clients]
            with self.timer.span("packing"):
                take_rows(x_cd, self._index(rows), sends[peer])
        travelling = self._exchange(sends, boxes, "pairs")
        models = {client: row for client, row in zip(self.ids.tolist(), x_cd, strict=True)}
        for peer, transfer in transfers.items():
            models.update(zip(transfer.receive_clients.tolist(), boxes[peer], strict=True))
        self._models, self._travelling = models, travelling

    def receive_models(self) -> None:
        """Wait until the partners' models are here."""
        with self.timer.span("waiting"):
            self._travelling.wait()

    def midpoints(self, pairs_k2: Tensor) -> tuple[PairEnds, Tensor]:
        """Return this rank's ends of some of the sent pairs, and each end's midpoint (x_i + x_j)/2 [e, d].

        The midpoints lie in scratch rows that the caller may change. Every rank takes the same pieces
        of the list in the same order.
        """
        pair_plan, models = self._plan(pairs_k2), self._models
        size = next(iter(models.values())).shape[0]
        z_ed = self._scratch.rows("midpoints", len(pair_plan.clients), size)
        with self.timer.span("packing"):
            own, partners = pair_plan.clients.tolist(), pair_plan.partners.tolist()
            midpoints([models[i] for i in own], [models[j] for j in partners], z_ed)
        rows = self.placement.row_n[pair_plan.clients]
        return PairEnds(rows, pair_plan.clients, pair_plan.partners, pair_plan.first), z_ed

    def _plan(self, pairs_m2: Tensor) -> PairPlan:
        """Return the meeting of these pairs: mostly those just sent, planned once."""
        pairs = pairs_m2.numpy()
        if not np.array_equal(pairs, self._planned):
            self._pair_plan = plan_pairs(pairs, self.placement, self.transport.rank)
            self._planned = pairs
        return self._pair_plan

    def alignment(self, gradients_ed: Tensor, kind: str) -> NDArray[np.float64]:
        """Return the alignment [e] of the midpoint gradients of each end of the pairs just met."""
        with self.timer.span("alignment"):
            return self._pairwise_dot.alignment(self._pair_plan, gradients_ed, kind)

    # -- mixing -----------------------------------------------------------------------------------

    def mix(
        self, weights: Weights, x_cd: Tensor, *, symmetric: bool = True
    ) -> Iterator[tuple[slice, Tensor]]:
        """Bring models together; return an iterator over columns of X, and sum_k w_ik x_k there.

        The sums [c, columns] lie in scratch rows. A caller may change them and these columns of X before
        it goes on to the next, and goes through them all before it asks for anything else.

        `weights` are this rank's rows of W. Where W is symmetric, a sender reads the receiver's
        block W[receiver, sender] from its own rows, transposed; otherwise the receiver sends it first.
        Each ordered pair of ranks uses the exact plan that sends the fewest models; parts are added in
        the order of ranks. With `comm.deterministic`, models travel as rows and are added in the order
        of clients.
        """
        with self.timer.span("mixing"):
            routes = (
                self._routes.for_symmetric(weights) if symmetric else self._exchange_blocks(weights)
            )
            boxes = self._bring(routes, x_cd) | {self.transport.rank: x_cd}
        return self._column_by_column(weights, routes, boxes, x_cd.shape[1])

    def _column_by_column(
        self, weights: Weights, routes: list[RankMixing], boxes: dict[int, Tensor], size: int
    ) -> Iterator[tuple[slice, Tensor]]:
        count = len(self.ids)
        room_ck = self._scratch.rows("mixed", count, widest(count, size))
        for at in columns_at_once(count, size):
            with self.timer.span("mixing"):
                some = {peer: box[:, at] for peer, box in boxes.items()}
                mixed_ck = room_ck[:, : at.stop - at.start]
                self._sum(weights.each_row(), routes, some, mixed_ck)
            yield at, mixed_ck

    def _exchange_blocks(self, weights: Weights) -> list[RankMixing]:
        """Tell every peer my block W[mine, its], and plan by it and by theirs W[its, mine], bit by bit."""
        rank, dense_cn = self.transport.rank, weights.dense()
        blocks = [np.ascontiguousarray(dense_cn[:, ids]) for ids in self.placement.by_rank]
        sends, receives = {}, {}
        for peer, block in enumerate(blocks):
            if peer != rank:
                sends[peer] = torch.from_numpy(block)
                receives[peer] = torch.empty(block.shape[::-1], dtype=sends[peer].dtype)
        travelling = self._exchange(sends, receives, "mixing")
        with self.timer.span("waiting"):
            travelling.wait()
        mine = [Block.of(block) for block in blocks]
        theirs = [
            mine[rank] if peer == rank else Block.of(receives[peer].numpy())
            for peer in range(len(blocks))
        ]
        return from_exchanged_blocks(mine, theirs, rank, self.deterministic)

    def all_reduce(self, weights_kn: NDArray[np.floating], x_cd: Tensor) -> Tensor:
        """Return the same k combinations sum_j w_kj x_j of all clients' rows on every rank, [k, d].

        `weights_kn` is the same on all ranks. Travels and is added as in `mix`, so that all ranks
        get the same bits; the result lies in scratch rows.
        """
        with self.timer.span("mixing"):
            plan = planner(self.deterministic)
            plans = [plan(Block.of(weights_kn[:, ids])) for ids in self.placement.by_rank]
            own = plans[self.transport.rank]
            routes = [RankMixing(incoming, own) for incoming in plans]
            boxes = self._bring(routes, x_cd, alike=True)
            sums_kd = self._scratch.rows("sums", len(weights_kn), x_cd.shape[1])
            self._sum(weights_kn, routes, boxes, sums_kd)
            return sums_kd

    def _bring(
        self, routes: list[RankMixing], x_cd: Tensor, alike: bool = False
    ) -> dict[int, Tensor]:
        """Let models and sums travel along the routes to all ranks; return what came, by rank.

        `alike`: all ranks get the same bits, so that what a rank has for itself is packed and rounded
        as if it had travelled.
        """
        rank, size = self.transport.rank, x_cd.shape[1]
        outgoing = {peer: route.outgoing for peer, route in enumerate(routes) if peer != rank}
        # Ranks that are outgoing the same get one message; alike, it is what a rank would pack for itself.
        first = {id(plan): peer for peer, plan in reversed(outgoing.items()) if plan.models}
        packed = self._messages(
            OUTGOING, {one: outgoing[one].models for one in first.values()}, size
        )
        for peer, message in packed.items():
            with self.timer.span("packing"):
                self._pack(outgoing[peer], x_cd, message)
        sends = {peer: packed[first[id(plan)]] for peer, plan in outgoing.items() if plan.models}
        incoming = {
            peer: route.incoming.models
            for peer, route in enumerate(routes)
            if route.incoming.models and (peer != rank or (alike and not packed))
        }
        # Alike: each as aligned as on other ranks, so that sums have the same bits.
        boxes = self._messages(INCOMING, incoming, size, apart=alike)
        receives = {peer: box for peer, box in boxes.items() if peer != rank}
        travelling = self._exchange(sends, receives, "mixing")
        if rank in boxes:
            self._pack(routes[rank].incoming, x_cd, boxes[rank])
        elif alike and packed:
            boxes[rank] = next(iter(packed.values()))
        with self.timer.span("waiting"):
            travelling.wait()
        return self._arrived(boxes, alike)

    def _sum(
        self,
        rows_rn: Iterable[NDArray[np.floating]],
        routes: list[RankMixing],
        boxes: dict[int, Tensor],
        sums_rd: Tensor,
    ) -> None:
        """Write sum_k w_rk x_k for each row of weights into `sums_rd`, from what came."""
        if self.deterministic:
            self._add_in_client_order(rows_rn, routes, boxes, sums_rd)
            return
        sums_rd.zero_()
        for peer, route in enumerate(routes):
            if route.incoming.models:
                mixing.unpack(route.incoming, boxes[peer], sums_rd)

    def _add_in_client_order(
        self,
        rows_rn: Iterable[NDArray[np.floating]],
        routes: list[RankMixing],
        payloads: dict[int, Tensor],
        mixed_rd: Tensor,
    ) -> None:
        models = {
            int(client): payloads[peer][place]
            for peer, route in enumerate(routes)
            for place, client in enumerate(self.placement.by_rank[peer][route.incoming.send])
        }
        term_d = self._scratch.flat("term", mixed_rd.shape[1])
        mixing.ordered_sum(rows_rn, models.__getitem__, mixed_rd, term_d)

    def all_gather(self, numbers_c: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return one number of every client, [n] in client order, on every rank."""
        with self.timer.span("waiting"):
            gathered_n = self.gather_rows(numbers_c.astype(np.float64), "mixing")
            # Every rank decides by the same numbers, so they come from one place.
            record = b"" if gathered_n is None else gathered_n.tobytes()
            return np.frombuffer(self.transport.broadcast(record))

    # -- moving -----------------------------------------------------------------------------------

    def move(
        self, placement: Placement, parcels: Mapping[int, Tensor], boxes: Mapping[int, Tensor]
    ) -> None:
        """Let clients move to another placement: their parcels to the new owners, boxes from the old."""
        self._exchange(dict(parcels), dict(boxes), "moving").wait()
        self.placement, self.ids = placement, placement.by_rank[self.transport.rank]
        # What is kept speaks of ranks and rows as they were.
        self._models, self._pair_plan = {}, PairPlan.empty()
        self._planned = np.empty((0, 2), dtype=np.int64)
        self._routes = MixingPlans(placement, self.transport.rank, self.deterministic)

    # -- the coordinator --------------------------------------------------------------------------

    def gather_rows(
        self, rows_c: NDArray[np.floating], purpose: str = "logging"
    ) -> NDArray[np.floating] | None:
        """Bring what every client has, [c, ...], to the coordinator: [n, ...] there, else None."""
        records = self.gather(np.ascontiguousarray(rows_c).tobytes(), purpose)
        if not records:
            return None
        return self.placement.in_client_order(
            [
                np.frombuffer(record, rows_c.dtype).reshape(-1, *rows_c.shape[1:])
                for record in records
            ]
        )

    def gather(self, record: bytes, purpose: str = "logging") -> list[bytes]:
        """Bring every rank's record to the coordinator, rank 0; an empty list elsewhere."""
        if self.transport.rank != 0:
            self.traffic.sent(purpose, len(record))
        return self.transport.gather(record)

    @property
    def is_coordinator(self) -> bool:
        """Whether this rank gathers W and writes the logs."""
        return self.transport.rank == 0

    # -- small help -------------------------------------------------------------------------------

    def _exchange(
        self, sends: dict[int, Tensor], receives: dict[int, Tensor], purpose: str
    ) -> Pending:
        for tensor in sends.values():
            self.traffic.sent(purpose, tensor.numel() * tensor.element_size())
        with self.timer.span("sending"):
            return self.transport.exchange(sends, receives, purpose)

    def _messages(
        self, name: str, models: Mapping[int, int], size: int, *, apart: bool = False
    ) -> dict[int, Tensor]:
        """Return by key a message of so many models, in the buffer `name` (`Scratch.several`)."""
        numbers = {key: count * size for key, count in models.items()}
        laid = self._wire.several(name, numbers, apart=apart)
        return {key: message.view(models[key], size) for key, message in laid.items()}

    def _pack(self, plan: mixing.BlockPlan, x_cd: Tensor, out_kd: Tensor) -> None:
        if out_kd.dtype == x_cd.dtype:
            mixing.pack(plan, x_cd, out_kd)
            return
        whole_kd = self._scratch.flat("to pack", out_kd.numel()).view(out_kd.shape)
        mixing.pack(plan, x_cd, whole_kd)
        out_kd.copy_(whole_kd)

    def _arrived(self, boxes: dict[int, Tensor], apart: bool) -> dict[int, Tensor]:
        """Return what arrived in the type of the models, aligned as it arrived."""
        if self._wire.dtype == self._scratch.dtype:
            return boxes
        numbers = {peer: box.numel() for peer, box in boxes.items()}
        held = self._scratch.several(INCOMING, numbers, apart=apart)
        return {peer: held[peer].view(box.shape).copy_(box) for peer, box in boxes.items()}

    def _index(self, numbers: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(numbers).to(self._scratch.device)
