"""Sums of models over all ranks: sum_k w_ik x_k for the clients of this rank, or the same sums for all ranks.

Each ordered pair of ranks uses the exact plan that sends the fewest models (`maths.mixing`). Parts are added
in the order of ranks or, in a deterministic run, models in the order of clients.

Shapes: c clients on this rank, n in all, d parameters, r receiving rows, k models in one message.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobo_dist.comm.channel import INCOMING, OUTGOING, Channel
from cobo_dist.comm.mixing_plan import MixingPlans, RankMixing, from_exchanged_blocks, planner
from cobo_dist.comm.placement import Placement
from cobo_dist.maths import mixing
from cobo_dist.maths.blocks import Block, blocks_of
from cobo_dist.maths.flat import columns_at_once, widest
from cobo_dist.maths.weights import Weights


class MixingExchange:
    """What `Exchange.mix` and `Exchange.all_reduce` do, for one placement."""

    def __init__(self, channel: Channel, placement: Placement, deterministic: bool) -> None:
        self.channel, self.placement, self.deterministic = channel, placement, deterministic
        self.rank = channel.transport.rank
        self._plans = MixingPlans(placement, self.rank, deterministic)

    def mix(self, weights: Weights, x_cd: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Exchange models now; return an iterator that sums them, some columns at a time."""
        with self.channel.timer.span("mixing"):
            plans = (
                self._plans.for_symmetric(weights)
                if weights.symmetric
                else self._plan_blocks(weights)
            )
            models = self._exchange_models(plans, x_cd) | {self.rank: x_cd}
        return self._column_by_column(weights, plans, models, x_cd.shape[1])

    def all_reduce(self, weights_kn: NDArray[np.floating], x: Tensor) -> Tensor:
        """Return the sums [k, d] of all clients' rows, with the same bits on every rank.

        Where each sum has rows of its own, `x` [k, c, d], client j's row for sum k is that of client
        k * n + j of k * n clients.
        """
        with self.channel.timer.span("mixing"):
            placement, block_of, rows_kn = self.placement, Block.of, iter(weights_kn)
            if x.dim() == 3:
                count, n = weights_kn.shape
                placement = Placement(placement.owners * count, placement.ranks)
                block_of, x = Block.of_own_rows, x.flatten(0, 1)
                rows_kn = (
                    np.pad(row_n, (k * n, (count - 1 - k) * n))
                    for k, row_n in enumerate(weights_kn)
                )
            plan = planner(self.deterministic)
            incoming = [plan(block_of(weights_kn[:, ids])) for ids in self.placement.by_rank]
            own = incoming[self.rank]  # one object, so that one message serves all peers
            plans = [RankMixing(part, own) for part in incoming]
            models = self._exchange_models(plans, x, same_bits=True)
            sums_kd = self.channel.scratch.rows("sums", len(weights_kn), x.shape[1])
            self._sum(rows_kn, plans, models, sums_kd, placement)
            return sums_kd

    def _column_by_column(
        self, weights: Weights, plans: list[RankMixing], models: dict[int, Tensor], size: int
    ) -> Iterator[tuple[slice, Tensor]]:
        count = weights.shape[0]
        scratch = self.channel.scratch
        buffer_ck = scratch.rows("mixed", count, widest(count, size, scratch.device))
        for columns in columns_at_once(count, size, scratch.device):
            with self.channel.timer.span("mixing"):
                parts = {peer: rows_kd[:, columns] for peer, rows_kd in models.items()}
                mixed_ck = buffer_ck[:, : columns.stop - columns.start]
                self._sum(weights.each_row(), plans, parts, mixed_ck, self.placement)
            yield columns, mixed_ck

    def _plan_blocks(self, weights: Weights) -> list[RankMixing]:
        """Plan by my blocks of W and by those of the peers for me, which they send unless I know them."""
        if weights.transpose is None:
            return self._exchange_blocks(weights)
        mine, own = (blocks_of(one, self.placement.by_rank) for one in (weights, weights.transpose))
        theirs = [block.transposed for block in own]
        return from_exchanged_blocks(mine, theirs, self.rank, self.deterministic)

    def _exchange_blocks(self, weights: Weights) -> list[RankMixing]:
        """Send every peer my block W[mine, its]; plan by it and by the block W[its, mine] that it sends."""
        dense_cn = weights.dense()
        blocks = [np.ascontiguousarray(dense_cn[:, ids]) for ids in self.placement.by_rank]
        sends, receives = {}, {}
        for peer, block in enumerate(blocks):
            if peer != self.rank:
                sends[peer] = torch.from_numpy(block)
                receives[peer] = torch.empty(block.shape[::-1], dtype=sends[peer].dtype)
        self.channel.wait(self.channel.post(sends, receives, "mixing"))
        mine = [Block.of(block) for block in blocks]
        theirs = [
            mine[self.rank] if peer == self.rank else Block.of(receives[peer].numpy())
            for peer in range(len(blocks))
        ]
        return from_exchanged_blocks(mine, theirs, self.rank, self.deterministic)

    def _exchange_models(
        self, plans: list[RankMixing], x_cd: Tensor, same_bits: bool = False
    ) -> dict[int, Tensor]:
        """Exchange models and sums as planned; return what is there for `_sum`, by rank.

        `same_bits`: all ranks get the same bits, so this rank also packs and rounds its own part as if
        it had travelled.
        """
        rank, size, channel = self.rank, x_cd.shape[1], self.channel
        outgoing = {peer: plan.outgoing for peer, plan in enumerate(plans) if peer != rank}
        # Peers that get the same models share one message.
        first = {id(plan): peer for peer, plan in reversed(outgoing.items()) if plan.models}
        packed = channel.messages(
            OUTGOING, {peer: outgoing[peer].models for peer in first.values()}, size
        )
        for peer, message in packed.items():
            with channel.timer.span("packing"):
                self._pack(outgoing[peer], x_cd, message)
        sends = {peer: packed[first[id(plan)]] for peer, plan in outgoing.items() if plan.models}
        counts = {
            peer: plan.incoming.models
            for peer, plan in enumerate(plans)
            if plan.incoming.models and (peer != rank or (same_bits and not packed))
        }
        # Equal alignment on all ranks, since kernels may add in another order where it differs.
        received = channel.messages(INCOMING, counts, size, separate=same_bits)
        receives = {peer: message for peer, message in received.items() if peer != rank}
        pending = channel.post(sends, receives, "mixing")
        if rank in received:
            self._pack(plans[rank].incoming, x_cd, received[rank])
        elif same_bits and packed:
            received[rank] = next(iter(packed.values()))
        # Not meanwhile: this rank's own part of the sums. Parts are added in the order of ranks, so only rank
        # 0 could, and a round lasts as long as its slowest rank.
        channel.wait(pending)
        return channel.in_model_dtype(received, separate=same_bits)

    def _pack(self, plan: mixing.BlockPlan, x_cd: Tensor, out_kd: Tensor) -> None:
        if out_kd.dtype == x_cd.dtype:
            mixing.pack(plan, x_cd, out_kd)
            return
        exact_kd = self.channel.scratch.flat("to pack", out_kd.numel()).view(out_kd.shape)
        mixing.pack(plan, x_cd, exact_kd)
        out_kd.copy_(exact_kd)

    def _sum(
        self,
        rows_rn: Iterable[NDArray[np.floating]],
        plans: list[RankMixing],
        models: dict[int, Tensor],
        sums_rd: Tensor,
        placement: Placement,
    ) -> None:
        """Write sum_k w_rk x_k for each row of weights into `sums_rd`, from what the ranks sent."""
        if self.deterministic:
            of_client = {
                int(client): models[peer][row]
                for peer, plan in enumerate(plans)
                for row, client in enumerate(placement.by_rank[peer][plan.incoming.send])
            }
            term_d = self.channel.scratch.flat("term", sums_rd.shape[1])
            mixing.ordered_sum(rows_rn, of_client.__getitem__, sums_rd, term_d)
            return
        first = True
        for peer, plan in enumerate(plans):
            if plan.incoming.models:
                mixing.unpack(plan.incoming, models[peer], sums_rd, first=first)
                first = False
        if first:
            sums_rd.zero_()
