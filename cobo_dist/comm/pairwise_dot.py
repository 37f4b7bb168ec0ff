"""Inner products of two owners' gradients by halves: d numbers cross in all, both ways at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobo_dist.comm.pair_plan import Index, PairPlan
from cobo_dist.comm.transports.base import Pending
from cobo_dist.maths.alignment import measure, middle, row_dots
from cobo_dist.maths.flat import Scratch, take_rows
from cobo_dist.phase_timer import PhaseTimer

Floats = NDArray[np.float64]
Post = Callable[[dict[int, Tensor], dict[int, Tensor], str], Pending]

OUTGOING, INCOMING = "outgoing", "incoming"
"""Buffers that messages of all kinds lie in, one kind after the other: each is waited for before the next."""


@dataclass(frozen=True)
class _Halves:
    """A peer's halves: the message, and where it lies in the type of gradients (mostly the same)."""

    box: Tensor
    held: Tensor
    seconds: tuple[int, int]  # shape of its second halves, which come first
    firsts: tuple[int, int]

    def arrived(self) -> tuple[Tensor, Tensor]:
        """Return the second halves and the first halves, once they are here."""
        if self.held is not self.box:
            self.held.copy_(self.box)
        border = self.seconds[0] * self.seconds[1]
        return self.held[:border].view(self.seconds), self.held[border:].view(self.firsts)


class PairwiseDot:
    """Alignments of the pairs of a meeting; `post` sends, entering the ledger."""

    def __init__(
        self,
        post: Post,
        scratch: Scratch,
        wire: Scratch,
        deterministic: bool,
        timer: PhaseTimer | None = None,
    ) -> None:
        """Send what lies in buffers of `wire`; multiply what lies in those of `scratch`."""
        self._post, self._scratch, self._wire = post, scratch, wire
        self.deterministic = deterministic
        self.timer = timer or PhaseTimer.off()
        self._scalars = Scratch(torch.float64, "cpu")

    def alignment(self, pair_plan: PairPlan, gradients_ed: Tensor, kind: str) -> Floats:
        """Return each end's alignment [e] of its own and its partner's midpoint gradient.

        The owner of the first client sends the second half of its gradient and gets the first half of
        the other: d numbers cross in all. Each multiplies the halves it then holds, and the two
        numbers change places. Both ends of a pair get the same bits.
        """
        cut = middle(gradients_ed.shape[1])
        halves, travelling = self._send_halves(pair_plan, gradients_ed, cut)
        # While they travel: what this rank can multiply alone.
        parts_e2 = np.zeros((len(pair_plan.clients), 2))  # products of first and of second halves
        self._local_products(pair_plan, gradients_ed, cut, parts_e2)
        every = np.arange(len(pair_plan.clients))
        squares_e = np.zeros(len(every))
        if kind == "cosine":
            squares_e = self._dots(gradients_ed, every, gradients_ed, every)
        with self.timer.span("waiting"):
            travelling.wait()
        for peer, transfer in pair_plan.transfers.items():
            seconds, firsts = halves[peer].arrived()
            ends = transfer.first_ends
            parts_e2[ends, 0] = self._dots(gradients_ed[:, :cut], ends, firsts, every)
            ends = transfer.second_ends
            parts_e2[ends, 1] = self._dots(gradients_ed[:, cut:], ends, seconds, every)
        partner_squares_e = self._exchange_scalars(pair_plan, parts_e2, squares_e)
        squares_e2 = np.stack([squares_e, partner_squares_e], axis=1)
        squares_e2[~pair_plan.first] = squares_e2[
            ~pair_plan.first, ::-1
        ]  # the first client's norm first
        return measure(
            torch.from_numpy(parts_e2[:, 0] + parts_e2[:, 1]), torch.from_numpy(squares_e2), kind
        ).numpy()

    def _send_halves(
        self, pair_plan: PairPlan, gradients_ed: Tensor, cut: int
    ) -> tuple[dict[int, _Halves], Pending]:
        """Swap half gradients; return by peer where they arrive.

        A message holds the second halves of all its first ends, then the first halves of all its
        second ends; what comes back is the other way round, in the order of the same pairs.
        """
        rest = gradients_ed.shape[1] - cut
        to, back = {}, {}
        for peer, transfer in pair_plan.transfers.items():
            firsts, seconds = len(transfer.first_ends), len(transfer.second_ends)
            to[peer] = firsts * rest + seconds * cut
            back[peer] = seconds * rest + firsts * cut
        outs, boxes = self._wire.several(OUTGOING, to), self._wire.several(INCOMING, back)
        helds = boxes
        if self._wire.dtype != gradients_ed.dtype:
            helds = self._scratch.several(INCOMING, back)
        sends, receives, halves = {}, {}, {}
        for peer, transfer in pair_plan.transfers.items():
            firsts, seconds = len(transfer.first_ends), len(transfer.second_ends)
            out, box = outs[peer], boxes[peer]
            out_rest, out_cut = out[: firsts * rest], out[firsts * rest :]
            with self.timer.span("packing"):
                ends = torch.from_numpy(transfer.first_ends).to(out.device)
                take_rows(gradients_ed[:, cut:], ends, out_rest.view(firsts, rest))
                ends = torch.from_numpy(transfer.second_ends).to(out.device)
                take_rows(gradients_ed[:, :cut], ends, out_cut.view(seconds, cut))
            if len(out):
                sends[peer] = out
            if len(box):
                receives[peer] = box
            halves[peer] = _Halves(box, helds[peer], (seconds, rest), (firsts, cut))
        return halves, self._post(sends, receives, "gradients")

    def _local_products(
        self, pair_plan: PairPlan, gradients_ed: Tensor, cut: int, parts_e2: Floats
    ) -> None:
        """Fill in the pairs inside this rank: their two ends stand side by side."""
        here = np.flatnonzero(pair_plan.local & pair_plan.first)
        for side, columns in enumerate((slice(None, cut), slice(cut, None))):
            half_ed = gradients_ed[:, columns]
            parts_e2[here, side] = self._dots(half_ed, here, half_ed, here + 1)
        parts_e2[here + 1] = parts_e2[here]

    def _exchange_scalars(self, pair_plan: PairPlan, parts_e2: Floats, squares_e: Floats) -> Floats:
        """Complete `parts_e2` with the peers' products; return the partner's squared norms [e]."""
        partner_squares_e = np.zeros(len(squares_e))
        here = np.flatnonzero(pair_plan.local & pair_plan.first)
        partner_squares_e[here] = squares_e[here + 1]
        partner_squares_e[here + 1] = squares_e[here]
        sends, receives = {}, {}
        for peer, transfer in pair_plan.transfers.items():
            mine = np.concatenate(
                [parts_e2[transfer.first_ends, 0], parts_e2[transfer.second_ends, 1],
                 squares_e[transfer.first_ends], squares_e[transfer.second_ends]]
            )  # fmt: skip
            sends[peer] = self._scalars.flat(f"to {peer}", len(mine))
            sends[peer].copy_(torch.from_numpy(mine))
            receives[peer] = self._scalars.flat(f"from {peer}", len(mine))
        travelling = self._post(sends, receives, "gradients")
        with self.timer.span("waiting"):
            travelling.wait()
        for peer, transfer in pair_plan.transfers.items():
            firsts, seconds = len(transfer.first_ends), len(transfer.second_ends)
            # The peer's second ends are the partners of my first ends, but it lists its firsts first.
            got = np.split(receives[peer].numpy(), np.cumsum([seconds, firsts, seconds]))
            parts_e2[transfer.second_ends, 0], parts_e2[transfer.first_ends, 1] = got[0], got[1]
            partner_squares_e[transfer.second_ends], partner_squares_e[transfer.first_ends] = (
                got[2],
                got[3],
            )
        return partner_squares_e

    def _dots(self, a_md: Tensor, rows_a: Index, b_md: Tensor, rows_b: Index) -> Floats:
        return row_dots(a_md, rows_a, b_md, rows_b, deterministic=self.deterministic)
