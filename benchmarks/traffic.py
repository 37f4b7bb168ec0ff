"""How many models the penalty term sends a round, by plan.

    python benchmarks/traffic.py [CLIENTS] [RANKS] [CLUSTERS]

Counts, for one W, the models that all ranks send in one round: as rows (every model that the other
rank's clients use), as partial sums, as a total with a correction, and as the exchange chooses for
each ordered pair of ranks. Nothing is sent: plans are pure functions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cobo_dist.comm.placement import Placement
from cobo_dist.maths import seeds
from cobo_dist.maths.blocks import Block
from cobo_dist.maths.mixing import BlockPlan, plan_block, plan_rows, plan_sums, plan_total

Plan = Callable[[Block], BlockPlan]


def models_sent(w_nn: NDArray[np.floating], placement: Placement, plan: Plan) -> int:
    """Return the models sent in a round by all ranks under one kind of plan."""
    return sum(
        plan(Block.of(w_nn[np.ix_(to, source)])).models
        for to in placement.by_rank
        for source in placement.by_rank
        if to is not source
    )


def half_way(blocks_nn: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return W between all ones and the blocks: half of the pairs across clusters have parted."""
    n = len(blocks_nn)
    coins = seeds.uniforms(seeds.key(0, "half-way"), n * n).view(n, n).numpy() < 0.5
    parted = np.triu(coins, k=1)
    return np.where(blocks_nn == 0, 1.0 - (parted | parted.T), 1.0)


def main() -> None:
    """Print the table."""
    clients, ranks, clusters = (int(a) for a in (*sys.argv[1:], "80", "4", "10")[:3])
    placement = Placement.contiguous(clients, ranks)
    labels = np.arange(clients) * clusters // clients
    blocks = (labels[:, None] == labels[None, :]).astype(float)
    apart = (np.arange(clients) % clusters)[:, None] == (np.arange(clients) % clusters)[None, :]
    cases = {
        "W = 1 (the start)": np.ones((clients, clients)),
        "half of the pairs across clusters parted": half_way(blocks),
        "block-diagonal, clusters side by side": blocks,
        "block-diagonal, clusters spread over ranks": apart.astype(float),
    }
    print(f"models sent a round, {clients} clients in {clusters} clusters on {ranks} ranks\n")
    print(f"{'W':44}{'rows':>8}{'sums':>8}{'total':>8}{'chosen':>8}")
    for name, w_nn in cases.items():
        counts = [
            models_sent(w_nn, placement, plan)
            for plan in (plan_rows, plan_sums, plan_total, plan_block)
        ]
        print(f"{name:44}" + "".join(f"{count:8d}" for count in counts))


if __name__ == "__main__":
    main()
