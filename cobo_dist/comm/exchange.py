"""The exchange: everything an algorithm may ask of clients on other ranks.

`send_models`, `receive_models` and `midpoints` give pairs their midpoints; `alignment` multiplies the
gradients there across ranks; `mix` delivers sum_k w_ik x_k; `gather_rows` brings W to the coordinator. An
algorithm sees models leave and arrive, and never a rank, a tag or a handle.

Shapes: c clients on this rank, n in all, d parameters, m pairs, e ends of pairs on this rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobo_dist.comm.channel import OUTGOING, Channel
from cobo_dist.comm.client_traffic import ClientTraffic
from cobo_dist.comm.mixing_exchange import MixingExchange
from cobo_dist.comm.pair_plan import PairPlan, plan_pairs
from cobo_dist.comm.pairwise_dot import PairwiseDot
from cobo_dist.comm.placement import Placement
from cobo_dist.comm.symmetry import find_asymmetry
from cobo_dist.comm.transports.base import NothingPending, Pending, Transport
from cobo_dist.comm.transports.checked_transport import CheckedTransport
from cobo_dist.maths.alignment import Statistic, midpoints
from cobo_dist.maths.flat import take_rows, to_device
from cobo_dist.maths.weights import Weights
from cobo_dist.phase_timer import PhaseTimer

_FINISH = {
    "send_models": "call exchange.receive_models",
    "mix": "take all slices that exchange.mix yields",
}
"""What ends a method whose messages or sums lie in buffers that other methods use."""


@dataclass(frozen=True)
class PairEnds:
    """This rank's ends of the drawn pairs: end k is client `ids[k]` (row `rows[k]` of X), whose
    partner is client `partners[k]`. `first[k]` says that the client is the lower one, so that each
    pair can be counted once over all ranks.
    """

    rows: NDArray[np.int64]
    ids: NDArray[np.int64]
    partners: NDArray[np.int64]
    first: NDArray[np.bool_]


class Exchange:
    """The exchange of one rank over a transport.

    `ids` are the clients of this rank. `traffic` counts what it sent, `client_traffic` what its clients
    would have sent and received as machines of their own.
    """

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
        """Exchange models of `dtype`, which travel as `wire` where that is given.

        `deterministic`: sums have the same bits on any number of ranks.
        """
        self.transport, self.deterministic = transport, deterministic
        self._channel = Channel(transport, dtype, device, wire=wire, timer=timer)
        self.timer, self.traffic = self._channel.timer, self._channel.traffic
        self.client_traffic = ClientTraffic(placement.clients, (wire or dtype).itemsize)
        self._pairwise_dot = PairwiseDot(self._channel, deterministic)
        self._in_flight: Pending = NothingPending()
        self._use(placement)

    def _use(self, placement: Placement) -> None:
        """Take a placement, and forget plans and models of an earlier one."""
        self.placement, self.ids = placement, placement.by_rank[self.transport.rank]
        self._models: dict[int, Tensor] = {}  # of this round's pairs, by client
        self._pair_plan = PairPlan.empty()
        self._planned_pairs = np.empty((0, 2), dtype=np.int64)  # the pairs of `_pair_plan`
        self._unfinished = ""  # the method whose messages or sums still lie in shared buffers
        self._mixing = MixingExchange(self._channel, placement, self.deterministic)

    # -- pairs ------------------------------------------------------------------------------------

    def send_models(self, x_cd: Tensor, pairs_m2: Tensor) -> None:
        """Start to send the models of the drawn pairs to their partners, each once to a rank.

        `x_cd` [c, d] must not change before the last `midpoints`, and nothing else may be sent before
        `receive_models`. `pairs_m2` int64 [m, 2], i < j, is the same on every rank.
        """
        self._enter(
            "send_models", self._wrong_rows(x_cd), pairs_m2=pairs_m2.numpy(), columns=x_cd.shape[1]
        )
        size, channel = x_cd.shape[1], self._channel
        plan = self._plan(pairs_m2)
        self.client_traffic.send_models(plan, size)
        transfers = plan.transfers
        sends = channel.messages(
            OUTGOING, {peer: len(one.send_clients) for peer, one in transfers.items()}, size
        )
        receives = channel.messages(
            "models", {peer: len(one.receive_clients) for peer, one in transfers.items()}, size
        )
        for peer, transfer in transfers.items():
            rows = to_device(self.placement.row_n[transfer.send_clients], x_cd.device)
            with self.timer.span("packing"):
                take_rows(x_cd, rows, sends[peer])
        self._in_flight = channel.post(sends, receives, "pairs")
        self._models = dict(zip(self.ids.tolist(), x_cd, strict=True))
        for peer, transfer in transfers.items():
            self._models.update(zip(transfer.receive_clients.tolist(), receives[peer], strict=True))
        self._unfinished = "send_models"

    def receive_models(self) -> None:
        """Wait until the partners' models have arrived."""
        self._enter("receive_models")
        self._channel.wait(self._in_flight)

    def midpoints(self, pairs_k2: Tensor) -> tuple[PairEnds, Tensor]:
        """Return this rank's ends of some of the sent pairs, and each end's midpoint (x_i + x_j)/2 [e, d].

        The midpoints lie in scratch rows that the caller may change. Every rank asks for the same pieces
        of the list in the same order.
        """
        self._enter("midpoints", pairs_k2=pairs_k2.numpy())
        plan, models = self._plan(pairs_k2), self._models
        size = next(iter(models.values())).shape[0]
        z_ed = self._channel.scratch.rows("midpoints", len(plan.clients), size)
        with self.timer.span("packing"):
            own, partners = plan.clients.tolist(), plan.partners.tolist()
            midpoints([models[i] for i in own], [models[j] for j in partners], z_ed)
        rows = self.placement.row_n[plan.clients]
        return PairEnds(rows, plan.clients, plan.partners, plan.first), z_ed

    def alignment(self, gradients_ed: Tensor, statistic: Statistic) -> NDArray[np.float64]:
        """Return the alignment [e] at each end of the pairs of the last `midpoints`.

        Args:
            gradients_ed: each end's own gradient at the midpoint.
            statistic: of the two gradients of a pair.
        """
        self._enter("alignment", statistic=statistic.name, columns=gradients_ed.shape[1])
        self.client_traffic.alignment(self._pair_plan, gradients_ed.shape[1])
        with self.timer.span("alignment"):
            return self._pairwise_dot.alignment(self._pair_plan, gradients_ed, statistic)

    def _plan(self, pairs_m2: Tensor) -> PairPlan:
        """Return the plan of these pairs, which mostly are those of the last call."""
        pairs = pairs_m2.numpy()
        if not np.array_equal(pairs, self._planned_pairs):
            self._pair_plan = plan_pairs(pairs, self.placement, self.transport.rank)
            self._planned_pairs = pairs
        return self._pair_plan

    # -- sums of models ---------------------------------------------------------------------------

    def mix(self, weights: Weights, x_cd: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Exchange models; return an iterator over columns of X, with sum_k w_ik x_k of these columns.

        The sums [c, columns] lie in scratch rows. A caller may change them and these columns of X before
        it asks for the next, and must exhaust the iterator before it calls the exchange again.

        Args:
            weights: this rank's rows of W. Where they are symmetric, a sender reads the receiver's block
                W[receiver, sender] from its own rows, transposed. Otherwise the receiver sends it first.
            x_cd: this rank's models.
        """
        self._enter(
            "mix", self._wrong_rows(x_cd) or self._wrong_weights(weights),
            columns=x_cd.shape[1], symmetric=weights.symmetric, weights_dtype=weights.dtype,
        )  # fmt: skip
        if weights.symmetric and isinstance(self.transport, CheckedTransport):
            problem = find_asymmetry(weights, self.placement, self.transport)
            self.transport.agree("exchange.mix", {}, problem)
        self.client_traffic.mix(weights, x_cd.shape[1])
        self._unfinished = "mix"
        return self._until_taken(self._mixing.mix(weights, x_cd))

    def _until_taken(self, sums: Iterator[tuple[slice, Tensor]]) -> Iterator[tuple[slice, Tensor]]:
        yield from sums
        self._unfinished = ""

    def all_reduce(self, weights_kn: NDArray[np.floating], x_cd: Tensor) -> Tensor:
        """Return the same k combinations sum_j w_kj x_j of all clients' rows on every rank, [k, d].

        `weights_kn` is the same on all ranks. All ranks get the same bits, in scratch rows.
        """
        problem = self._wrong_rows(x_cd)
        if weights_kn.shape[1:] != (self.placement.clients,):
            problem = (
                f"weights_kn has the shape {weights_kn.shape}; it needs one column for each of the "
                f"{self.placement.clients} clients"
            )
        self._enter("all_reduce", problem, weights_kn=weights_kn, columns=x_cd.shape[1])
        self.client_traffic.all_reduce(weights_kn, self.ids, x_cd.shape[1])
        return self._mixing.all_reduce(weights_kn, x_cd)

    def all_gather(self, numbers_c: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return a number of every client [n], or k numbers [n, k], in client order, on every rank."""
        self._enter("all_gather", self._wrong_rows(numbers_c))
        self.client_traffic.all_gather(numbers_c.size)
        with self.timer.span("waiting"):
            gathered_n = self.gather_rows(numbers_c.astype(np.float64), "mixing")
            # Rank 0 sends them to all, so that every rank decides by the same bits.
            record = b"" if gathered_n is None else gathered_n.tobytes()
            gathered = np.frombuffer(self.transport.broadcast(record))
            return gathered.reshape(-1, *numbers_c.shape[1:])

    # -- how it is called -----------------------------------------------------------------------------

    def begin_round(self, r: int) -> None:
        """Compare the rounds that all ranks begin, under `comm.check`."""
        if isinstance(self.transport, CheckedTransport):
            self.transport.begin_round(r)

    def _enter(self, method: str, problem: str = "", **same: object) -> None:
        """Begin a method; under `comm.check`, compare what all ranks call.

        Args:
            method: its name.
            problem: what is wrong with its arguments on this rank.
            same: what must be the same on all ranks, by name.

        Raises:
            ValueError: there is a problem, or the method before is not finished.
            RuleBroken: the same on all ranks, under `comm.check`.
        """
        before = self._unfinished
        if before and (before, method) != ("send_models", "receive_models"):
            problem = f"called before exchange.{before} is finished: {_FINISH[before]} first"
        self._unfinished = ""
        if isinstance(self.transport, CheckedTransport):
            self.transport.agree(f"exchange.{method}", same, problem)
        elif problem:
            raise ValueError(f"exchange.{method}: {problem}")

    def _wrong_rows(self, rows_c: Sized) -> str:
        if len(rows_c) == len(self.ids):
            return ""
        return (
            f"{len(rows_c)} rows for the {len(self.ids)} clients of rank {self.transport.rank}; it needs one "
            "row for each of clients.ids"
        )

    def _wrong_weights(self, weights: Weights) -> str:
        n = self.placement.clients
        if np.array_equal(weights.ids_c, self.ids) and weights.shape[1] == n:
            return ""
        return (
            f"weights of {weights.shape[0]} of {weights.shape[1]} clients are not those of rank "
            f"{self.transport.rank}, which has {len(self.ids)} of {n}; make them from clients.ids"
        )

    # -- migration --------------------------------------------------------------------------------

    def move(
        self, placement: Placement, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor]
    ) -> None:
        """Send migrating clients to their new owners, receive those that come, and use the placement."""
        self._enter("move", owners=placement.owner_n)
        self._channel.post(dict(sends), dict(receives), "moving").wait()
        self._use(placement)

    # -- the coordinator --------------------------------------------------------------------------

    @property
    def is_coordinator(self) -> bool:
        """Whether this rank gathers W and writes the logs."""
        return self.transport.rank == 0

    def gather_rows(
        self, rows_c: NDArray[np.floating], purpose: str = "logging"
    ) -> NDArray[np.floating] | None:
        """Return what every client has, [c, ...] on each rank, as [n, ...] on the coordinator; else None."""
        records = self.gather(np.ascontiguousarray(rows_c).tobytes(), purpose)
        if not records:
            return None
        shape = (-1, *rows_c.shape[1:])
        parts = [np.frombuffer(record, rows_c.dtype).reshape(shape) for record in records]
        return self.placement.in_client_order(parts)

    def gather(self, record: bytes, purpose: str = "logging") -> list[bytes]:
        """Return every rank's record on the coordinator, rank 0; an empty list elsewhere."""
        if not self.is_coordinator:
            self.traffic.sent(purpose, len(record))
        return self.transport.gather(record)
