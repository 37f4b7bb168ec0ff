"""Meetings of pairs whose two ranks do not wait for each other.

The rank of the pair's first client i asks: it sends x_i. The rank of the second client j answers in the next
round that it begins, with x_j and g_j(z), z = (x_i + x_j)/2 with x_j as it then is. The first rank computes
g_i(z) at the same z, whenever the answer comes, and tells the second the alignment. So both gradients are at
one midpoint, as in synchronous runs, and both ends see the same alignments in the same order. A pair that is
drawn again meanwhile is skipped, so no more than one meeting of a pair is under way.

Shapes: m pairs, e ends of pairs on this rank, k pairs of one letter, d parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobo_dist.comm.asynchronous.known_models import rows_to_send
from cobo_dist.comm.asynchronous.mailbox import Letter
from cobo_dist.comm.pair_plan import PairPlan, plan_pairs
from cobo_dist.comm.placement import Placement
from cobo_dist.maths.alignment import Statistic, midpoints, row_dots
from cobo_dist.maths.sketch import Sketch

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Post = Callable[[int, Letter, str], None]
"""Sends a letter to a peer, and counts it for a purpose."""


@dataclass
class _Group:
    """Ends of pairs with clients of one peer, whose gradients are computed in this round.

    `rows_kd` are the models of the clients on the other rank, `theirs_kd` these clients' gradients, which an
    answer has. `mine_kd` are the models of this rank's clients, as the peer has them.
    """

    peer: int
    round: int  # in which the first rank asked
    pairs_k2: Ints
    rows_kd: Tensor
    mine_kd: Tensor
    theirs_kd: Tensor | None = None

    @property
    def asked(self) -> bool:
        """Whether the peer asked, and this rank's clients are the second ones."""
        return self.theirs_kd is None

    @property
    def ids_k(self) -> Ints:
        """This rank's clients."""
        mine: Ints = self.pairs_k2[:, 1 if self.asked else 0]
        return mine


class PairMeetings:
    """The meetings of one rank's clients that are under way."""

    def __init__(self, placement: Placement, rank: int, wire: torch.dtype, post: Post) -> None:
        """Hold none yet; models and gradients travel as `wire`."""
        self.placement, self.rank, self.wire, self.post = placement, rank, wire, post
        self._x_cd = torch.empty(0)
        self.forget()

    def forget(self) -> None:
        """Break off all meetings that are under way: every rank does, when all are together."""
        self._asked: dict[tuple[int, int], Tensor] = {}  # x_i as it was sent, by pair
        self._requests: list[tuple[int, Letter]] = []
        self._answers: list[tuple[int, Letter]] = []
        self._local, self._groups = PairPlan.empty(), list[_Group]()

    def take(self, peer: int, letter: Letter) -> None:
        """Keep a request or an answer until the next round."""
        (self._requests if letter.kind == "request" else self._answers).append((peer, letter))

    # -- a round ------------------------------------------------------------------------------------

    def ask(self, x_cd: Tensor, pairs_m2: Ints, r: int) -> None:
        """Ask for meetings of the drawn pairs whose first client is on this rank and second on another."""
        self._x_cd = x_cd
        owner_m2 = self.placement.owner_n[pairs_m2]
        goes_out = (owner_m2[:, 0] == self.rank) & (owner_m2[:, 1] != self.rank)
        for peer in np.unique(owner_m2[goes_out, 1]).tolist():
            drawn_k2 = pairs_m2[goes_out & (owner_m2[:, 1] == peer)]
            new_k2 = np.array(
                [pair for pair in drawn_k2.tolist() if tuple(pair) not in self._asked]
            )
            if not len(new_k2):
                continue
            ids, which_k = np.unique(new_k2[:, 0], return_inverse=True)
            rows = rows_to_send(x_cd, self.placement.row_n[ids], self.wire)
            for pair, at in zip(new_k2.tolist(), which_k.tolist(), strict=True):
                self._asked[pair[0], pair[1]] = rows[at]
            letter = Letter("request", r, {"pairs": torch.from_numpy(new_k2), "models": rows})
            self.post(peer, letter, "pairs")

    def midpoints(self, pairs_k2: Ints) -> tuple[Ints, Ints, NDArray[np.bool_], Tensor]:
        """Return clients, partners and first [e] of ends, with their midpoints [e, d].

        The ends are those of pairs within this rank, of requests and of answers that have arrived.
        """
        owner_k2, x_cd = self.placement.owner_n[pairs_k2], self._x_cd
        within = (owner_k2 == self.rank).all(axis=1)
        self._local = plan_pairs(pairs_k2[within], self.placement, self.rank)
        requests, self._requests = self._requests, []
        answers, self._answers = self._answers, []
        self._groups = [
            group
            for group in (
                *(self._of_request(*one) for one in requests),
                *(self._of_answer(*one) for one in answers),
            )
            if len(group.pairs_k2)
        ]
        local = self._local
        clients = [local.clients, *(one.ids_k for one in self._groups)]
        partners = [
            local.partners,
            *(one.pairs_k2[:, 0 if one.asked else 1] for one in self._groups),
        ]
        first = [local.first, *(np.full(len(one.pairs_k2), not one.asked) for one in self._groups)]
        rows = self.placement.row_n
        pair_of = [(np.minimum, local), (np.maximum, local)]
        firsts, seconds = (
            [x_cd[i] for i in rows[side(plan.clients, plan.partners)].tolist()]
            for side, plan in pair_of
        )
        for group in self._groups:
            one, other = group.rows_kd, group.mine_kd
            firsts += list(one if group.asked else other)
            seconds += list(other if group.asked else one)
        z_ed = x_cd.new_empty(len(firsts), x_cd.shape[1])
        return (
            np.concatenate(clients), np.concatenate(partners), np.concatenate(first),
            midpoints(firsts, seconds, z_ed),
        )  # fmt: skip

    def _of_request(self, peer: int, letter: Letter) -> _Group:
        """Return the ends of pairs that a peer asks for: its x_i, and x_j as it is now."""
        pairs_k2 = letter.tensors["pairs"].numpy()
        _, which_k = np.unique(pairs_k2[:, 0], return_inverse=True)
        theirs = self._here(letter.tensors["models"][torch.from_numpy(which_k)])
        mine = rows_to_send(self._x_cd, self.placement.row_n[pairs_k2[:, 1]], self.wire)
        return _Group(peer, letter.round, pairs_k2, theirs, self._here(mine))

    def _of_answer(self, peer: int, letter: Letter) -> _Group:
        """Return the ends of pairs that a peer has answered: x_i as it was sent, and its x_j and g_j(z)."""
        pairs_k2 = letter.tensors["pairs"].numpy()
        known = [tuple(pair) in self._asked for pair in pairs_k2.tolist()]
        pairs_k2 = pairs_k2[known]
        kept = torch.from_numpy(np.flatnonzero(known))
        sent = [self._asked.pop((int(i), int(j))) for i, j in pairs_k2]
        mine = torch.stack(sent) if sent else letter.tensors["models"][:0]
        return _Group(
            peer, letter.round, pairs_k2, self._here(letter.tensors["models"][kept]),
            self._here(mine), self._here(letter.tensors["gradients"][kept]),
        )  # fmt: skip

    def _here(self, rows_kd: Tensor) -> Tensor:
        return rows_kd.to(self._x_cd.device, self._x_cd.dtype)

    def alignment(
        self, gradients_ed: Tensor, statistic: Statistic, sketch: Sketch | None
    ) -> tuple[Ints, Ints, NDArray[np.bool_], Floats]:
        """Answer requests, tell the alignments of answered pairs; return what is known at this rank's ends.

        Those are clients, partners, first and alignments [k] of pairs within this rank and of answered ones.
        `sketch`: what travels in place of gradients; those of one pair are of the round that asked.
        """
        local, at = self._local, len(self._local.clients)
        g_ed = gradients_ed[:at]
        if sketch is not None:
            g_ed = sketch.of_pairs(g_ed, local.clients, local.partners)
        known_k = np.repeat(self._align(g_ed[0::2], g_ed[1::2], statistic), 2)
        found = [(local.clients, local.partners, local.first, known_k)]
        for group in self._groups:
            g_kd = gradients_ed[at : at + len(group.pairs_k2)]
            at += len(g_kd)
            if sketch is not None:
                of_round = replace(sketch, t=group.round - 1)
                g_kd = of_round.of_pairs(g_kd, *group.pairs_k2.T[:: -1 if group.asked else 1])
            pairs = torch.from_numpy(np.ascontiguousarray(group.pairs_k2))
            if group.theirs_kd is None:
                sent = {"gradients": g_kd, "models": group.mine_kd}
                rows = {name: one.to("cpu", self.wire, copy=True) for name, one in sent.items()}
                self.post(
                    group.peer, Letter("answer", group.round, {"pairs": pairs, **rows}), "gradients"
                )
                continue
            # As it would have arrived at the other rank.
            known_k = self._align(g_kd.to(self.wire).to(g_kd.dtype), group.theirs_kd, statistic)
            told = {"pairs": pairs, "alignments": torch.from_numpy(known_k)}
            self.post(group.peer, Letter("alignment", group.round, told), "gradients")
            one, other = group.pairs_k2.T
            found.append((one, other, np.ones(len(one), dtype=bool), known_k))
        self._local, self._groups = PairPlan.empty(), []
        clients, partners, first, alignments = (
            np.concatenate([part[number] for part in found]) for number in range(4)
        )
        return clients, partners, first.astype(bool), alignments

    @staticmethod
    def _align(first_kd: Tensor, second_kd: Tensor, statistic: Statistic) -> Floats:
        every = np.arange(len(first_kd))

        def dots(a_kd: Tensor, b_kd: Tensor) -> Floats:
            found: Floats = row_dots(a_kd, every, b_kd, every).double().cpu().numpy()
            return found

        squares_k2 = np.zeros((len(every), 2))
        if statistic.needs_norms:
            squares_k2 = np.stack([dots(first_kd, first_kd), dots(second_kd, second_kd)], axis=1)
        return statistic(dots(first_kd, second_kd), squares_k2)

    def models(self) -> list[tuple[Ints, Tensor, int]]:
        """Return ids, models and rounds that the letters of this round bring of clients on other ranks."""
        return [
            (one.pairs_k2[:, 0 if one.asked else 1], one.rows_kd, one.round) for one in self._groups
        ]
