"""How the parts of sum_k w_ik x_k travel between a rank and its peers; plans are kept while W is the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cobo_dist.comm.placement import Placement
from cobo_dist.maths.blocks import Block, blocks_of
from cobo_dist.maths.mixing import BlockPlan, plan_block, plan_rows
from cobo_dist.maths.weights import Weights

Planner = Callable[[Block], BlockPlan]


@dataclass(frozen=True)
class RankMixing:
    """What a rank receives from a peer, and what it sends to that peer."""

    incoming: BlockPlan
    outgoing: BlockPlan


class MixingPlans:
    """The plans of one rank with all ranks, where W is symmetric: both ends know every block."""

    def __init__(self, placement: Placement, rank: int, deterministic: bool) -> None:
        """Plan for `rank`; `deterministic` runs send rows only."""
        self.placement, self.rank = placement, rank
        self.planner = planner(deterministic)
        self._weights: Weights | None = None
        self._version = -1
        self._plans: list[RankMixing | None] = [None] * placement.ranks

    def for_symmetric(self, weights: Weights) -> list[RankMixing]:
        """Return the plan with each rank; only blocks that changed since the last call are planned anew."""
        by_rank = self.placement.by_rank
        known = weights is self._weights
        stale = [
            peer
            for peer, ids in enumerate(by_rank)
            if not known or weights.changed_since(self._version, ids)
        ]
        if stale:
            blocks = blocks_of(weights, by_rank)
            for peer in stale:
                self._plans[peer] = self._plan(peer, blocks[peer])
        self._weights, self._version = weights, weights.version
        return [plan for plan in self._plans if plan is not None]

    def _plan(self, peer: int, block: Block) -> RankMixing:
        if peer == self.rank:
            return _plan_own(block)
        return RankMixing(self.planner(block), self.planner(block.transposed))


def planner(deterministic: bool) -> Planner:
    """Return the function that plans a block."""
    return plan_rows if deterministic else plan_block


def from_exchanged_blocks(
    mine: Sequence[Block], theirs: Sequence[Block], rank: int, deterministic: bool
) -> list[RankMixing]:
    """Return the plans for a W that is not symmetric: my blocks of W, and those that the peers sent."""
    plan = planner(deterministic)
    return [
        _plan_own(block) if peer == rank else RankMixing(plan(block), plan(outgoing))
        for peer, (block, outgoing) in enumerate(zip(mine, theirs, strict=True))
    ]


def _plan_own(block: Block) -> RankMixing:
    """Return the plan of a rank with itself: it multiplies its own rows in place."""
    every = np.arange(block.shape[1])
    plan = BlockPlan("rows", every, np.arange(block.shape[0]), block, every)
    return RankMixing(plan, plan)
