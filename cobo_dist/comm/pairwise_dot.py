"""Inner products of gradients whose two owners are on different ranks.

The owner of the pair's first client sends the second half of its gradient and receives the first half of the
other: d numbers cross in all, half of them each way at the same time. Each owner multiplies the halves it
then has, and the two products are exchanged. Both ends of a pair get the same bits.

Shapes: e ends of pairs on this rank, d parameters, a gradient cut into `cut` and d - cut numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobo_dist.comm.channel import INCOMING, OUTGOING, Channel
from cobo_dist.comm.pair_plan import Index, PairPlan
from cobo_dist.comm.transports.base import Pending
from cobo_dist.maths.alignment import Statistic, middle, row_dots
from cobo_dist.maths.flat import Scratch, take_rows, to_device

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _PeerHalves:
    """The halves that a peer sends: the message, and its copy in the type of the gradients.

    Without `comm.dtype=bfloat16` both are the same tensor.
    """

    message: Tensor
    copy: Tensor
    second_shape: tuple[int, int]  # of the second halves, which come first
    first_shape: tuple[int, int]

    def unpack(self) -> tuple[Tensor, Tensor]:
        """Return the second halves and the first halves, once the message has arrived."""
        if self.copy is not self.message:
            self.copy.copy_(self.message)
        border = self.second_shape[0] * self.second_shape[1]
        return self.copy[:border].view(self.second_shape), self.copy[border:].view(self.first_shape)


class PairwiseDot:
    """Alignments of the pairs of a plan."""

    def __init__(self, channel: Channel, deterministic: bool) -> None:
        self.channel, self.deterministic = channel, deterministic
        self._scalars = Scratch(torch.float64, "cpu")

    def alignment(self, plan: PairPlan, gradients_ed: Tensor, statistic: Statistic) -> Floats:
        """Return the alignment [e] of each end's gradient with that of its partner at the midpoint."""
        cut = middle(gradients_ed.shape[1])
        halves, pending = self._exchange_halves(plan, gradients_ed, cut)
        # Meanwhile: the pairs within this rank, and this rank's own norms.
        here, every = np.flatnonzero(plan.local & plan.first), np.arange(len(plan.clients))
        first_ed, second_ed = gradients_ed[:, :cut], gradients_ed[:, cut:]
        # The ends that each list of products belongs to, and the half: 0, 1; 2 for squared norms.
        wanted: list[tuple[Index, int, Tensor]] = [
            (here, side, self._dots(half_ed, here, half_ed, here + 1))
            for side, half_ed in enumerate((first_ed, second_ed))
        ]
        if statistic.needs_norms:
            wanted.append((every, 2, self._dots(gradients_ed, every, gradients_ed, every)))
        self.channel.wait(pending)
        for peer, transfer in plan.transfers.items():
            seconds, firsts = halves[peer].unpack()
            ends = transfer.first_ends
            wanted.append((ends, 0, self._dots(first_ed, ends, firsts, every)))
            ends = transfer.second_ends
            wanted.append((ends, 1, self._dots(second_ed, ends, seconds, every)))
        products_e3 = _read(wanted, len(every))
        # The two ends of a pair within this rank are neighbors in the plan.
        products_e3[here + 1, :2] = products_e3[here, :2]
        parts_e2, squares_e = products_e3[:, :2], products_e3[:, 2]
        partner_squares_e = self._exchange_products(plan, parts_e2, squares_e)
        squares_e2 = np.stack([squares_e, partner_squares_e], axis=1)
        # The norm of the pair's first client comes first, at both ends.
        squares_e2[~plan.first] = squares_e2[~plan.first, ::-1]
        return statistic(parts_e2[:, 0] + parts_e2[:, 1], squares_e2)

    def _exchange_halves(
        self, plan: PairPlan, gradients_ed: Tensor, cut: int
    ) -> tuple[dict[int, _PeerHalves], Pending]:
        """Start to exchange half gradients; return by peer where they arrive.

        A message has the second halves of all its first ends, then the first halves of all its second
        ends. The answer has it the other way round, in the order of the same pairs.
        """
        rest, channel = gradients_ed.shape[1] - cut, self.channel
        sent, received = {}, {}  # numbers
        for peer, transfer in plan.transfers.items():
            firsts, seconds = len(transfer.first_ends), len(transfer.second_ends)
            sent[peer] = firsts * rest + seconds * cut
            received[peer] = seconds * rest + firsts * cut
        outgoing = channel.wire.several(OUTGOING, sent)
        incoming = channel.wire.several(INCOMING, received)
        copies = incoming
        if channel.wire.dtype != gradients_ed.dtype:
            copies = channel.scratch.several(INCOMING, received)
        halves = {}
        for peer, transfer in plan.transfers.items():
            firsts, seconds = len(transfer.first_ends), len(transfer.second_ends)
            message = outgoing[peer]
            with channel.timer.span("packing"):
                ends = to_device(transfer.first_ends, message.device)
                out = message[: firsts * rest].view(firsts, rest)
                take_rows(gradients_ed[:, cut:], ends, out)
                ends = to_device(transfer.second_ends, message.device)
                out = message[firsts * rest :].view(seconds, cut)
                take_rows(gradients_ed[:, :cut], ends, out)
            halves[peer] = _PeerHalves(incoming[peer], copies[peer], (seconds, rest), (firsts, cut))
        sends = {peer: message for peer, message in outgoing.items() if len(message)}
        receives = {peer: message for peer, message in incoming.items() if len(message)}
        return halves, channel.post(sends, receives, "gradients")

    def _exchange_products(self, plan: PairPlan, parts_e2: Floats, squares_e: Floats) -> Floats:
        """Complete `parts_e2` with the peers' products; return the partners' squared norms [e]."""
        partner_squares_e = np.zeros(len(squares_e))
        here = np.flatnonzero(plan.local & plan.first)
        partner_squares_e[here] = squares_e[here + 1]
        partner_squares_e[here + 1] = squares_e[here]
        sends, receives = {}, {}
        for peer, transfer in plan.transfers.items():
            firsts, seconds = transfer.first_ends, transfer.second_ends
            mine = np.concatenate(
                [parts_e2[firsts, 0], parts_e2[seconds, 1], squares_e[firsts], squares_e[seconds]]
            )
            sends[peer] = self._scalars.flat(f"to {peer}", len(mine))
            sends[peer].copy_(torch.from_numpy(mine))
            receives[peer] = self._scalars.flat(f"from {peer}", len(mine))
        self.channel.wait(self.channel.post(sends, receives, "gradients"))
        for peer, transfer in plan.transfers.items():
            firsts, seconds = transfer.first_ends, transfer.second_ends
            # The peer's second ends are the partners of my first ends, but it lists its firsts first.
            borders = np.cumsum([len(seconds), len(firsts), len(seconds)])
            got = np.split(receives[peer].numpy(), borders)
            parts_e2[seconds, 0], parts_e2[firsts, 1] = got[0], got[1]
            partner_squares_e[seconds], partner_squares_e[firsts] = got[2], got[3]
        return partner_squares_e

    def _dots(self, a_md: Tensor, rows_a: Index, b_md: Tensor, rows_b: Index) -> Tensor:
        return row_dots(a_md, rows_a, b_md, rows_b, deterministic=self.deterministic)


def _read(wanted: list[tuple[Index, int, Tensor]], ends: int) -> Floats:
    """Return products by end and kind [e, 3], read from the device at once: each reading waits for it."""
    values = torch.cat([dots for _, _, dots in wanted]).cpu().double().numpy()
    products_e3 = np.zeros((ends, 3))
    at = 0
    for rows, kind, dots in wanted:
        products_e3[rows, kind] = values[at : at + len(dots)]
        at += len(dots)
    return products_e3
