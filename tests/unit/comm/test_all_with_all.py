"""`gram`, `visits` and `send_back` on every transport: equal to dense arrays, and sent and kept as planned.

Placements are uneven: clients of a rank are not neighbors, and one rank has none.
"""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from pool import RankPool

from cobo_dist.comm.exchange import Exchange
from cobo_dist.comm.gram import plan_gram
from cobo_dist.comm.placement import Placement
from cobo_dist.comm.session import Session
from cobo_dist.comm.transports.base import SoloTransport
from cobo_dist.comm.transports.checked_transport import CheckedTransport
from cobo_dist.comm.visits import plan_visits
from cobo_dist.maths.flat import empty_rows
from cobo_dist.planning.counting_exchange import CountingExchange

N, D = 7, 83
CPU = torch.device("cpu")
OWNERS = {1: (0,) * N, 2: (0, 1, 0, 0, 0, 1, 0), 3: (0, 2, 0, 0, 2, 2, 0)}
"""By ranks; of three ranks the middle one has no clients."""
PIECES = mock.patch.multiple(
    "cobo_dist.comm.gram", _MAX_NUMBERS=1, _MIN_COLUMNS=16, _ROWS_AT_ONCE=3
)
"""Pieces of 16 columns, and products of 3 rows at a time."""
FEW = mock.patch("cobo_dist.maths.flat._MAX_NUMBERS_OF_MODELS", 3 * (D + 5))
"""Three models visit at once."""


@pytest.fixture(params=["gloo", "mpi"])
def pool(request: pytest.FixtureRequest) -> RankPool:
    return request.getfixturevalue(f"{request.param}_pool")  # type: ignore[no-any-return]


def matrices(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(3)
    a_nd, b_nd = (torch.from_numpy(rng.normal(size=(N, D))).to(dtype) for _ in range(2))
    return a_nd, b_nd


def rows_of(whole_nd: torch.Tensor, ids: np.ndarray) -> torch.Tensor:
    """Return rows in memory as those of clients are."""
    return empty_rows(len(ids), whole_nd.shape[1], dtype=whole_nd.dtype).copy_(whole_nd[ids])


def open_exchange(
    session: Session,
    dtype: torch.dtype,
    deterministic: bool = False,
    wire: torch.dtype | None = None,
) -> Exchange:
    transport = CheckedTransport(session.transport)  # also compares what ranks call
    placement = Placement(OWNERS[transport.world_size], transport.world_size)
    return Exchange(transport, placement, dtype, CPU, deterministic=deterministic, wire=wire)


def kept_by(exchange: Exchange) -> int:
    """Return the bytes of the buffers that an exchange keeps."""
    channel = exchange._channel
    buffers = [
        tensor
        for scratch in (channel.scratch, channel.wire, exchange._gram._doubles)
        for tensor in (*scratch._rows.values(), *scratch._flat.values())
    ]
    return sum(one.untyped_storage().nbytes() for one in buffers)


Sent = list[int]
"""Messages, bytes, bytes of buffers, and bytes of the clients up and down."""


def sent_by(exchange: Exchange) -> Sent:
    traffic, clients = exchange.traffic, exchange.client_traffic
    messages, nbytes = traffic.messages["mixing"], traffic.bytes["mixing"]
    return [messages, nbytes, kept_by(exchange), clients.up, clients.down]


def check_counts(found: list[Sent], counting: CountingExchange) -> None:
    """Compare what each rank sent and keeps with what was counted."""
    sent = counting.traffic()
    for rank, (messages, nbytes, kept, _, _) in enumerate(found):
        assert messages == sent.messages_ps[:, rank].sum(), rank
        assert nbytes == sent.bytes_ps[:, rank].sum(), rank
        assert kept == sum(held[rank].sum() for held in counting.buffers.values()), rank
    up, down = counting.client_traffic().sum(axis=0).tolist()
    assert [sum(one[3] for one in found), sum(one[4] for one in found)] == [up, down]


def counting_of(
    ranks: int, dtype: torch.dtype, deterministic: bool = False, wire: torch.dtype | None = None
) -> CountingExchange:
    placement = Placement(OWNERS[ranks], ranks)
    sizes = {1: D, 2: 5, 0: 0}
    return CountingExchange(placement, sizes, dtype, deterministic=deterministic, wire=wire)


# -- inner products ------------------------------------------------------------------------------------


@PIECES
def gram(
    session: Session,
    dtype: torch.dtype,
    both: bool,
    deterministic: bool,
    wire: torch.dtype | None = None,
) -> tuple[bytes, Sent]:
    """All inner products are those of dense float64 arrays, on a second call too, which reuses buffers."""
    exchange = open_exchange(session, dtype, deterministic, wire)
    whole = matrices(dtype)[: 1 + both]
    mine = [rows_of(one, exchange.ids) for one in whole]
    before = [one.clone() for one in mine]
    found = exchange.gram(*mine)
    first = sent_by(exchange)
    assert np.array_equal(exchange.gram(*mine), found)
    assert all(map(torch.equal, mine, before))
    exact = [one.to(wire or dtype).double().numpy() for one in whole]
    assert (found.dtype, found.shape) == (np.float64, (len(exchange.ids), N))
    np.testing.assert_allclose(found, (exact[0] @ exact[-1].T)[exchange.ids], rtol=0, atol=1e-12)
    if not both:
        square = found[:, exchange.ids]
        assert np.array_equal(square, square.T), "the same bits for (i, j) and (j, i)"
    return found.tobytes(), first


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(
    ("dtype", "deterministic", "wire"),
    [
        (torch.float64, False, None),
        (torch.float32, True, None),
        (torch.float32, False, torch.bfloat16),
    ],
)
def test_gram(
    pool: RankPool,
    ranks: int,
    both: bool,
    dtype: torch.dtype,
    deterministic: bool,
    wire: torch.dtype | None,
) -> None:
    found = pool.run(ranks, gram, dtype, both, deterministic, wire)
    counting = counting_of(ranks, dtype, deterministic, wire)
    with PIECES:
        counting.gram(*[torch.ones(N, 1, dtype=dtype)] * (1 + both))
    check_counts([sent for _, sent in found], counting)


@pytest.mark.parametrize("both", [False, True])
def test_deterministic_gram_has_the_same_bits_on_any_number_of_ranks(
    gloo_pool: RankPool, both: bool
) -> None:
    wholes = []
    for ranks in (1, 2, 3):
        found = gloo_pool.run(ranks, gram, torch.float64, both, True)
        parts = [np.frombuffer(one).reshape(-1, N) for one, _ in found]
        wholes.append(Placement(OWNERS[ranks], ranks).in_client_order(parts).tobytes())
    assert wholes[0] == wholes[1] == wholes[2]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("size", [1, 16, 17, 1000, 100_000])
@pytest.mark.parametrize("ranks", [1, 2, 5, 12])
def test_pieces_cover_all_columns_once(deterministic: bool, size: int, ranks: int) -> None:
    plan = plan_gram(size, 100, ranks, deterministic)
    pieces = sorted((one for of_rank in plan for one in of_rank), key=lambda one: one[1].start)
    assert [one[1].start for one in pieces] == [0, *(one[1].stop for one in pieces[:-1])]
    assert pieces[-1][1].stop == size
    assert [group for group, _ in pieces] == sorted(group for group, _ in pieces)
    if deterministic:
        assert pieces == [one for of_rank in plan_gram(size, 100, 1, True) for one in of_rank]


# -- visits --------------------------------------------------------------------------------------------


def some(kind: str) -> np.ndarray | None:
    """All clients; some; only clients of rank 0, where ranks 1 and 2 have others."""
    few = {"some": [0, 1, 3, 5, 6], "of rank 0": [2, 3, 6]}
    return None if kind == "all" else np.isin(np.arange(N), few[kind])


@FEW
def visits(
    session: Session, dtype: torch.dtype, kind: str, wire: torch.dtype | None
) -> tuple[list[list[int]], Sent]:
    """Each model comes once with its buffers; the answer to i of client j is (i + 1) b_j + x_i[:5]."""
    exchange = open_exchange(session, dtype, wire=wire)
    among_n = some(kind)
    every = np.arange(N) if among_n is None else np.flatnonzero(among_n)
    rows_e = np.flatnonzero(np.isin(exchange.ids, every))
    x_nd, b_nd = matrices(dtype)
    b_nb, groups, answered = b_nd[:, :5], [], []
    x_cd, b_cb = rows_of(x_nd, exchange.ids), rows_of(b_nb, exchange.ids)
    as_sent = wire or dtype
    for ids_k, (x_kd, b_kb) in exchange.visits(x_cd, b_cb, among_n=among_n):
        assert torch.equal(x_kd, x_nd[ids_k].to(as_sent).to(dtype))
        assert torch.equal(b_kb, b_nb[ids_k].to(as_sent).to(dtype))
        assert all(row.data_ptr() % 64 == 0 for row in x_kd), "aligned as rows of clients are"
        factors_k11 = torch.from_numpy(ids_k + 1.0).to(dtype)[:, None, None]
        answers_keb = factors_k11 * b_cb[rows_e] + x_kd[:, None, :5]
        x_kd.fill_(torch.nan)  # the caller may change them
        rows_h, back_hmb = exchange.send_back(answers_keb)
        for row, back_mb in zip(rows_h.tolist(), back_hmb, strict=True):
            i = int(exchange.ids[row])
            exact = (i + 1) * b_nb[every] + x_nd[i, :5].to(as_sent).to(dtype)
            torch.testing.assert_close(back_mb, exact.to(as_sent).to(dtype), rtol=0, atol=0)
            answered.append(i)
        groups.append(ids_k.tolist())
    assert answered == [i for i in exchange.ids if i in every]
    exchange.all_gather(np.ones(len(exchange.ids)))  # finished: other calls may follow
    return groups, sent_by(exchange)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("kind", ["all", "some", "of rank 0"])
@pytest.mark.parametrize(
    ("dtype", "wire"),
    [(torch.float64, None), (torch.float32, None), (torch.float32, torch.bfloat16)],
)
def test_visits_and_answers(
    pool: RankPool, ranks: int, kind: str, dtype: torch.dtype, wire: torch.dtype | None
) -> None:
    found = pool.run(ranks, visits, dtype, kind, wire)
    assert all(groups == found[0][0] for groups, _ in found)
    among_n = some(kind)
    assert sorted(i for group in found[0][0] for i in group) == (
        list(range(N)) if among_n is None else np.flatnonzero(among_n).tolist()
    )
    counting = counting_of(ranks, dtype, wire=wire)
    x_n1, b_n2 = torch.ones(N, 1, dtype=dtype), torch.ones(N, 2, dtype=dtype)
    with FEW:
        for ids_k, _ in counting.visits(x_n1, b_n2, among_n=among_n):
            every = N if among_n is None else int(among_n.sum())
            counting.send_back(torch.ones(len(ids_k), every, 2, dtype=dtype))
    counting.all_gather(np.ones(N))
    check_counts([sent for _, sent in found], counting)


def test_groups_take_clients_of_all_ranks_in_turn() -> None:
    placement = Placement.contiguous(9, 3)
    groups = plan_visits(placement, np.ones(9, dtype=bool), 4)
    assert [group.tolist() for group in groups] == [[0, 1, 3, 6], [2, 4, 5, 7], [8]]


# -- wrong calls ---------------------------------------------------------------------------------------


def call_wrongly(exchange: Exchange, x_cd: torch.Tensor, what: str) -> None:
    if what == "fewer rows":
        exchange.gram(x_cd, x_cd[1:])
    elif what == "other columns":
        exchange.gram(x_cd, x_cd[:, 1:])
    elif what == "fewer models":
        exchange.visits(x_cd[1:])
    elif what == "no bools":
        exchange.visits(x_cd, among_n=np.arange(N))
    elif what == "nobody visits":
        exchange.send_back(x_cd[None])
    elif what == "fewer answers":
        next(exchange.visits(x_cd))
        exchange.send_back(x_cd[None])
    elif what == "groups left":
        next(exchange.visits(x_cd))
        exchange.gram(x_cd)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("fewer rows", "exchange.gram: 6 rows for the 7 clients of rank 0"),
        ("other columns", "exchange.gram: rows of 83 and of 82 columns"),
        ("fewer models", "exchange.visits: 6 rows for the 7 clients of rank 0"),
        ("no bools", r"exchange.visits: among_n is int64 \(7,\); it needs one bool for each of 7"),
        ("nobody visits", "exchange.send_back: called outside of exchange.visits"),
        (
            "fewer answers",
            r"exchange.send_back: answers \(1, 7, 83\); they need the shape \(7, 7, d\)",
        ),
        (
            "groups left",
            "exchange.gram: called before exchange.visits is finished: take all groups",
        ),
    ],
)
def test_calls_that_would_give_wrong_numbers_are_refused(what: str, words: str) -> None:
    exchange = Exchange(SoloTransport(), Placement(OWNERS[1], 1), torch.float64, CPU)
    with pytest.raises(ValueError, match=words):
        call_wrongly(exchange, matrices()[0], what)
