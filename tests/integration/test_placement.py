"""Migration of clients to their collaborators: the search is sound, and migration changes no number."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pool import RankPool
from problems import models, rows, train, write_quadratic
from resuming import stopped

from cobo_dist.cli import plan
from cobo_dist.comm.placement import Placement
from cobo_dist.comm.placement_search import models_sent, propose
from cobo_dist.comm.session import Session
from cobo_dist.comm.traffic_counter import TRAINING
from cobo_dist.config import load_config
from cobo_dist.maths import seeds
from cobo_dist.maths.weights import Weights
from cobo_dist.planning.counting_exchange import CountingExchange
from cobo_dist.tasks.registry import build_task
from cobo_dist.training.migration import ClientMigrator

# -- proposals -----------------------------------------------------------------------------------------


def blocks(labels: Sequence[int]) -> np.ndarray:
    """Return W that is 1 within clusters and 0 between them."""
    label_n = np.asarray(labels)
    return np.asarray(label_n[:, None] == label_n[None, :], dtype=np.float32)


def rows_of(weights: np.ndarray) -> Weights:
    """Return all rows of any W."""
    return Weights.of_rows(range(len(weights)), weights, symmetric=True)


def sizes(placement: Placement) -> list[int]:
    return [len(ids) for ids in placement.by_rank]


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, Placement]:
    """Draw W of some clusters with stray weights, and any placement."""
    labels = draw(st.lists(st.integers(0, 5), min_size=2, max_size=24))
    n = len(labels)
    owners = draw(st.permutations([k % draw(st.integers(1, min(n, 5))) for k in range(n)]))
    strays = draw(st.sampled_from([0.0, 0.0, 0.05, 0.3, 1.0]))
    name = seeds.key(0, "strays", draw(st.integers(0, 1000)))
    u_nn = seeds.uniforms(name, n * n).view(n, n).numpy()
    weights = np.where(u_nn < strays, u_nn[::-1], blocks(labels)).astype(np.float32)
    if draw(st.booleans()):
        weights = np.triu(weights, k=1) + np.triu(weights, k=1).T + np.eye(n, dtype=np.float32)
    return weights, Placement(tuple(owners), max(owners) + 1)


@settings(max_examples=150, deadline=None)
@given(cases(), st.sampled_from(["mix", "all_reduce", "none"]), st.booleans())
def test_a_proposal_is_balanced_and_sends_less(
    case: tuple[np.ndarray, Placement], sums: str, deterministic: bool
) -> None:
    weights, placement = case
    found = propose(rows_of(weights), placement, 0.5, sums, deterministic=deterministic)
    again = propose(rows_of(weights), placement, 0.5, sums, deterministic=deterministic)
    before = models_sent(rows_of(weights), placement, sums, deterministic=deterministic)
    if found is None:
        assert again is None
        return
    assert again is not None
    assert again.placement == found.placement, "deterministic"
    assert sizes(found.placement) == sizes(placement), "as many clients on each rank"
    assert sorted(np.concatenate(found.placement.by_rank)) == list(range(placement.clients))
    moved = np.flatnonzero(found.placement.owner_n != placement.owner_n)
    assert found.clients.tolist() == moved.tolist()
    assert found.before == before
    after = models_sent(rows_of(weights), found.placement, sums, deterministic=deterministic)
    assert found.after == after < before
    assert sums != "none"
    price = (found.before - found.after) / len(found.clients)
    expensive = propose(
        rows_of(weights), placement, 0.5, sums, price=1.01 * price, deterministic=deterministic
    )
    # At that price only a move of fewer clients may pay.
    assert expensive is None or len(expensive.clients) < len(found.clients)


@settings(max_examples=40, deadline=None)
@given(cases(), st.booleans())
def test_models_sent_equal_the_plans_of_the_exchange(
    case: tuple[np.ndarray, Placement], deterministic: bool
) -> None:
    weights, placement = case
    exchange = CountingExchange(placement, {1: 1}, torch.float32, deterministic=deterministic)
    exchange.mix(rows_of(weights), torch.zeros(len(weights), 1))
    sent = int(exchange.traffic().bytes_ps.sum()) // 4
    matrix = rows_of(weights)
    assert models_sent(matrix, placement, "mix", deterministic=deterministic) == sent
    exchange = CountingExchange(placement, {1: 1}, torch.float32, deterministic=deterministic)
    exchange.all_reduce(np.unique(weights, axis=0), torch.zeros(len(weights), 1))
    sent = int(exchange.traffic().bytes_ps.sum()) // 4
    assert models_sent(matrix, placement, "all_reduce", deterministic=deterministic) == sent


@pytest.mark.parametrize(
    ("labels", "owners", "after", "moved"),
    [
        ([0, 1] * 4, [0] * 4 + [1] * 4, 0, 4),  # every other client
        ([0, 0, 0, 1, 0, 1, 1, 1], [0] * 4 + [1] * 4, 0, 2),  # two are swapped
        ([0, 1, 2, 3, 0, 4, 5, 6], [0] * 4 + [1] * 4, 0, 2),  # most are in no group and stay
        ([0, 1, 2, 0, 1, 2, 0], [0, 0, 0, 1, 1, 2, 2], 0, 4),  # ranks of 3, 2 and 2
        ([0] * 5 + [1] * 3, [1, 0] * 4, 2, 2),  # one of five must be on the other rank
        ([0, 1] * 6, [0] * 4 + [1] * 4 + [2] * 4, 4, 4),  # clusters of 6 on ranks of 4
    ],
)
def test_proposals_by_hand(labels: list[int], owners: list[int], after: int, moved: int) -> None:
    placement = Placement(tuple(owners), max(owners) + 1)
    found = propose(Weights(range(len(labels)), labels), placement, 0.5, "mix")
    assert found is not None
    assert (found.after, len(found.clients)) == (after, moved)


@pytest.mark.parametrize(
    "weights",
    [np.ones((8, 8)), np.eye(8), np.zeros((8, 8)), blocks([0, 0, 1, 1, 2, 2, 3, 3]),
     seeds.uniforms(seeds.key(0, "any W"), 64).view(8, 8).numpy()],
    ids=["ones", "identity", "zeros", "together already", "any W"],
)  # fmt: skip
def test_nothing_moves_where_nothing_is_saved(weights: np.ndarray) -> None:
    placement = Placement.contiguous(8, 4)
    assert propose(rows_of(weights), placement, 0.5, "mix") is None


def test_stray_links_join_no_clusters() -> None:
    """80 clients in 10 clusters; one in a hundred pairs between clusters is linked."""
    n, label_n = 80, np.arange(80) % 10
    stray_nn = np.triu(seeds.uniforms(seeds.key(0, "stray"), n * n).view(n, n).numpy() < 0.01, k=1)
    weights = np.where(stray_nn | stray_nn.T, np.float32(0.7), blocks(label_n.tolist()))
    found = propose(rows_of(weights), Placement.contiguous(n, 2), 0.5, "mix")
    assert found is not None
    assert found.after < found.before / 2
    for label in range(10):
        assert len(set(found.placement.owner_n[label_n == label].tolist())) == 1


# -- runs ----------------------------------------------------------------------------------------------

N, D, ROUNDS = 9, 40, 32
RUN = [
    "task.name=quadratic", f"run.rounds={ROUNDS}", "run.eval_every=0", "algorithm.gamma=0.05",
    "algorithm.sampling.name=all", "comm.placement_every=4", "run.checkpoint_every=8",
    "run.log_weights_every=8",
]  # fmt: skip
CASES = {
    "box": [],
    "box, momentum": ["optimizer.name=ema_momentum", "optimizer.momentum=0.9", "optimizer.lr=0.3",
                      "algorithm.rho=0.05"],
    "models first": ["algorithm.order=models_first"],
    "simplex, adam": ["algorithm.domain=simplex", "algorithm.gamma=0.5", "optimizer.name=adamw",
                      "optimizer.lr=0.05"],
    "oracle": ["algorithm.name=oracle", "optimizer.momentum=0.5"],
    "validation": ["algorithm.name=validation_based", "algorithm.temperature=0.001"],
}  # fmt: skip
STATE = {"box, momentum": D * 4, "simplex, adam": 2 * D * 4 + 8, "oracle": D * 4}
"""Bytes of a migrating client beside its model and its row of W: moments and steps."""


def arguments(case: str) -> list[str]:
    """Return a case's settings, those of CoBo with CoBo only."""
    own = any(one.startswith("algorithm.name") for one in CASES[case])
    return [one for one in RUN if not (own and one.startswith("algorithm."))] + CASES[case]


def fixed_bytes(case: str, ranks: int) -> int:
    """Return the bytes of a round's mixing that no placement changes: blocks of W, models for validation."""
    across = N * N - sum(c * c for c in sizes(Placement.contiguous(N, ranks)))
    visits = N * (ranks - 1) * D if case == "validation" else 0
    return 4 * (visits + across * (case in ("simplex, adam", "validation")))


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clusters of three; client i is in cluster i mod 3, so that ranks share all clusters."""
    return write_quadratic(tmp_path_factory.mktemp("problem") / "problem.npz", clients=N, size=D)


def train_and_count(session: Session, settings: list[str]) -> dict[str, int]:
    """Train; return the bytes that this rank sent, by purpose."""
    movers = []
    build = ClientMigrator.__init__

    def keep(self: ClientMigrator, *parts: Any) -> None:
        build(self, *parts)
        movers.append(self)

    with mock.patch.object(ClientMigrator, "__init__", keep):
        train(session, settings)
    return dict(movers[0].exchange.traffic.bytes)


def numbers(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of rounds and evaluations, without times and traffic."""
    found = rows(folder, "round") + rows(folder, "eval")
    return [
        {k: v for k, v in row.items() if k != "seconds" and not k.startswith(("bytes", "messages"))}
        for row in found
    ]


def assert_same(one: Path, other: Path) -> None:
    """Compare models, W and rows, bit by bit."""
    mine, theirs = models(one), models(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert np.array_equal(value, theirs[name]), name
    a, b = np.load(one / "W.npz"), np.load(other / "W.npz")
    assert np.array_equal(a["weights"], b["weights"])
    assert numbers(one) == numbers(other)


@pytest.mark.parametrize("case", CASES)
def test_moving_changes_no_number(pool: RankPool, problem: Path, tmp_path: Path, case: str) -> None:
    """Bitwise, on 1, 2 and 3 ranks; the bytes of mixing fall to those planned, and are counted as planned."""
    run = [*arguments(case), f"task.file={problem}", "comm.deterministic=true"]
    pool.run(1, train, [*run, f"run.dir={tmp_path / 'static'}"])
    for ranks in (1, 2, 3):
        folder = tmp_path / f"run{ranks}"
        adaptive = [*run, "comm.placement=adaptive", f"run.dir={folder}"]
        sent = pool.run(ranks, train_and_count, adaptive)
        assert_same(tmp_path / "static", folder)
        moves = rows(folder, "placement")
        assert bool(moves) == (ranks > 1)
        payload = D * 4 + -(-N * 4 // 8) * 8 + STATE.get(case, 0)
        for move in moves:
            assert move["bytes"] == move["clients"] * payload
            assert move["mixing_before"] == move["models_before"] * D * 4
            assert move["mixing_after"] == move["models_after"] * D * 4 < move["mixing_before"]
        (traffic,) = rows(folder, "traffic")
        assert traffic["bytes_moving"] == sum(one.get("moving", 0) for one in sent)
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["bytes_sent"] == sum(traffic[f"bytes_{p}"] for p in (*TRAINING, "moving"))
        placement = summary["placement"]
        assert placement["bytes_moving"] == traffic["bytes_moving"]
        last = rows(folder, "round")[-1]["bytes_mixing"]
        assert last == placement["models"] * D * 4 + fixed_bytes(case, ranks)
        if moves:
            assert placement["models"] < placement["models_static"]
        if case in ("oracle", "box") and ranks == 3:
            assert placement["models"] == 0
            owner_n = np.asarray(placement["owners"])
            assert all(len(set(owner_n[k::3].tolist())) == 1 for k in range(3))


def test_moving_over_mpi(mpi_pool: RankPool, problem: Path, tmp_path: Path) -> None:
    run = [*arguments("oracle"), f"task.file={problem}", "comm.deterministic=true"]
    mpi_pool.run(1, train, [*run, f"run.dir={tmp_path / 'static'}"])
    mpi_pool.run(3, train, [*run, "comm.placement=adaptive", f"run.dir={tmp_path / 'moved'}"])
    assert rows(tmp_path / "moved", "placement")
    assert_same(tmp_path / "static", tmp_path / "moved")


DIGITS = [
    "task.order=shuffled", "run.rounds=20", "run.eval_every=0", "run.checkpoint_every=0",
    "task.test_size=80", "model.hidden=[8]", "data.batch_size=8", "model.norm=batch",
    "algorithm.gamma=5", "algorithm.sampling.name=all", "optimizer.momentum=0.5",
    "comm.placement_every=5", "comm.placement=adaptive",
]  # fmt: skip


@pytest.mark.parametrize("engine", ["one_by_one", "vectorised"])
def test_digits_in_any_order(pool: RankPool, tmp_path: Path, engine: str) -> None:
    """BatchNorm's statistics and counters migrate too; without determinism up to the rounding of sums."""
    run = [*DIGITS, f"run.engine={engine}"]
    pool.run(1, train, [*run, "comm.placement=static", f"run.dir={tmp_path / 'static'}"])
    pool.run(3, train, [*run, f"run.dir={tmp_path / 'moved'}"])
    assert rows(tmp_path / "moved", "placement")
    one, other = models(tmp_path / "static"), models(tmp_path / "moved")
    assert any("num_batches_tracked" in name for name in one)
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_ifca_sends_fewer_sums(pool: RankPool, problem: Path, tmp_path: Path) -> None:
    """Clients pick two of three centers: a rank sends a sum for each center that one of its clients picked.

    Centers, the clients' choices and the last losses stay unchanged.
    """
    run = [one for one in RUN if not one.startswith("algorithm.")]
    run += [f"task.file={problem}", "algorithm.name=ifca", "run.seed=1", "algorithm.client_share=0.7",
            "optimizer.name=ema_momentum", "optimizer.momentum=0.5", "run.dtype=float64"]  # fmt: skip
    pool.run(1, train, [*run, f"run.dir={tmp_path / 'static'}"])
    pool.run(3, train, [*run, "comm.placement=adaptive", f"run.dir={tmp_path / 'moved'}"])
    (move,) = rows(tmp_path / "moved", "placement")
    # A sum for each of 2 centers, from 3 ranks to 2 peers; then each rank has clients of one center.
    assert (move["models_before"], move["models_after"]) == (2 * 2 * 3, 2 * 3)
    # Model and momentum, the row of W, the last loss.
    assert move["bytes"] == move["clients"] * (2 * D * 8 + -(-N * 4 // 8) * 8 + 8)
    one, other = models(tmp_path / "static"), models(tmp_path / "moved")
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], rtol=0, atol=1e-12, err_msg=name)
    losses = [[row["loss"] for row in rows(tmp_path / x, "round")] for x in ("static", "moved")]
    np.testing.assert_allclose(*losses, rtol=1e-12)


def test_a_run_goes_on_after_a_move(pool: RankPool, problem: Path, tmp_path: Path) -> None:
    """Stopped after clients moved on 3 ranks, it goes on with 2 and ends as if never stopped."""
    run = [*arguments("box, momentum"), f"task.file={problem}", "comm.deterministic=true"]
    pool.run(1, train, [*run, f"run.dir={tmp_path / 'whole'}"])
    again = [*run, "comm.placement=adaptive", f"run.dir={tmp_path / 'cut'}", "run.resume=auto"]
    again += ["log.flush_every=1"]
    pool.run(3, stopped, again, 1, 21, signal.SIGTERM)
    before = rows(tmp_path / "cut", "placement")
    assert before
    assert before[-1]["round"] < 21
    pool.run(2, train, again)
    assert_same(tmp_path / "whole", tmp_path / "cut")
    after = rows(tmp_path / "cut", "placement")
    assert after[: len(before)] == before
    assert len(after) > len(before), "it starts with runs of clients, and they move again"
    (traffic,) = rows(tmp_path / "cut", "traffic")
    assert traffic["bytes_moving"] > sum(row["bytes"] for row in after), "and W for each look"


def test_a_move_that_does_not_pay_is_left(pool: RankPool, problem: Path, tmp_path: Path) -> None:
    """Oracle on 2 ranks: 4 clients of 360 bytes move for 6 models of 160 less a round: 1.5 rounds."""
    run = [*arguments("oracle"), f"task.file={problem}", "comm.placement=adaptive",
           "comm.deterministic=true", "comm.placement_every=2"]  # fmt: skip
    for rounds, moved in ((7, False), (9, True)):  # a quarter of the 5 or 7 that are left
        folder = tmp_path / str(rounds)
        pool.run(2, train, [*run, f"run.rounds={rounds}", f"run.dir={folder}"])
        assert bool(rows(folder, "placement")) == moved
        summary = json.loads((folder / "summary.json").read_text())["placement"]
        assert (summary["models"], summary["models_static"]) == ((3 if moved else 9), 9)


def test_the_plan_says_what_moving_saves(capsys: pytest.CaptureFixture[str]) -> None:
    """Digits in a random order: the true clusters are spread over ranks, and then they are not."""
    settings = ["ranks=4", "task.order=shuffled", "run.rounds=4"]
    said = {}
    for placement in ("static", "adaptive"):
        assert plan.main([*settings, f"comm.placement={placement}"]) == 0
        said[placement] = capsys.readouterr().out
    assert "moved" not in said["static"]
    sent, _, _ = said["adaptive"].partition("a client, as a machine")
    lines = {line.split("  ")[1].strip(): line.split()[-4:-2] for line in sent.splitlines()
             if line.startswith("  W = true clusters")}  # fmt: skip
    assert lines["W = true clusters, moved"] == ["0", "B"]
    assert lines["W = true clusters"] != ["0", "B"]
    assert "clients that migrate, at most all" in said["adaptive"]


def test_a_shuffled_order_renumbers_the_clients() -> None:
    found = []
    for order in ("clusters", "shuffled"):
        config = load_config(None, [f"task.order={order}"])
        task: Any = build_task(config.task, config.model, config.data, 0, torch.float32)
        clients = [
            (
                task.clusters[k],
                task.examples.labels_of[k].tolist(),
                task.split_of["train"][k].tolist(),
            )
            for k in range(task.clients)
        ]
        found.append((clients, task.fingerprint()))
    (plain, one), (shuffled, other) = found
    assert plain != shuffled
    assert sorted(plain) == sorted(shuffled)
    assert [cluster for cluster, _, _ in plain] == sorted(cluster for cluster, _, _ in plain)
    assert one != other, "a checkpoint of the one is none of the other"
