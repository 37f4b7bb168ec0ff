"""The exchange: everything an algorithm may ask of clients on other ranks.

`send_models`, `receive_models` and `midpoints` give pairs their midpoints; `alignment` multiplies the
gradients there across ranks; `mix` delivers sum_k w_ik x_k; `gram` gives all inner products; `visits` brings
every model to every rank; `gather_rows` brings W to the coordinator. An algorithm sees models leave and
arrive, and never a rank, a tag or a handle.

Shapes: c clients on this rank, n in all, d parameters, m pairs, e ends of pairs on this rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobo_dist.comm.channel import OUTGOING, Channel
from cobo_dist.comm.client_traffic import ClientTraffic
from cobo_dist.comm.gram import GramExchange
from cobo_dist.comm.mixing_exchange import MixingExchange
from cobo_dist.comm.pair_plan import PairPlan, plan_pairs
from cobo_dist.comm.pairwise_dot import PairwiseDot
from cobo_dist.comm.placement import Placement
from cobo_dist.comm.symmetry import find_asymmetry
from cobo_dist.comm.transports.base import NothingPending, Pending, Transport
from cobo_dist.comm.transports.checked_transport import CheckedTransport
from cobo_dist.comm.visits import Visit, VisitExchange
from cobo_dist.maths.alignment import Statistic, midpoints
from cobo_dist.maths.compression import Compression
from cobo_dist.maths.flat import models_at_once, take_rows, to_device
from cobo_dist.maths.sketch import Sketch
from cobo_dist.maths.weights import Weights
from cobo_dist.phase_timer import PhaseTimer

_FINISH = {
    "send_models": "call exchange.receive_models",
    "mix": "take all slices that exchange.mix yields",
    "visits": "take all groups that exchange.visits yields",
}
"""What ends a method whose messages or sums lie in buffers that other methods use."""

_ALLOWED = {("send_models", "receive_models"), ("visits", "send_back")}
"""Methods that may follow one that is not finished."""

Taken = TypeVar("Taken")
Collected = Callable[[list[bytes]], None]
"""What the coordinator does with the records of all ranks, in rank order."""


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
    """The exchange of one rank over a transport, for ranks that take every round together.

    `ids` are the clients of this rank. `traffic` counts what it sent, `client_traffic` what its clients
    would have sent and received as machines of their own. `in_step`: all ranks are after the same round.
    """

    is_asynchronous = False
    in_step = True

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
        compression: Compression | None = None,
    ) -> None:
        """Exchange models of `dtype`, which travel as `wire` where that is given.

        `deterministic`: sums have the same bits on any number of ranks. `compression`: how clients that were
        machines of their own would send models, which `client_traffic` counts.
        """
        self.transport, self.deterministic = transport, deterministic
        self._channel = Channel(transport, dtype, device, wire=wire, timer=timer)
        self.timer, self.traffic = self._channel.timer, self._channel.traffic
        self.client_traffic = ClientTraffic(
            placement.clients, (wire or dtype).itemsize, compression
        )
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
        self._gram = GramExchange(self._channel, placement, self.deterministic)
        self._visits = VisitExchange(self._channel, placement)

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
            firsts, seconds = (
                [models[i] for i in of_pair(plan.clients, plan.partners).tolist()]
                for of_pair in (np.minimum, np.maximum)
            )
            midpoints(firsts, seconds, z_ed)
        rows = self.placement.row_n[plan.clients]
        return PairEnds(rows, plan.clients, plan.partners, plan.first), z_ed

    def alignment(
        self, gradients_ed: Tensor, statistic: Statistic, sketch: Sketch | None = None
    ) -> tuple[PairEnds, NDArray[np.float64]]:
        """Return the ends of the pairs of the last `midpoints`, and the alignment [e] at each.

        Args:
            gradients_ed: each end's own gradient at the midpoint.
            statistic: of the two gradients of a pair.
            sketch: what travels in place of gradients, and whose inner products and norms then count.
        """
        plan = self._pair_plan
        with self.timer.span("alignment"):
            if sketch is not None:
                gradients_ed = sketch.of_pairs(gradients_ed, plan.clients, plan.partners)
            self._enter("alignment", statistic=statistic.name, columns=gradients_ed.shape[1])
            self.client_traffic.alignment(plan, gradients_ed.shape[1])
            ends = PairEnds(
                self.placement.row_n[plan.clients], plan.clients, plan.partners, plan.first
            )
            return ends, self._pairwise_dot.alignment(plan, gradients_ed, statistic)

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

    def _until_taken(self, parts: Iterator[Taken]) -> Iterator[Taken]:
        yield from parts
        self._unfinished = ""

    def all_reduce(self, weights_kn: NDArray[np.floating], x: Tensor) -> Tensor:
        """Return the same k combinations sum_j w_kj x_j of all clients' rows on every rank, [k, d].

        All ranks get the same bits, in scratch rows.

        Args:
            weights_kn: the same on all ranks.
            x: this rank's rows [c, d], or [k, c, d] with rows of their own for each sum.
        """
        problem, own_rows = self._wrong_rows(x.movedim(-2, 0)), x.dim() == 3
        if weights_kn.shape[1:] != (self.placement.clients,):
            problem = (
                f"weights_kn has the shape {weights_kn.shape}; it needs one column for each of the "
                f"{self.placement.clients} clients"
            )
        elif own_rows and len(x) != len(weights_kn):
            problem = f"rows for {len(x)} of {len(weights_kn)} sums; each needs rows of its own"
        self._enter("all_reduce", problem, weights_kn=weights_kn, columns=x.shape[-1])
        self.client_traffic.all_reduce(weights_kn, self.ids, x.shape[-1], own_rows=own_rows)
        return self._mixing.all_reduce(weights_kn, x)

    def all_gather(self, numbers_c: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return numbers of every client, [n] or [n, k] in client order, on every rank."""
        self._enter("all_gather", self._wrong_rows(numbers_c))
        self.client_traffic.all_gather(numbers_c.size)
        own = torch.from_numpy(np.ascontiguousarray(numbers_c, dtype=np.float64))
        every = [
            own.new_empty(len(ids), *own.shape[1:]) if rank != self.transport.rank else own
            for rank, ids in enumerate(self.placement.by_rank)
        ]
        peers = [rank for rank in range(len(every)) if rank != self.transport.rank]
        sends = dict.fromkeys(peers, own) if own.numel() else {}
        receives = {rank: every[rank] for rank in peers if every[rank].numel()}
        self._channel.wait(self._channel.post(sends, receives, "mixing"))
        return self.placement.in_client_order([part.numpy() for part in every])

    # -- all models with all clients ----------------------------------------------------------------

    def gram(
        self, a_cd: Tensor, b_cd: Tensor | None = None, sketch: Sketch | None = None
    ) -> NDArray[np.float64]:
        """Return the inner products <a_i, b_j> [c, n] of this rank's rows with all clients', in float64.

        Without `b_cd` they are <a_i, a_j>, with the same bits for (i, j) and (j, i). A rank keeps n x n
        numbers meanwhile, and never n x d. In a deterministic run the bits are those of any number of ranks.
        `sketch`: what travels in place of rows.
        """
        matrices: tuple[Tensor, ...] = (a_cd,) if b_cd is None else (a_cd, b_cd)
        if sketch is not None:
            matrices = tuple(sketch.of_rows(rows_cd) for rows_cd in matrices)
        problem = next(filter(None, map(self._wrong_rows, matrices)), "")
        columns = [rows_cd.shape[1] for rows_cd in matrices]
        if len(set(columns)) > 1:
            problem = (
                f"rows of {columns[0]} and of {columns[1]} columns; give both the same columns"
            )
        self._enter("gram", problem, columns=columns)
        self.client_traffic.gram(len(self.ids), sum(columns))
        return self._gram.gram(matrices)

    def visits(
        self, *rows_cd: Tensor, among_n: NDArray[np.bool_] | None = None, numbers: int = 0
    ) -> Iterator[Visit]:
        """Bring every model to every rank once; return an iterator over groups of visitors.

        It yields their ids [k], ascending, and their rows of each matrix [k, d] in scratch rows. The next
        group is on its way meanwhile. A caller must take all groups, and may call only `send_back` meanwhile.

        Args:
            rows_cd: this rank's models, and what else belongs to them, such as their buffers.
            among_n: the clients whose models visit, the same on all ranks; None: all.
            numbers: what a rank keeps for each visitor, which bounds a group; at least its columns.
        """
        n, columns = self.placement.clients, [one.shape[1] for one in rows_cd]
        problem = next(filter(None, map(self._wrong_rows, rows_cd)), "")
        among_n = np.ones(n, dtype=bool) if among_n is None else among_n
        if among_n.shape != (n,) or among_n.dtype != np.bool_:
            problem = f"among_n is {among_n.dtype} {among_n.shape}; it needs one bool for each of {n} clients"
        self._enter("visits", problem, among_n=among_n, columns=columns, numbers=numbers)
        self.client_traffic.visits(among_n, self.ids, sum(columns))
        self._among_n, self._unfinished = among_n, "visits"
        at_once = models_at_once(max(numbers, sum(columns)), self._channel.scratch.device)
        return self._until_taken(self._visits.visits(rows_cd, among_n, at_once))

    def send_back(self, answers_ked: Tensor) -> tuple[NDArray[np.int64], Tensor]:
        """Send answers to the k visitors of the last group to their owners; return those to this rank's own.

        Args:
            answers_ked: of this rank's clients that take part, e, in the order of their rows.

        Returns:
            This rank's rows [h] whose models visit, and the answers [h, m, d] of all m clients that take
            part, in client order, in scratch rows.
        """
        problem = "" if self._unfinished == "visits" else "called outside of exchange.visits"
        group = self._visits.visiting
        shape = len(group), int(self._among_n[self.ids].sum()) if not problem else 0
        if not problem and answers_ked.shape[:2] != shape:
            problem = f"answers {tuple(answers_ked.shape)}; they need the shape ({shape[0]}, {shape[1]}, d)"
        size = answers_ked.shape[-1]
        self._enter("send_back", problem, columns=size)
        self._unfinished = "visits"
        self.client_traffic.send_back(self._among_n, self.ids, group, size)
        return self._visits.send_back(answers_ked)

    def staleness(self) -> tuple[float, int]:
        """Return the mean and the greatest age, in rounds, of the models that were mixed last."""
        return 0.0, 0

    # -- the pace -------------------------------------------------------------------------------------

    def next_round(self, r: int, due: int) -> int:
        """Return the round that this rank takes after round r; at the latest the one that is due."""
        return r + 1

    def asked_to_stop(self, caught: int) -> int:
        """Return a signal by which a rank already knows that all stop; 0: none, `gather` will tell."""
        return 0

    def meet(self, r: int) -> bool:
        """Return whether all ranks are together after round r, once they are."""
        return True

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
        if before and (before, method) not in _ALLOWED:
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

    def collect(self, record: bytes, collected: Collected, purpose: str = "logging") -> None:
        """Call `collected` with every rank's record on the coordinator, at once or when they have arrived."""
        if records := self.gather(record, purpose):
            collected(records)

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
