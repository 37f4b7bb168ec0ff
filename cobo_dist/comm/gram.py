"""All inner products of the rows of two matrices whose rows lie on many ranks.

Columns are cut into groups, and each group belongs to a rank. A rank receives its columns of all clients'
rows, a piece at a time, and adds the pieces' products to a matrix [n, n] in float64. Then each rank receives
its clients' rows of these matrices and adds them in the order of the groups. So a rank sends (R - 1)/R of its
rows. If whole rows went from rank to rank instead, it would send them R - 1 times.

A deterministic run has the same groups on any number of ranks, hence the same sums.

Shapes: c clients on this rank, n in all, d columns, w of them in a piece, R ranks, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobo_dist.comm.channel import INCOMING, OUTGOING, Channel
from cobo_dist.comm.placement import Placement
from cobo_dist.comm.transports.base import Pending
from cobo_dist.maths.flat import Scratch, put_rows, take_rows, to_device

DETERMINISTIC_GROUPS = 8
"""Groups of columns in a deterministic run, in which more ranks than these multiply nothing."""
_MAX_NUMBERS, _MIN_COLUMNS = 1 << 22, 512
"""Numbers of all clients' rows in a piece, and columns of a piece even where these are more."""
_ROWS_AT_ONCE = 256
"""Rows of a product: where both matrices are one, the columns before these rows' own are left out."""

Piece = tuple[int, slice]
"""A group, and some of its columns."""


def plan_gram(size: int, clients: int, ranks: int, deterministic: bool) -> list[list[Piece]]:
    """Return the pieces of each rank, in the order in which it multiplies them.

    >>> plan_gram(40, clients=3, ranks=2, deterministic=False)
    [[(0, slice(0, 32, None))], [(1, slice(32, 40, None))]]
    """
    groups = DETERMINISTIC_GROUPS if deterministic else ranks
    # On 64-byte boundaries of 4-byte numbers.
    bounds = [min(size, -(-(size * group // groups) // 16) * 16) for group in range(groups + 1)]
    width = max(_MAX_NUMBERS // clients // 16 * 16, _MIN_COLUMNS)
    pieces: list[list[Piece]] = [[] for _ in range(ranks)]
    for group in range(groups):
        end = bounds[group + 1]
        pieces[group * ranks // groups] += [
            (group, slice(at, min(end, at + width))) for at in range(bounds[group], end, width)
        ]
    return pieces


def width_of(pieces: Sequence[Piece], k: int) -> int:
    """Return how many columns a rank multiplies in step k; 0 where it is done."""
    return pieces[k][1].stop - pieces[k][1].start if k < len(pieces) else 0


def groups_of(pieces: Sequence[Piece]) -> list[int]:
    """Return the groups of a rank that have columns, ascending."""
    return sorted({group for group, _ in pieces})


class GramExchange:
    """What `Exchange.gram` does, for one placement."""

    def __init__(self, channel: Channel, placement: Placement, deterministic: bool) -> None:
        self.channel, self.placement, self.deterministic = channel, placement, deterministic
        self.rank = channel.transport.rank
        self._doubles = Scratch(torch.float64, channel.scratch.device)

    def gram(self, matrices: Sequence[Tensor]) -> NDArray[np.float64]:
        """Return <a_i, b_j> [c, n] for the matrices (a, b) of this rank, or (a,) if both are one."""
        size, n = matrices[0].shape[1], self.placement.clients
        plan = plan_gram(size, n, self.placement.ranks, self.deterministic)
        mine, steps = plan[self.rank], max(map(len, plan))
        groups = groups_of(mine)
        partial_gnn = self._doubles.flat("products", len(groups) * n * n).view(-1, n, n).zero_()
        received, pending = self._post(matrices, plan, 0)
        for k in range(steps):
            self.channel.wait(pending)
            pieces = self._unpack(matrices, mine, k, received)
            if k + 1 < steps:  # into the same buffers, which have been read
                received, pending = self._post(matrices, plan, k + 1)
            if pieces:
                with self.channel.timer.span("alignment"):
                    _multiply(pieces[0], pieces[-1], partial_gnn[groups.index(mine[k][0])])
        if len(matrices) == 1:
            for one_nn in partial_gnn:
                one_nn.copy_(one_nn.triu() + one_nn.triu(1).T)
        return self._sum(partial_gnn, [groups_of(pieces) for pieces in plan])

    def _post(
        self, matrices: Sequence[Tensor], plan: list[list[Piece]], k: int
    ) -> tuple[dict[int, Tensor], Pending]:
        """Send every peer this rank's rows of its columns of step k; receive all peers' rows of mine."""
        by_rank, channel, count = self.placement.by_rank, self.channel, len(matrices)
        peers = [peer for peer in range(len(by_rank)) if peer != self.rank]
        own, width = len(by_rank[self.rank]), width_of(plan[self.rank], k)
        sent = {peer: count * own * width_of(plan[peer], k) for peer in peers}
        sends = channel.wire.several(OUTGOING, {peer: size for peer, size in sent.items() if size})
        for peer, message in sends.items():
            with channel.timer.span("packing"):
                columns = plan[peer][k][1]
                for part_cw, rows_cd in zip(message.view(count, own, -1), matrices, strict=True):
                    part_cw.copy_(rows_cd[:, columns])
        counts = {peer: count * len(by_rank[peer]) * width for peer in peers}
        receives = channel.wire.several(
            INCOMING, {peer: size for peer, size in counts.items() if size}
        )
        return receives, channel.post(sends, receives, "mixing")

    def _unpack(
        self,
        matrices: Sequence[Tensor],
        mine: Sequence[Piece],
        k: int,
        received: dict[int, Tensor],
    ) -> list[Tensor]:
        """Return all clients' rows of this rank's piece k in client order, [n, w] of each matrix."""
        if k >= len(mine):
            return []
        n, width, columns = self.placement.clients, width_of(mine, k), mine[k][1]
        wire, by_rank = self.channel.wire.dtype, self.placement.by_rank
        pieces = []
        with self.channel.timer.span("packing"):
            for which, rows_cd in enumerate(matrices):
                piece_nw = self._doubles.flat(f"rows {which}", n * width).view(n, width)
                # This rank's rows are rounded as if they had travelled: sums are those of any placement.
                put_rows(rows_cd[:, columns].to(wire), by_rank[self.rank], piece_nw)
                for peer, message in received.items():
                    part_cw = message.view(len(matrices), -1, width)[which]
                    put_rows(part_cw, by_rank[peer], piece_nw)
                pieces.append(piece_nw)
        return pieces

    def _sum(self, partial_gnn: Tensor, groups: Sequence[list[int]]) -> NDArray[np.float64]:
        """Exchange rows of the partial sums; return the sums of this rank's clients, [c, n]."""
        by_rank, n, channel = self.placement.by_rank, self.placement.clients, self.channel
        peers = [peer for peer in range(len(by_rank)) if peer != self.rank]
        own, count = len(by_rank[self.rank]), len(partial_gnn)
        sent = {peer: count * len(by_rank[peer]) * n for peer in peers}
        sends = self._doubles.several(OUTGOING, {peer: size for peer, size in sent.items() if size})
        for peer, message in sends.items():
            rows = to_device(by_rank[peer], message.device)
            for part_cn, partial_nn in zip(message.view(count, -1, n), partial_gnn, strict=True):
                take_rows(partial_nn, rows, part_cn)
        counts = {peer: len(groups[peer]) * own * n for peer in peers}
        receives = self._doubles.several(
            INCOMING, {peer: size for peer, size in counts.items() if size}
        )
        channel.wait(channel.post(sends, receives, "mixing"))
        of_group = {
            group: message_cn
            for peer, message in receives.items()
            for group, message_cn in zip(groups[peer], message.view(-1, own, n), strict=True)
        }
        mine = to_device(by_rank[self.rank], partial_gnn.device)
        for group, partial_nn in zip(groups[self.rank], partial_gnn, strict=True):
            of_group[group] = partial_nn.index_select(0, mine)
        sums_cn = partial_gnn.new_zeros(own, n)
        for group in sorted(of_group):
            sums_cn += of_group[group]
        found: NDArray[np.float64] = sums_cn.cpu().numpy()
        return found


def _multiply(a_nw: Tensor, b_nw: Tensor, into_nn: Tensor) -> None:
    """Add A B^T; of a product with itself, only what is needed on and above the diagonal."""
    for at in range(0, len(a_nw), _ROWS_AT_ONCE):
        rows = slice(at, at + _ROWS_AT_ONCE)
        columns = slice(at if a_nw is b_nw else 0, None)
        into_nn[rows, columns].addmm_(a_nw[rows], b_nw[columns].T)
