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
    assert plan_block(block).total


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
    assert traffic(np.ones((80, 80)), 4, plan_rows) == 4 * 3 * 20


def test_block_diagonal_w_inside_ranks_sends_nothing() -> None:
    assert traffic(np.kron(np.eye(8), np.ones((10, 10))), 4) == 0


@pytest.mark.parametrize("ranks", [2, 3, 4, 7])
def test_cluster_cut_by_a_rank_border_sends_its_sum_or_its_rows(ranks: int) -> None:
    """Clusters of 8 in 40 clients: a border through a cluster leaves min(left, right) models to move."""
    w_nn = np.kron(np.eye(5), np.ones((8, 8)))
    placement = Placement.contiguous(40, ranks)
    expected = 0
    for to in range(ranks):
        for source in range(ranks):
            if to != source:
                block = w_nn[np.ix_(placement.by_rank[to], placement.by_rank[source])]
                expected += min(block.any(axis=0).sum(), block.any(axis=1).sum())
    assert traffic(w_nn, ranks) == expected > 0 or traffic(w_nn, ranks) == 0


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
