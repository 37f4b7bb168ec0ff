"""Every model visits every rank once; what a rank answers goes back to the model's owner.

Models visit in groups. The owners send their models of a group to all ranks at once, and the next group is on
its way while this one is used. A group takes its clients from all ranks in turn, so that ranks send alike.

Shapes: c clients on this rank, k models of a group, h of them of this rank, m clients that take part, e of
them on this rank, d columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobo_dist.comm.channel import INCOMING, OUTGOING, Channel
from cobo_dist.comm.pair_plan import Index
from cobo_dist.comm.placement import Placement
from cobo_dist.comm.transports.base import Pending
from cobo_dist.maths.flat import put_rows, some_rows, take_rows, to_device

Visit = tuple[Index, tuple[Tensor, ...]]
"""The ids [k] of the visitors, ascending, and their rows of each matrix [k, d]."""


def plan_visits(placement: Placement, among_n: NDArray[np.bool_], at_once: int) -> list[Index]:
    """Return groups of at most `at_once` of the clients, each ascending.

    >>> every = np.ones(5, dtype=bool)
    >>> [group.tolist() for group in plan_visits(Placement.contiguous(5, 2), every, at_once=2)]
    [[0, 3], [1, 4], [2]]
    """
    ids = np.flatnonzero(among_n)
    ids = ids[np.lexsort((placement.owner_n[ids], placement.row_n[ids]))]
    return [np.sort(ids[at : at + at_once]) for at in range(0, len(ids), at_once)]


class VisitExchange:
    """What `Exchange.visits` and `Exchange.send_back` do, for one placement."""

    def __init__(self, channel: Channel, placement: Placement) -> None:
        self.channel, self.placement = channel, placement
        self.rank = channel.transport.rank
        self._among: list[Index] = []  # clients that take part, by rank
        self.visiting: Index = np.empty(0, dtype=np.int64)
        """The ids of the group that was yielded last."""

    def visits(
        self, matrices: Sequence[Tensor], among_n: NDArray[np.bool_], at_once: int
    ) -> Iterator[Visit]:
        """Yield each group of visitors; their rows lie in scratch until the next one."""
        self._among = [ids[among_n[ids]] for ids in self.placement.by_rank]
        groups = plan_visits(self.placement, among_n, at_once)
        for k, group in enumerate(groups):
            if k == 0:
                messages, pending = self._post(matrices, group)
            self.channel.wait(pending)
            rows = self._unpack(matrices, group, messages)
            if k + 1 < len(groups):  # into the same buffer, which has been read
                messages, pending = self._post(matrices, groups[k + 1])
            self.visiting = group
            yield group, rows

    def _post(
        self, matrices: Sequence[Tensor], group: Index
    ) -> tuple[dict[int, list[Tensor]], Pending]:
        """Start a group on its way; return by rank where its rows arrive, or lie, of each matrix."""
        sizes = [rows_cd.shape[1] for rows_cd in matrices]
        counts = {rank: len(ids) for rank, ids in enumerate(self._of_ranks(group)) if len(ids)}
        numbers = {rank: count * sum(sizes) for rank, count in counts.items()}
        messages = self.channel.wire.several("visitors", numbers)
        parts = {
            rank: [
                part.view(counts[rank], size)
                for part, size in zip(
                    torch.split(message, [counts[rank] * size for size in sizes]),
                    sizes,
                    strict=True,
                )
            ]
            for rank, message in messages.items()
        }
        own = messages.pop(self.rank, None)
        sends = {}
        if own is not None:
            with self.channel.timer.span("packing"):
                mine = self._of_ranks(group)[self.rank]
                rows = to_device(self.placement.row_n[mine], own.device)
                for rows_cd, part_kd in zip(matrices, parts[self.rank], strict=True):
                    take_rows(rows_cd, rows, part_kd)
            peers = range(self.placement.ranks)
            sends = {peer: own for peer in peers if peer != self.rank}
        return parts, self.channel.post(sends, messages, "mixing")

    def _unpack(
        self, matrices: Sequence[Tensor], group: Index, messages: dict[int, list[Tensor]]
    ) -> tuple[Tensor, ...]:
        """Copy a group into aligned rows, in client order."""
        with self.channel.timer.span("packing"):
            rows = tuple(
                self.channel.scratch.rows(f"visiting {which}", len(group), rows_cd.shape[1])
                for which, rows_cd in enumerate(matrices)
            )
            ids_r = self._of_ranks(group)
            for rank, parts in messages.items():
                places = np.searchsorted(group, ids_r[rank])
                for part_kd, rows_kd in zip(parts, rows, strict=True):
                    put_rows(part_kd, places, rows_kd)
        return rows

    def send_back(self, answers_ked: Tensor) -> tuple[Index, Tensor]:
        """Send the answers of this rank's clients to the visitors' owners.

        Returns this rank's rows [h] of clients whose models visit, and all answers to them [h, m, d] in
        client order, in scratch rows.
        """
        channel, size, rank = self.channel, answers_ked.shape[2], self.rank
        visitors = self._of_ranks(self.visiting)
        mine, every = visitors[rank], np.sort(np.concatenate(self._among))
        counts_e = [len(ids) for ids in self._among]
        peers = [peer for peer in range(len(visitors)) if peer != rank]
        sent = {peer: len(visitors[peer]) * counts_e[rank] for peer in peers}
        counts = {peer: len(mine) * counts_e[peer] for peer in peers}
        sends, receives = (
            channel.messages(name, {peer: k for peer, k in numbers.items() if k}, size)
            for name, numbers in ((OUTGOING, sent), (INCOMING, counts))
        )
        with channel.timer.span("packing"):
            for peer, message in sends.items():
                places = np.searchsorted(self.visiting, visitors[peer])
                part_ked = message.view(-1, counts_e[rank], size)
                part_ked.copy_(some_rows(answers_ked, places))
        pending = channel.post(sends, receives, "mixing")
        rows_md = channel.scratch.rows("answers", len(mine) * len(every), size)
        answers_hmd = rows_md.view(len(mine), len(every), size)
        parts = {}
        if len(mine):
            # Rounded as if they had travelled, so that the numbers are those of any placement.
            own_hed = some_rows(answers_ked, np.searchsorted(self.visiting, mine))
            parts[rank] = own_hed.to(channel.wire.dtype)
        channel.wait(pending)
        parts |= {peer: one.view(len(mine), -1, size) for peer, one in receives.items()}
        for peer, part_hed in parts.items():
            columns = np.searchsorted(every, self._among[peer])
            put_rows(part_hed.transpose(0, 1), columns, answers_hmd.transpose(0, 1))
        return self.placement.row_n[mine], answers_hmd

    def _of_ranks(self, group: Index) -> list[Index]:
        """Return the clients of a group by owner."""
        owner_k = self.placement.owner_n[group]
        return [group[owner_k == rank] for rank in range(self.placement.ranks)]
