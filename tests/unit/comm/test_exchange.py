"""Transports and the exchange: one contract for every transport and number of ranks.

Inputs depend on the rank; the expected results are computed from dense arrays.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pool import RankPool
from recording import RecordingTransport

from cobo_dist.algorithms.statistics import statistic_of
from cobo_dist.comm.exchange import Exchange
from cobo_dist.comm.pair_plan import plan_pairs
from cobo_dist.comm.placement import Placement
from cobo_dist.comm.session import Session
from cobo_dist.comm.transports.base import LostContact, SoloTransport, Transport, how_lost
from cobo_dist.errors import ConfigError
from cobo_dist.maths.blocks import Block
from cobo_dist.maths.mixing import plan_block
from cobo_dist.maths.weights import Weights

N, D = 11, 37
CPU = torch.device("cpu")


def every_model(n: int = N, d: int = D) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(n, d)))


def open_exchange(
    transport: Transport, deterministic: bool = False
) -> tuple[Exchange, torch.Tensor]:
    """Return the exchange of this rank and its models."""
    placement = Placement.contiguous(N, transport.world_size)
    exchange = Exchange(transport, placement, torch.float64, CPU, deterministic=deterministic)
    return exchange, every_model()[exchange.ids]


@pytest.fixture(params=["gloo", "mpi"])
def pool(request: pytest.FixtureRequest) -> RankPool:
    """Every test here runs over every transport."""
    return request.getfixturevalue(f"{request.param}_pool")  # type: ignore[no-any-return]


# -- transports ----------------------------------------------------------------------------------------


def transport_contract(session: Session, recorded: bool) -> None:
    """Every rank r sends r + peer + 1 numbers, all equal to r, to each peer, and receives the peer's.

    Records of any length, even empty, reach rank 0 in rank order; rank 0's record reaches all.
    """
    transport: Transport = session.transport
    if recorded:
        transport = RecordingTransport(transport)
    rank, ranks = transport.rank, transport.world_size
    peers = [peer for peer in range(ranks) if peer != rank]
    for dtype in (torch.float32, torch.int64, torch.uint8, torch.bfloat16):
        sends = {p: torch.full((rank + p + 1,), rank, dtype=dtype) for p in peers}
        received = {p: torch.full((rank + p + 1,), 77, dtype=dtype) for p in peers}
        transport.exchange(sends, received, "pairs").wait()
        for peer, tensor in received.items():
            assert (tensor == peer).all()
    transport.exchange({}, {}, "pairs").wait()  # nothing to do is fine
    if rank < ranks - 1:  # one way only
        transport.exchange({rank + 1: torch.tensor([rank])}, {}, "pairs").wait()
    if rank > 0:
        number = torch.zeros(1, dtype=torch.int64)
        transport.exchange({}, {rank - 1: number}, "pairs").wait()
        assert int(number) == rank - 1
    records = transport.gather(b"x" * (3 * rank))
    assert records == ([b"x" * (3 * r) for r in range(ranks)] if rank == 0 else [])
    assert transport.broadcast(f"from {rank}".encode()) == b"from 0"
    assert transport.broadcast(b"") == b""
    bad = {
        "oneself": {rank: torch.ones(1)},
        "no rank": {ranks: torch.ones(1)},
        "empty": {(rank + 1) % (ranks + 1): torch.ones(0)},
        "stride": {(rank + 1) % (ranks + 1): torch.ones(4, 4).T[:2]},
        "dtype": {(rank + 1) % (ranks + 1): torch.ones(1, dtype=torch.int16)},
    }
    for what, sends in bad.items():
        try:
            transport.exchange(sends, {}, "pairs")
        except ValueError:
            continue
        raise AssertionError(f"{what} was accepted")


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("recorded", [False, True])
def test_transports_keep_the_contract(pool: RankPool, ranks: int, recorded: bool) -> None:
    pool.run(ranks, transport_contract, recorded)


def two_keep_silent(session: Session) -> object:
    """Ranks 2 and 3 post nothing; return whom the others lost."""
    rank = session.transport.rank
    if rank > 1:
        time.sleep(5.5)
        return None
    peers = [peer for peer in range(4) if peer != rank]
    received = {peer: torch.ones(3) for peer in peers}
    try:
        session.transport.exchange({p: torch.ones(3) for p in peers}, received, "pairs").wait()
    except LostContact as lost:
        return sorted(lost.peers), lost.how
    return "nothing noticed"


def test_all_silent_ranks_are_lost_at_once(gloo_pool: RankPool) -> None:
    """Not only the first of them, and not a rank that has answered."""
    found = gloo_pool.run_broken(4, two_keep_silent, timeout=4.0)
    assert found[:2] == [([2, 3], "silent")] * 2


def disconnect_after_a_loss(session: Session) -> object:
    """Rank 2 leaves, so rank 1 loses it and leaves, so rank 0 loses rank 1; return how rank 0 lost it."""
    rank = session.transport.rank
    if rank < 2:
        pending = session.transport.exchange({}, {rank + 1: torch.ones(3)}, "pairs")
        try:
            pending.wait()
        except LostContact as lost:
            if rank == 0:
                return lost.how
    session.disconnect()
    time.sleep(4.0)  # longer than the time-out of rank 0, which would be a silent loss
    return None


def test_connections_close_at_once_though_a_failed_exchange_is_kept(gloo_pool: RankPool) -> None:
    assert gloo_pool.run_broken(3, disconnect_after_a_loss, timeout=3.0)[0] == "closed"


def leave_early(session: Session) -> str:
    """Rank 1 leaves; rank 0, which waits for its message, learns which peer it lost in which exchange."""
    if session.transport.rank == 1:
        return ""
    try:
        session.transport.exchange({}, {1: torch.ones(3)}, "mixing").wait()
    except LostContact as lost:
        return str(lost)
    return "nothing noticed"


@pytest.mark.parametrize(
    ("words", "how"),
    [
        ("Connection closed by peer [10.0.0.1]:5", "closed"),
        ("Read error [10.0.0.1]:5: Connection reset by peer", "closed"),
        ("Timed out waiting 4000ms for recv operation to complete", "silent"),
        ("no answer from rank(s) 1 within comm.timeout=4 s", "silent"),
        ("Read error [10.0.0.1]:5: Connection timed out. This is typically", "unreachable"),
        ("Read error [10.0.0.1]:5: Network is unreachable", "unreachable"),
        ("Read error [10.0.0.1]:5: No route to host", "unreachable"),
    ],
)
def test_how_contact_was_lost(words: str, how: str) -> None:
    assert how_lost(RuntimeError(words)) == how


def test_a_lost_peer_is_named(gloo_pool: RankPool) -> None:
    """Gloo sees connections close. To MPI a rank that leaves in order is a silent one, as below."""
    message = gloo_pool.run_broken(2, leave_early)[0]
    assert "rank 0" in message
    assert "mixing with rank(s) 1" in message
    assert "\n" not in message


WAITS = {
    "exchange": "exchanging pairs with rank(s) 1, 2",
    "gather": "gathering records",
    "broadcast": "broadcasting a record",
}


def keep_silent(session: Session, what: str, seconds: float) -> tuple[str, object, float]:
    """Rank `silent` posts nothing; return the others' error, whom they lost, and after how many seconds."""
    transport, silent = session.transport, 0 if what == "broadcast" else 1
    if transport.rank == silent:
        time.sleep(seconds)
        return "", "", 0.0
    try:
        if what == "exchange":
            peers = [peer for peer in range(3) if peer != transport.rank]
            received = {peer: torch.ones(3) for peer in peers}
            transport.exchange({p: torch.ones(3) for p in peers}, received, "pairs").wait()
        elif what == "gather":
            transport.gather(b"here")
        else:
            transport.broadcast(b"")
    except LostContact as lost:
        return str(lost), (sorted(lost.peers), lost.how), lost.waited
    return "nothing noticed", "", 0.0


@pytest.mark.parametrize(
    ("carrier", "what", "timeout"),
    [
        ("gloo", "exchange", 4.0),  # ranks have to connect in this time, too
        ("gloo", "gather", 4.0),
        ("mpi", "exchange", 1.5),
        ("mpi", "gather", 1.5),
        ("mpi", "broadcast", 1.5),
    ],
)
def test_a_silent_rank_is_lost_after_the_time_out(
    request: pytest.FixtureRequest, carrier: str, what: str, timeout: float
) -> None:
    """The root waits for all, so it must notice; other ranks may have sent all they had."""
    pool, waiting = request.getfixturevalue(f"{carrier}_pool"), 1 if what == "broadcast" else 0
    answers = pool.run_broken(3, keep_silent, what, 2 * timeout, timeout=timeout)
    message, lost, seconds = answers[waiting]
    assert f"rank {waiting} lost contact while {WAITS[what]}" in message
    named = what == "exchange" or carrier == "gloo"  # MPI's collective operations name nobody
    assert lost == ([1] if named else [], "silent")
    assert 0.9 * timeout < seconds < 2 * timeout


def fail_on_rank_1(session: Session) -> tuple[str, float]:
    """Rank 1 raises while the others wait for it; raise their error and after how many seconds."""
    if session.transport.rank == 1:
        time.sleep(0.2)
        raise ArithmeticError("planted")
    started = time.monotonic()
    try:
        session.transport.exchange({}, {1: torch.ones(3)}, "mixing").wait()
    except LostContact as lost:
        raise AssertionError(f"got {lost} after {time.monotonic() - started:.1f} s") from lost
    return "nothing noticed", 0.0


def test_ranks_that_wait_for_a_failed_rank_notice_at_once(pool: RankPool) -> None:
    with pytest.raises(AssertionError) as caught:
        pool.run(3, fail_on_rank_1)
    text = str(caught.value)
    assert "ArithmeticError: planted" in text
    for rank in (0, 2):
        assert f"got rank {rank} lost contact while exchanging mixing with rank(s) 1" in text
    waited = [float(one) for one in re.findall(r" after (\d+\.\d) s$", text, re.MULTILINE)]
    assert len(waited) == 2
    assert max(waited) < 5, "not after the 60 s of comm.timeout"


# -- plans -----------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**20))
def test_pair_plans_of_all_ranks_fit_together(ranks: int, extra: int, seed: int) -> None:
    n = ranks + extra
    rng = np.random.default_rng(seed)
    pairs = np.argwhere(np.triu(rng.random((n, n)) < rng.random(), k=1))
    owners = np.concatenate([np.arange(ranks), rng.integers(0, ranks, extra)])
    placement = Placement(tuple(int(owner) for owner in owners), ranks)
    plans = [plan_pairs(pairs, placement, rank) for rank in range(ranks)]
    ends = [
        (int(c), int(p)) for plan in plans for c, p in zip(plan.clients, plan.partners, strict=True)
    ]
    assert sorted(ends) == sorted([(i, j) for i, j in pairs] + [(j, i) for i, j in pairs])
    for rank, plan in enumerate(plans):
        assert rank not in plan.transfers
        assert {int(owners[client]) for client in plan.clients} <= {rank}
        for peer, transfer in plan.transfers.items():
            mirror = plans[peer].transfers[rank]
            assert transfer.send_clients.tolist() == mirror.receive_clients.tolist()
            mine = list(
                zip(
                    plan.clients[transfer.first_ends],
                    plan.partners[transfer.first_ends],
                    strict=True,
                )
            )
            theirs = zip(
                plans[peer].partners[mirror.second_ends],
                plans[peer].clients[mirror.second_ends],
                strict=True,
            )
            assert mine == list(theirs), "the same pairs in the same order on both sides"


def test_placement_covers_all_clients_evenly_and_refuses_idle_ranks() -> None:
    placement = Placement.contiguous(11, 4)
    assert [len(ids) for ids in placement.by_rank] == [3, 3, 3, 2]
    assert np.concatenate(placement.by_rank).tolist() == list(range(11))
    assert all(placement.by_rank[placement.owners[i]][placement.row_n[i]] == i for i in range(11))
    with pytest.raises(ConfigError, match=r"12 ranks for 11 clients.*at most 11"):
        Placement.contiguous(11, 12)


# -- the exchange ----------------------------------------------------------------------------------------


def some_pairs(kind: str) -> torch.Tensor:
    every = torch.combinations(torch.arange(N))
    return {"none": every[:0], "one": every[9:10], "some": every[::4], "all": every}[kind]


def partners_and_alignment(session: Session, kind: str, measure: str, deterministic: bool) -> None:
    """Ends get their partner's model, and the alignment of the pair's two gradients.

    The gradient of end (i, j) is cos((i + 1) k + j) + k/D, so it depends on client and partner; the
    answer is the dense product of the pair's two gradients, divided by the norms for `cosine`.
    """
    exchange, x_cd = open_exchange(session.transport, deterministic)
    before = x_cd.clone()
    exchange.send_models(x_cd, some_pairs(kind))
    exchange.receive_models()
    ends, z_ed = exchange.midpoints(some_pairs(kind))
    x_nd = every_model()
    torch.testing.assert_close(z_ed, (x_nd[ends.ids] + x_nd[ends.partners]) / 2, rtol=0, atol=0)
    z_ed.add_(1.0)  # the caller may change the rows
    assert torch.equal(x_cd, before)

    def gradient(i: int, j: int) -> np.ndarray:
        k = np.arange(D)
        return np.cos((i + 1) * k + j) + k / D

    mine = [gradient(i, j) for i, j in zip(ends.ids, ends.partners, strict=True)]
    gradients_ed = torch.from_numpy(np.array(mine).reshape(-1, D))
    known, found = exchange.alignment(gradients_ed, statistic_of(measure))
    assert np.array_equal(known.ids, ends.ids)
    assert np.array_equal(known.partners, ends.partners)
    for end, (i, j) in enumerate(zip(ends.ids, ends.partners, strict=True)):
        a, b = gradient(i, j), gradient(j, i)
        expected = a @ b / (np.linalg.norm(a) * np.linalg.norm(b) if measure == "cosine" else 1.0)
        np.testing.assert_allclose(found[end], expected, rtol=1e-12)
    both = [
        (min(i, j), max(i, j), float(a))
        for i, j, a in zip(ends.ids, ends.partners, found, strict=True)
    ]
    records = session.transport.gather(repr(both).encode())
    if records:  # the two ends of a pair got the same bits
        entries = [entry for record in records for entry in eval(record)]
        assert len(set(entries)) * 2 == len(entries) == 2 * len(some_pairs(kind))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["none", "one", "some", "all"])
@pytest.mark.parametrize(("measure", "deterministic"), [("inner", False), ("cosine", True)])
def test_partners_and_alignments(
    pool: RankPool, ranks: int, kind: str, measure: str, deterministic: bool
) -> None:
    pool.run(ranks, partners_and_alignment, kind, measure, deterministic)


def symmetric(kind: str) -> np.ndarray:
    rng = np.random.default_rng(5)
    clusters = np.arange(N) // 3
    w_nn = {
        "ones": np.ones((N, N)),
        "zeros": np.zeros((N, N)),
        "blocks": (clusters[:, None] == clusters[None]).astype(float),
        "holes": (rng.random((N, N)) > 0.15).astype(float),
        "random": rng.random((N, N)),
    }[kind]
    return np.triu(w_nn) + np.triu(w_nn, k=1).T


def mixed_in_parts(exchange: Exchange, weights: Weights, x_cd: torch.Tensor) -> torch.Tensor:
    """Return all of `mix`, two columns at a time; overwrite models and sums as soon as they are read."""
    x_cd, whole_cd = x_cd.clone(), torch.full_like(x_cd, torch.nan)
    with mock.patch.multiple("cobo_dist.maths.flat", _MAX_NUMBERS=1, _MIN_COLUMNS=2):
        for at, mixed in exchange.mix(weights, x_cd):
            assert mixed.shape[1] <= 2
            whole_cd[:, at] = mixed
            x_cd[:, at], _ = torch.nan, mixed.fill_(torch.nan)
    return whole_cd


def mixing(session: Session, kind: str, deterministic: bool) -> None:
    """`mix` is W X; the bytes counted are those of the cheapest plans."""
    exchange, x_cd = open_exchange(session.transport, deterministic)
    w_nn = symmetric(kind)
    weights = Weights(exchange.ids, (0,) * N, 1.0, np.float64, symmetric=True)
    weights.put_rows(np.arange(len(exchange.ids)), w_nn[exchange.ids])
    for repeat in (1, 2):  # buffers are used again
        mixed = mixed_in_parts(exchange, weights, x_cd)
        expected = torch.from_numpy(w_nn @ every_model().numpy())[exchange.ids]
        torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-12)
        if not deterministic:
            by_rank, me = exchange.placement.by_rank, session.transport.rank
            models = sum(
                plan_block(Block.of(w_nn[np.ix_(ids, exchange.ids)])).models
                for peer, ids in enumerate(by_rank)
                if peer != me
            )
            assert exchange.traffic.bytes["mixing"] == repeat * models * D * 8


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["ones", "zeros", "blocks", "holes", "random"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_mixing(pool: RankPool, ranks: int, kind: str, deterministic: bool) -> None:
    pool.run(ranks, mixing, kind, deterministic)


def asymmetric(kind: str) -> np.ndarray:
    """Rows on a simplex: spread evenly, all on one client, or on a few at random."""
    rng = np.random.default_rng(6)
    w_nn = {
        "even": np.ones((N, N)) - np.eye(N),
        "one": np.eye(N)[rng.integers(0, N, N)],
        "few": rng.random((N, N)) * (rng.random((N, N)) > 0.7) + 1e-3 * np.eye(N),
    }[kind]
    return (w_nn / w_nn.sum(axis=1, keepdims=True)).astype(np.float32)


def mixing_by_rows(session: Session, kind: str, deterministic: bool) -> bytes:
    """Receivers send their blocks of W: `mix` is W X by the plans that send the fewest models."""
    exchange, x_cd = open_exchange(session.transport, deterministic)
    w_nn = asymmetric(kind)
    weights = Weights.of_rows(exchange.ids, w_nn[exchange.ids])
    for repeat in (1, 2):
        mixed = mixed_in_parts(exchange, weights, x_cd)
        expected = torch.from_numpy(w_nn.astype(np.float64) @ every_model().numpy())
        torch.testing.assert_close(mixed, expected[exchange.ids], rtol=0, atol=1e-12)
        if not deterministic:
            me, by_rank = session.transport.rank, exchange.placement.by_rank
            peers = [ids for peer, ids in enumerate(by_rank) if peer != me]
            models = sum(
                plan_block(Block.of(w_nn[np.ix_(ids, exchange.ids)])).models for ids in peers
            )
            blocks = sum(len(exchange.ids) * len(ids) for ids in peers)
            sent = repeat * (models * D * 8 + blocks * 4)
            assert exchange.traffic.bytes["mixing"] == sent
    return mixed.contiguous().numpy().tobytes()


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["even", "one", "few"])
def test_mixing_by_rows(pool: RankPool, ranks: int, kind: str) -> None:
    pool.run(ranks, mixing_by_rows, kind, False)


@pytest.mark.parametrize("kind", ["even", "one", "few"])
def test_deterministic_mixing_by_rows_is_bitwise_the_same(pool: RankPool, kind: str) -> None:
    found = {b"".join(pool.run(ranks, mixing_by_rows, kind, True)) for ranks in (1, 2, 3, 4)}
    assert len(found) == 1


def reducing(session: Session, deterministic: bool) -> bytes:
    """`all_reduce` returns the same combinations of all clients' rows, with the same bits, on every rank."""
    exchange, x_cd = open_exchange(session.transport, deterministic)
    rng = np.random.default_rng(1)
    weights_kn = np.stack([np.full(N, 1 / N), np.eye(N)[4], np.zeros(N), rng.random(N)])
    found = exchange.all_reduce(weights_kn, x_cd)
    expected = torch.from_numpy(weights_kn) @ every_model()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    return found.contiguous().numpy().tobytes()


def reducing_own_rows(session: Session, deterministic: bool) -> bytes:
    """Sum k is over other rows: (k + 1) x_j here. A deterministic one equals that of its rows alone."""
    exchange, x_cd = open_exchange(session.transport, deterministic)
    rng = np.random.default_rng(2)
    near = (rng.random((4, N)) < 0.3) / N
    weights_kn = np.stack([*near, np.full(N, 1 / N), np.eye(N)[4], np.zeros(N)])
    factors_k = torch.arange(1.0, 8.0, dtype=torch.float64)
    own_kcd = factors_k[:, None, None] * x_cd
    found = exchange.all_reduce(weights_kn, own_kcd).clone()
    expected = factors_k[:, None] * (torch.from_numpy(weights_kn) @ every_model())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    if deterministic:
        for k, weights_n in enumerate(weights_kn):
            assert torch.equal(exchange.all_reduce(weights_n[None], own_kcd[k])[0], found[k])
    return found.numpy().tobytes()


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("function", [reducing, reducing_own_rows])
def test_reducing(
    pool: RankPool, ranks: int, deterministic: bool, function: Callable[..., bytes]
) -> None:
    assert len(set(pool.run(ranks, function, deterministic))) == 1


def gathering_for_all(session: Session) -> None:
    """Several numbers of each client, on every rank in client order: row i is (i, 2i)."""
    exchange, _ = open_exchange(session.transport)
    both_c2 = np.stack([exchange.ids, 2 * exchange.ids], axis=1)
    assert exchange.all_gather(both_c2).tolist() == [[i, 2 * i] for i in range(N)]
    assert exchange.all_gather(both_c2[:, 1]).tolist() == [2 * i for i in range(N)]


@pytest.mark.parametrize("ranks", [1, 3])
def test_gathering_for_all(pool: RankPool, ranks: int) -> None:
    pool.run(ranks, gathering_for_all)


def gathering(session: Session) -> None:
    """Every client's row arrives at the coordinator in client order: row i is (i, 2i)."""
    exchange, _ = open_exchange(session.transport)
    rows = np.stack([exchange.ids, 2 * exchange.ids], axis=1).astype(np.float64)
    gathered = exchange.gather_rows(rows)
    assert (gathered is not None) == exchange.is_coordinator
    if gathered is not None:
        assert gathered.tolist() == [[i, 2 * i] for i in range(N)]


@pytest.mark.parametrize("ranks", [1, 3])
def test_gathering(pool: RankPool, ranks: int) -> None:
    pool.run(ranks, gathering)


def pair_bytes(session: Session) -> tuple[int, int]:
    """Exchange the models and gradients of all pairs once; return the bytes sent for each."""
    exchange, x_cd = open_exchange(session.transport)
    exchange.send_models(x_cd, some_pairs("all"))
    exchange.receive_models()
    for piece in torch.split(some_pairs("all"), N):  # midpoints in pieces, models only once
        ends, _ = exchange.midpoints(piece)
        exchange.alignment(torch.ones(len(ends.ids), D, dtype=torch.float64), statistic_of("inner"))
    return exchange.traffic.bytes["pairs"], exchange.traffic.bytes["gradients"]


def test_bytes_of_pairs_are_the_planned_ones(pool: RankPool) -> None:
    """Each model goes once to each rank that needs it; d gradient numbers and 4 scalars cross a pair."""
    sent = pool.run(3, pair_bytes)
    placement = Placement.contiguous(N, 3)
    remote = sum(
        placement.owners[i] != placement.owners[j] for i in range(N) for j in range(i + 1, N)
    )
    assert sum(models for models, _ in sent) == N * 2 * D * 8
    assert sum(gradients for _, gradients in sent) == remote * (D + 4) * 8


def call_wrongly(exchange: Exchange, x_cd: torch.Tensor, what: str) -> None:
    ones = Weights(exchange.ids, (0,) * N)
    if what == "other clients":
        exchange.mix(Weights(exchange.ids[::-1], (0,) * N), x_cd)
    elif what == "fewer clients":
        exchange.mix(Weights(exchange.ids[:-1], (0,) * N), x_cd)
    elif what == "fewer rows":
        exchange.mix(ones, x_cd[1:])
    elif what == "fewer columns":
        exchange.all_reduce(np.ones((2, N - 1)), x_cd)
    elif what == "fewer rows for a sum":
        exchange.all_reduce(np.ones((2, N)), x_cd[1:].repeat(2, 1, 1))
    elif what == "rows for fewer sums":
        exchange.all_reduce(np.ones((2, N)), x_cd[None])
    elif what == "fewer numbers":
        exchange.all_gather(np.ones(N - 1))
    elif what == "on their way":
        exchange.send_models(x_cd, some_pairs("all"))
        exchange.mix(ones, x_cd)
    elif what == "slices left":
        next(exchange.mix(ones, x_cd))
        exchange.all_reduce(np.ones((1, N)), x_cd)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("other clients", "exchange.mix: weights of 11 of 11 clients are not those of rank 0"),
        ("fewer clients", "exchange.mix: weights of 10 of 11 clients"),
        ("fewer rows", "exchange.mix: 10 rows for the 11 clients of rank 0"),
        ("fewer columns", r"exchange.all_reduce: weights_kn has the shape \(2, 10\)"),
        ("fewer rows for a sum", "exchange.all_reduce: 10 rows for the 11 clients of rank 0"),
        ("rows for fewer sums", "exchange.all_reduce: rows for 1 of 2 sums"),
        ("fewer numbers", "exchange.all_gather: 10 rows for the 11 clients"),
        ("on their way", "exchange.mix: called before exchange.send_models is finished"),
        ("slices left", "exchange.all_reduce: called before exchange.mix is finished"),
    ],
)
def test_calls_that_would_give_wrong_numbers_are_refused(what: str, words: str) -> None:
    exchange, x_cd = open_exchange(SoloTransport())
    with pytest.raises(ValueError, match=words):
        call_wrongly(exchange, x_cd, what)


def test_one_rank_sends_nothing() -> None:
    exchange, x_cd = open_exchange(SoloTransport())
    exchange.send_models(x_cd, some_pairs("all"))
    exchange.receive_models()
    exchange.midpoints(some_pairs("all"))
    exchange.mix(Weights(exchange.ids, (0,) * N), x_cd)
    assert set(exchange.traffic.training()) == {0}
