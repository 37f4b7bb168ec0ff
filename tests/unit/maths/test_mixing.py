"""Every plan is exact, the chosen one sends the fewest models, and the counts are the known ones."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_cuda import virtual_cuda

from cobo_dist.comm.mixing_plan import MixingPlans, RankMixing
from cobo_dist.comm.placement import Placement
from cobo_dist.maths import mixing
from cobo_dist.maths.blocks import Block, blocks_of
from cobo_dist.maths.mixing import BlockPlan, ordered_sum, pack, unpack
from cobo_dist.maths.weights import Weights

PLANS = (mixing.plan_rows, mixing.plan_sums, mixing.plan_total, mixing.plan_block)


def plan_block(block: np.ndarray) -> BlockPlan:
    return mixing.plan_block(Block.of(block))


def plan_rows(block: np.ndarray) -> BlockPlan:
    return mixing.plan_rows(Block.of(block))


def plan_total(block: np.ndarray) -> BlockPlan:
    return mixing.plan_total(Block.of(block))


def plan_sums(block: np.ndarray) -> BlockPlan:
    return mixing.plan_sums(Block.of(block))


def least(block: np.ndarray) -> int:
    """Return the models of the best of rows, sums and total, from the dense block; also sums in a total."""

    def both(one: np.ndarray) -> int:
        rows = {row.tobytes() for row in one if row.any()}
        return min(int(one.any(axis=0).sum()), len(rows))

    return min(both(block), 1 + both(1.0 - block))


def deliver(plan: BlockPlan, x_sd: torch.Tensor, receivers: int) -> torch.Tensor:
    """Return the product, added to other numbers; the first one replaces what lies there."""
    payload = torch.full_like(x_sd[:1], float("nan")).repeat(plan.models, 1)
    into = torch.ones_like(x_sd[:1]).repeat(receivers, 1)
    if not plan.models:
        return into - 1.0
    pack(plan, x_sd, payload)
    unpack(plan, payload, into)
    alone = torch.full_like(into, float("nan"))
    unpack(plan, payload, alone, first=True)
    torch.testing.assert_close(alone, into - 1.0, rtol=0, atol=1e-12)
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
        delivered = deliver(make(Block.of(block)), x_sd, block.shape[0])
        torch.testing.assert_close(
            delivered, torch.from_numpy(block) @ x_sd, rtol=0, atol=1e-12, msg=make.__name__
        )
    assert plan_block(block).models == least(block)


@settings(deadline=None, max_examples=40)
@given(blocks())
def test_all_plans_deliver_the_product_on_a_gpu(block: np.ndarray) -> None:
    x_sd = torch.from_numpy(np.random.default_rng(block.size).normal(size=(block.shape[1], 7)))
    expected = torch.from_numpy(block) @ x_sd
    for make in PLANS:
        with virtual_cuda():
            found = deliver(make(Block.of(block)), x_sd.to("cuda"), block.shape[0]).cpu()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12, msg=make.__name__)


@st.composite
def collaborations(draw: st.DrawFn) -> tuple[list[int], np.ndarray, list[Weights]]:
    """Draw a placement on up to three ranks, a symmetric W that began as groups, and each rank's rows."""
    n = draw(st.integers(2, 9))
    owners = draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    groups = draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    level = draw(st.sampled_from([0.0, 0.25, 1.0, 1.0]))
    dense = np.where(np.equal.outer(groups, groups), np.float32(level), np.float32(0))
    ranks = [np.flatnonzero(np.array(owners) == rank) for rank in sorted(set(owners))]
    parts = [Weights(ids, groups, level, symmetric=True) for ids in ranks]
    pairs = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(
        lambda ij: ij[0] != ij[1]
    )
    values = st.sampled_from([0.0, 0.25, 0.9, 1.0])
    for _ in range(draw(st.integers(0, 3))):
        for (i, j), w in draw(st.dictionaries(pairs, values, max_size=2 * n)).items():
            dense[i, j] = dense[j, i] = w
            for a, b in ((i, j), (j, i)):
                rank = next(k for k, ids in enumerate(ranks) if a in ids)
                row = np.flatnonzero(ranks[rank] == a)
                parts[rank].put(row, np.array([b]), np.array([w], dtype=np.float32))
    return ranks, dense, parts


@settings(deadline=None, max_examples=200)
@given(collaborations())
def test_both_ranks_make_the_same_plan_of_a_block(case: tuple) -> None:
    """Each from its own rows; the plan is exact and sends no more than any plan of the dense matrix."""
    ranks, dense, parts = case
    size = 3
    x_nd = torch.from_numpy(np.random.default_rng(1).normal(size=(len(dense), size)))
    for to, mine in enumerate(ranks):
        for source, theirs in enumerate(ranks):
            matrix = dense[np.ix_(mine, theirs)]
            incoming = mixing.plan_block(blocks_of(parts[to], ranks)[source])
            outgoing = mixing.plan_block(blocks_of(parts[source], ranks)[to].transposed)
            assert (incoming.kind, incoming.models) == (outgoing.kind, outgoing.models)
            assert incoming.models <= least(matrix)
            np.testing.assert_array_equal(incoming.send, outgoing.send)
            payload = torch.empty(outgoing.models, size, dtype=x_nd.dtype)
            into = torch.zeros(len(mine), size, dtype=x_nd.dtype)
            if outgoing.models:
                pack(outgoing, x_nd[theirs], payload)
                unpack(incoming, payload, into)
            expected = torch.from_numpy(matrix.astype(np.float64)) @ x_nd[theirs]
            torch.testing.assert_close(into, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pieces", [1, 40])
@settings(deadline=None, max_examples=60)
@given(case=collaborations())
def test_a_product_of_large_pieces_and_of_small_ones(pieces: int, case: tuple) -> None:
    """A product is the same by dense matrices as by groups and stored entries."""
    ranks, dense, parts = case
    x_nd = torch.from_numpy(np.random.default_rng(2).normal(size=(len(dense), 4)))
    for dense_from in (1, 10_000):
        with mock.patch.multiple(mixing, _DENSE=dense_from, _MAX_NUMBERS=pieces):
            for mine, weights in zip(ranks, parts, strict=True):
                into = torch.ones(len(mine), 4, dtype=x_nd.dtype)
                (block,) = blocks_of(weights, [np.arange(len(dense))])
                mixing.Product(block).add(x_nd, into)
                expected = 1 + torch.from_numpy(dense[mine].astype(np.float64)) @ x_nd
                torch.testing.assert_close(into, expected, rtol=0, atol=1e-12)


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
    assert plan_block(block).kind == "total"
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


def test_only_changed_blocks_are_planned_again() -> None:
    placement = Placement.contiguous(8, 4)
    weights = Weights(placement.by_rank[1], (0,) * 8, symmetric=True)
    plans = MixingPlans(placement, 1, False)

    def same_as(before: list[RankMixing]) -> list[bool]:
        return [
            one is other for one, other in zip(plans.for_symmetric(weights), before, strict=True)
        ]

    before = plans.for_symmetric(weights)
    assert [plan.incoming.models for plan in before] == [1, 2, 1, 1], "its own models are not sent"
    assert same_as(before) == [True] * 4
    weights.put(np.array([0, 1]), np.array([4, 6]), np.array([0.5, 1.0]))  # the latter is no change
    assert same_as(before) == [True, True, False, True]
    assert [plan.incoming.models for plan in plans.for_symmetric(weights)] == [1, 2, 2, 1]
    weights = weights.copy()
    assert same_as(before) == [False] * 4


def test_ordered_sum_is_the_product_in_client_order() -> None:
    rng = np.random.default_rng(3)
    w_cn, x_nd = rng.uniform(size=(2, 5)), torch.from_numpy(rng.normal(size=(5, 4)))
    w_cn[0, 2] = 0.0  # a model without weight is not read

    def model(client: int) -> torch.Tensor:
        read.append(client)
        return x_nd[client]

    read: list[int] = []
    into, term = torch.empty(2, 4, dtype=torch.float64), torch.empty(4, dtype=torch.float64)
    ordered_sum(w_cn, model, into, term)
    torch.testing.assert_close(into, torch.from_numpy(w_cn) @ x_nd)
    assert read == [0, 1, 3, 4, 0, 1, 2, 3, 4]
