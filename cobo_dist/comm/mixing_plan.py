"""How the parts of sum_k w_ik x_k travel between a rank and the others, kept while W stands still."""

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
    """What a rank gets from a peer, and what it owes the peer."""

    incoming: BlockPlan
    outgoing: BlockPlan


class MixingPlans:
    """The routes of one rank where W is symmetric, so that every block is known at both its ends."""

    def __init__(self, placement: Placement, rank: int, deterministic: bool) -> None:
        """Plan by rows alone where runs are to be deterministic."""
        self.placement, self.rank = placement, rank
        self.planner = planner(deterministic)
        self._weights: Weights | None = None
        self._version = -1
        self._routes: list[RankMixing | None] = [None] * placement.ranks

    def for_symmetric(self, weights: Weights) -> list[RankMixing]:
        """Return the route to each rank; what did not change since the last call is not planned again."""
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
                self._routes[peer] = self._plan(peer, blocks[peer])
        self._weights, self._version = weights, weights.version
        return [route for route in self._routes if route is not None]

    def _plan(self, peer: int, block: Block) -> RankMixing:
        if peer == self.rank:
            return own_route(block)
        return RankMixing(self.planner(block), self.planner(block.transposed))


def planner(deterministic: bool) -> Planner:
    """Return what plans a block."""
    return plan_rows if deterministic else plan_block


def own_route(block: Block) -> RankMixing:
    """Return the route of a rank to itself: its models are there, and multiplied as they lie."""
    every = np.arange(block.shape[1])
    plan = BlockPlan("rows", every, np.arange(block.shape[0]), block, every)
    return RankMixing(plan, plan)


def from_exchanged_blocks(
    mine: Sequence[Block], theirs: Sequence[Block], rank: int, deterministic: bool
) -> list[RankMixing]:
    """Return the routes where rows stand by themselves: my blocks of W, and those that peers told."""
    plan = planner(deterministic)
    return [
        own_route(block) if peer == rank else RankMixing(plan(block), plan(outgoing))
        for peer, (block, outgoing) in enumerate(zip(mine, theirs, strict=True))
    ]
