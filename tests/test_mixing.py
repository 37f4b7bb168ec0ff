"""Every plan is exact, the chosen one sends the fewest models, and the counts are the known ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cobo_dist.comm.placement import Placement
from cobo_dist.maths.mixing import (
    BlockPlan,
    ordered_sum,
    pack,
    plan_block,
    plan_rows,
    plan_sums,
    plan_total,
    unpack,
)

PLANS = (plan_rows, plan_sums, plan_total, plan_block)


def deliver(plan: BlockPlan, x_sd: torch.Tensor, receivers: int) -> torch.Tensor:
    payload = torch.empty(plan.models, x_sd.shape[1], dtype=x_sd.dtype)
    if plan.models:
        pack(plan, x_sd, payload)
    into = torch.ones(receivers, x_sd.shape[1], dtype=x_sd.dtype)  # adds to what is there
    if plan.models:
        unpack(plan, payload, into)
    return into - 1.0


@st.composite
def blocks(draw: st.DrawFn) -> np.ndarray:
    receivers, senders = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    cell = st.sampled_from([0.0, 0.0, 1.0, 1.0, 0.25, 0.9])
    cells = draw(st.lists(cell, min_size=receivers * senders, max_size=receivers * senders))
    return np.array(cells).reshape(receivers, senders)


@settings(deadline=None, max_examples=150)
@given(blocks())
def test_all_plans_deliver_the_product_and_the_chosen_one_is_cheapest(block: np.ndarray) -> None:
    x_sd = torch.from_numpy(np.random.default_rng(block.size).normal(size=(block.shape[1], 7)))
    for make in PLANS:
        delivered = deliver(make(block), x_sd, block.shape[0])
        torch.testing.assert_close(
            delivered, torch.from_numpy(block) @ x_sd, rtol=0, atol=1e-12, msg=make.__name__
        )
    assert plan_block(block).models == min(make(block).models for make in PLANS[:3])


def test_a_zero_block_sends_nothing() -> None:
    assert plan_block(np.zeros((3, 4))).models == 0


def test_a_full_block_sends_one_model_and_one_hole_costs_one_more() -> None:
    block = np.ones((20, 20))
    assert plan_block(block).models == 1
    block[3, 5] = 0.0
    assert plan_block(block).models == 2


def test_nearly_full_sends_the_total_and_a_correction() -> None:
    """Two senders on whom the receivers differ: the total of all, and those two."""
    block = np.ones((20, 20))
    block[:, [4, 9]] = np.random.default_rng(0).random((20, 2))
    assert plan_block(block).models == 3
    assert plan_block(block).total
    assert plan_rows(block).models == plan_sums(block).models == 20


def traffic(w_nn: np.ndarray, ranks: int, plan=plan_block) -> int:
    placement = Placement.contiguous(len(w_nn), ranks)
    return sum(
        plan(w_nn[np.ix_(placement.by_rank[to], placement.by_rank[source])]).models
        for to in range(ranks)
        for source in range(ranks)
        if to != source
    )


def test_80_clients_on_4_ranks_at_w_1_send_12_models() -> None:
    assert traffic(np.ones((80, 80)), 4) == 4 * 3
    assert traffic(np.ones((80, 80)), 4, plan_total) == 4 * 3
    assert traffic(np.ones((80, 80)), 4, plan_rows) == 4 * 3 * 20


def test_block_diagonal_w_inside_ranks_sends_nothing() -> None:
    assert traffic(np.kron(np.eye(8), np.ones((10, 10))), 4) == 0


def test_equal_rows_are_summed_once() -> None:
    """Ten clusters spread over four ranks: two clients of each on a rank, one sum for both."""
    clusters = np.arange(80) % 10
    w_nn = (clusters[:, None] == clusters[None, :]).astype(float)
    assert traffic(w_nn, 4) == 4 * 3 * 10
    assert traffic(w_nn, 4, plan_rows) == 4 * 3 * 20


@pytest.mark.parametrize(("ranks", "models"), [(2, 2), (3, 4), (4, 6), (7, 14)])
def test_a_cluster_cut_by_a_rank_border_sends_one_sum_each_way(ranks: int, models: int) -> None:
    """Five clusters of 8 side by side: pieces of one cluster on p ranks send p (p - 1) sums."""
    w_nn = np.kron(np.eye(5), np.ones((8, 8)))
    starts = [int(ids[0]) for ids in Placement.contiguous(40, ranks).by_rank[1:]]
    cut = [start for start in starts if start % 8]
    pieces = {cluster: 1 + sum(start // 8 == cluster for start in cut) for cluster in range(5)}
    assert traffic(w_nn, ranks) == sum(p * (p - 1) for p in pieces.values()) == models


def test_ordered_sum_is_the_product_in_client_order() -> None:
    rng = np.random.default_rng(3)
    w_cn, x_nd = rng.uniform(size=(2, 5)), torch.from_numpy(rng.normal(size=(5, 4)))
    w_cn[0, 2] = 0.0  # a client without weight is not asked for

    def model(client: int) -> torch.Tensor:
        asked.append(client)
        return x_nd[client]

    asked: list[int] = []
    into, term = torch.empty(2, 4, dtype=torch.float64), torch.empty(4, dtype=torch.float64)
    ordered_sum(w_cn, model, into, term)
    torch.testing.assert_close(into, torch.from_numpy(w_cn) @ x_nd)
    assert asked == [0, 1, 3, 4, 0, 1, 2, 3, 4]
