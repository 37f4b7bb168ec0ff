"""The exchange: what an algorithm may ask of other ranks' clients, in its own words.

`send_models` / `receive_models` bring partners' models, `alignment` multiplies midpoint gradients
across ranks, `mix` delivers sum_k w_ik x_k, `gather_rows` brings W to the coordinator. An algorithm sees
models leave and come back, and never a rank, a tag or a handle.

Shapes: c clients on this rank, n in all, d parameters, m pairs, e ends of pairs on this rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobo_dist.maths import mixing
from cobo_dist.maths.alignment import measure, middle, row_dots
from cobo_dist.maths.flat import Scratch

from .ledger import Ledger
from .placement import Placement
from .plans import Meeting, plan_meeting
from .transport import Pending, Transport


@dataclass(frozen=True)
class Ends:
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
    ) -> None:
        self.transport = transport
        self.placement = placement
        self.ids = placement.by_rank[transport.rank]
        self.ledger = Ledger()
        self.deterministic = deterministic
        self._scratch = Scratch(dtype, device)
        self._meeting: Meeting | None = None
        self._travelling: Pending | None = None
        self._x_cd: Tensor | None = None

    # -- partners' models -----------------------------------------------------------------------

    def send_models(self, x_cd: Tensor, pairs_m2: Tensor) -> Ends:
        """Let the models of the drawn pairs leave for their partners; return this rank's ends.

        `x_cd` [c, d] must not change until `receive_models`. `pairs_m2` int64 [m, 2] is the same on
        every rank.
        """
        meeting = plan_meeting(pairs_m2.numpy(), self.placement, self.transport.rank)
        sends, receives, size = {}, {}, x_cd.shape[1]
        for peer, talk in meeting.talks.items():
            sends[peer] = self._message(f"models to {peer}", len(talk.send_clients), size)
            rows = self._local_rows(talk.send_clients)
            torch.index_select(x_cd, 0, self._index(rows), out=sends[peer])
            receives[peer] = self._message(f"models from {peer}", len(talk.receive_clients), size)
        self._travelling = self._exchange(sends, receives, "pairs")
        self._meeting, self._received, self._x_cd = meeting, receives, x_cd
        return Ends(
            self._local_rows(meeting.clients), meeting.clients, meeting.partners, meeting.first
        )

    def receive_models(self) -> Tensor:
        """Return the partner's model x_j of every end [e, d], in scratch rows the caller may change."""
        if self._meeting is None or self._travelling is None or self._x_cd is None:
            raise RuntimeError("receive_models without send_models")
        meeting, x_cd = self._meeting, self._x_cd
        partner_ed = self._scratch.rows("partners", len(meeting.clients), x_cd.shape[1])
        here = np.flatnonzero(meeting.local)
        self._copy_rows(x_cd, self._local_rows(meeting.partners[here]), partner_ed, here)
        self._travelling.wait()
        for peer, talk in meeting.talks.items():
            ends = np.concatenate([talk.first_ends, talk.second_ends])
            rows = np.searchsorted(talk.receive_clients, meeting.partners[ends])
            self._copy_rows(self._received[peer], rows, partner_ed, ends)
        self._travelling = self._x_cd = None
        return partner_ed

    # -- alignment of midpoint gradients ----------------------------------------------------------

    def alignment(self, gradients_ed: Tensor, kind: str) -> NDArray[np.float64]:
        """Return each end's alignment [e] of its own and its partner's midpoint gradient.

        The owner of the first client sends the second half of its gradient and gets the first half of
        the other: d numbers cross in all. Each multiplies the halves it then holds, and the two
        numbers change places. Both ends of a pair get the same bits.
        """
        meeting = self._require_meeting()
        cut = middle(gradients_ed.shape[1])
        halves = self._exchange_halves(meeting, gradients_ed, cut)
        parts_e2 = np.zeros((len(meeting.clients), 2))  # products of first and of second halves
        self._local_products(meeting, gradients_ed, cut, parts_e2)
        squares_e = (
            self._dots(gradients_ed, gradients_ed)
            if kind == "cosine"
            else np.zeros(len(meeting.clients))
        )
        for peer, talk in meeting.talks.items():
            seconds, firsts = halves[peer]
            own = gradients_ed[self._index(talk.first_ends)][:, :cut]
            parts_e2[talk.first_ends, 0] = self._dots(own, firsts)
            own = gradients_ed[self._index(talk.second_ends)][:, cut:]
            parts_e2[talk.second_ends, 1] = self._dots(own, seconds)
        partner_squares_e = self._exchange_scalars(meeting, parts_e2, squares_e)
        squares_e2 = np.stack([squares_e, partner_squares_e], axis=1)
        squares_e2[~meeting.first] = squares_e2[
            ~meeting.first, ::-1
        ]  # the first client's norm first
        return measure(
            torch.from_numpy(parts_e2[:, 0] + parts_e2[:, 1]), torch.from_numpy(squares_e2), kind
        ).numpy()

    def _exchange_halves(
        self, meeting: Meeting, gradients_ed: Tensor, cut: int
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """Swap half gradients; return by peer the second halves and the first halves received.

        A message holds the second halves of all its first ends, then the first halves of all its
        second ends; what comes back is the other way round, in the order of the same pairs.
        """
        rest = gradients_ed.shape[1] - cut
        sends, receives, parts = {}, {}, {}
        for peer, talk in meeting.talks.items():
            firsts, seconds = len(talk.first_ends), len(talk.second_ends)
            out = self._scratch.flat(f"halves to {peer}", firsts * rest + seconds * cut)
            box = self._scratch.flat(f"halves from {peer}", seconds * rest + firsts * cut)
            out_rest, out_cut = out[: firsts * rest], out[firsts * rest :]
            for number, end in enumerate(talk.first_ends):
                out_rest[number * rest : (number + 1) * rest].copy_(gradients_ed[end, cut:])
            for number, end in enumerate(talk.second_ends):
                out_cut[number * cut : (number + 1) * cut].copy_(gradients_ed[end, :cut])
            parts[peer] = (
                box[: seconds * rest].view(seconds, rest),
                box[seconds * rest :].view(firsts, cut),
            )
            if len(out):
                sends[peer] = out
            if len(box):
                receives[peer] = box
        self._exchange(sends, receives, "gradients").wait()
        return parts

    def _local_products(
        self, meeting: Meeting, gradients_ed: Tensor, cut: int, parts_e2: NDArray[np.float64]
    ) -> None:
        """Fill in the pairs inside this rank: their two ends stand side by side."""
        firsts = np.flatnonzero(meeting.local & meeting.first)
        if not len(firsts):
            return
        a_kd = gradients_ed[self._index(firsts)]
        b_kd = gradients_ed[self._index(firsts + 1)]
        for side, part in enumerate((slice(None, cut), slice(cut, None))):
            parts_e2[firsts, side] = self._dots(a_kd[:, part], b_kd[:, part])
        parts_e2[firsts + 1] = parts_e2[firsts]

    def _exchange_scalars(
        self, meeting: Meeting, parts_e2: NDArray[np.float64], squares_e: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Complete `parts_e2` with the peers' products; return the partner's squared norms [e]."""
        partner_squares_e = np.zeros(len(squares_e))
        here = np.flatnonzero(meeting.local & meeting.first)
        partner_squares_e[here] = squares_e[here + 1]
        partner_squares_e[here + 1] = squares_e[here]
        sends, receives = {}, {}
        for peer, talk in meeting.talks.items():
            mine = np.concatenate(
                [parts_e2[talk.first_ends, 0], parts_e2[talk.second_ends, 1],
                 squares_e[talk.first_ends], squares_e[talk.second_ends]]
            )  # fmt: skip
            sends[peer] = torch.from_numpy(mine)
            receives[peer] = torch.empty(len(mine), dtype=torch.float64)
        self._exchange(sends, receives, "gradients").wait()
        for peer, talk in meeting.talks.items():
            firsts, seconds = len(talk.first_ends), len(talk.second_ends)
            # The peer's second ends are the partners of my first ends, but it lists its firsts first.
            got = np.split(receives[peer].numpy(), np.cumsum([seconds, firsts, seconds]))
            parts_e2[talk.second_ends, 0], parts_e2[talk.first_ends, 1] = got[0], got[1]
            partner_squares_e[talk.second_ends], partner_squares_e[talk.first_ends] = got[2], got[3]
        return partner_squares_e

    # -- mixing -----------------------------------------------------------------------------------

    def mix(self, weights_cn: NDArray[np.floating], x_cd: Tensor) -> Tensor:
        """Return sum_k w_ik x_k for this rank's clients, [c, d], in scratch rows.

        `weights_cn` holds this rank's rows of a symmetric W: a sender reads the receiver's block
        W[receiver, sender] from its own rows, transposed. Each ordered pair of ranks uses the exact
        plan that sends the fewest models; parts are added in the order of ranks. With
        `comm.deterministic`, models travel as rows and are added in the order of clients.
        """
        rank, by_rank = self.transport.rank, self.placement.by_rank
        plan_block = mixing.plan_rows if self.deterministic else mixing.plan_block
        sends, receives, incoming, size = {}, {}, {}, x_cd.shape[1]
        for peer, peer_ids in enumerate(by_rank):
            block = weights_cn[:, peer_ids]
            incoming[peer] = plan = plan_block(block)
            if plan.models:
                receives[peer] = self._message(f"mix from {peer}", plan.models, size)
            if peer != rank and (outgoing := plan_block(block.T)).models:
                sends[peer] = self._message(f"mix to {peer}", outgoing.models, size)
                mixing.pack(outgoing, x_cd, sends[peer])
        own = receives.pop(rank, None)
        travelling = self._exchange(sends, receives, "mixing")
        if (
            own is not None
        ):  # what a rank has for itself is packed alike, so that all ranks add alike
            mixing.pack(incoming[rank], x_cd, own)
            receives[rank] = own
        travelling.wait()
        mixed_cd = self._scratch.rows("mixed", len(x_cd), size)
        if self.deterministic:
            self._add_in_client_order(weights_cn, incoming, receives, mixed_cd)
            return mixed_cd
        mixed_cd.zero_()
        for peer, plan in incoming.items():
            if plan.models:
                mixing.unpack(plan, receives[peer], mixed_cd)
        return mixed_cd

    def _add_in_client_order(
        self,
        weights_cn: NDArray[np.floating],
        incoming: dict[int, mixing.BlockPlan],
        payloads: dict[int, Tensor],
        mixed_cd: Tensor,
    ) -> None:
        models = {
            int(client): payloads[peer][place]
            for peer, plan in incoming.items()
            for place, client in enumerate(self.placement.by_rank[peer][plan.send])
        }
        term_d = self._scratch.rows("term", 1, mixed_cd.shape[1])[0]
        mixing.ordered_sum(weights_cn, models.__getitem__, mixed_cd, term_d)

    # -- the coordinator --------------------------------------------------------------------------

    def gather_rows(self, rows_ck: NDArray[np.floating]) -> NDArray[np.floating] | None:
        """Bring every client's row [k] to the coordinator: [n, k] in client order there, else None."""
        records = self.gather(np.ascontiguousarray(rows_ck).tobytes())
        if not records:
            return None
        gathered = np.empty((self.placement.clients, *rows_ck.shape[1:]), dtype=rows_ck.dtype)
        for ids, record in zip(self.placement.by_rank, records, strict=True):
            gathered[ids] = np.frombuffer(record, rows_ck.dtype).reshape(-1, *rows_ck.shape[1:])
        return gathered

    def gather(self, record: bytes) -> list[bytes]:
        """Bring every rank's record to the coordinator, rank 0; an empty list elsewhere."""
        if self.transport.rank != 0:
            self.ledger.sent("logging", len(record))
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
            self.ledger.sent(purpose, tensor.numel() * tensor.element_size())
        return self.transport.exchange(sends, receives, purpose)

    def _message(self, name: str, models: int, size: int) -> Tensor:
        return self._scratch.flat(name, models * size).view(models, size)

    def _require_meeting(self) -> Meeting:
        if self._meeting is None:
            raise RuntimeError("alignment without send_models")
        return self._meeting

    def _local_rows(self, clients: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.placement.row_n[clients]

    def _index(self, numbers: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(numbers).to(self._scratch.device)

    def _copy_rows(
        self,
        source: Tensor,
        source_rows: NDArray[np.int64],
        target: Tensor,
        target_rows: NDArray[np.int64],
    ) -> None:
        for from_row, to_row in zip(source_rows, target_rows, strict=True):
            target[to_row].copy_(source[from_row])

    def _dots(self, a_kd: Tensor, b_kd: Tensor) -> NDArray[np.float64]:
        dots: NDArray[np.float64] = (
            row_dots(a_kd, b_kd, deterministic=self.deterministic).double().cpu().numpy()
        )
        return dots
