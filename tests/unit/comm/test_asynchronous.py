"""Letters between ranks, and the exchange of ranks that do not wait for each other, in one process."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from cobo_dist.algorithms.statistics import statistic_of
from cobo_dist.comm.asynchronous.exchange import AsynchronousExchange
from cobo_dist.comm.asynchronous.mailbox import Letter, Mailbox, open_mailbox
from cobo_dist.comm.placement import Placement
from cobo_dist.comm.transports.base import LostContact, SoloTransport
from cobo_dist.maths.sketch import Sketch
from cobo_dist.maths.weights import Weights

N, D = 5, 40  # clients: 0 to 2 on rank 0, 3 and 4 on rank 1
CPU = torch.device("cpu")


class Apart(SoloTransport):
    """The transport of a rank whose records nobody needs here."""

    def __init__(self, rank: int) -> None:
        self.rank, self.world_size = rank, 2


def linked() -> tuple[Mailbox, Mailbox]:
    one, other = socket.socketpair()
    return Mailbox(0, {1: one}), Mailbox(1, {0: other})


@pytest.fixture
def both() -> Iterator[list[AsynchronousExchange]]:
    boxes = linked()
    yield [
        AsynchronousExchange(
            Apart(rank), Placement.contiguous(N, 2), torch.float64, CPU,
            mailbox=box, max_lag=3, seconds=20.0,
        )
        for rank, box in enumerate(boxes)
    ]  # fmt: skip
    for box in boxes:
        box.close()


def at_once(*works: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(works)) as pool:
        return [one.result(30) for one in [pool.submit(work) for work in works]]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "nothing arrived"
        time.sleep(0.002)


def read_until_round(one: AsynchronousExchange, other: AsynchronousExchange, r: int) -> None:
    """Let rank 0 begin a round, and rank 1 read its mail up to that news: all letters before it are there."""
    one.begin_round(r)
    until(lambda: (other._read(), other._rounds[0] == r)[1])


def models() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(N, D)))


# -- letters --------------------------------------------------------------------------------------


def test_letters_arrive_in_order_with_their_types() -> None:
    one, other = linked()
    sent = {
        "ids": torch.arange(3),
        "models": torch.randn(3, 4).bfloat16(),
        "none": torch.empty(0, 2),
    }
    for r in range(20):
        one.post(1, Letter("models", r, sent))
    found: list[tuple[int, Letter]] = []
    until(lambda: found.extend(other.take()) or len(found) == 20)
    assert [(peer, letter.round) for peer, letter in found] == [(0, r) for r in range(20)]
    for name, tensor in sent.items():
        assert torch.equal(found[7][1].tensors[name], tensor)
        assert found[7][1].tensors[name].dtype == tensor.dtype
    one.close()
    other.close()


def test_only_the_newest_waits_for_a_peer_that_does_not_read() -> None:
    near, far = socket.socketpair()
    box = Mailbox(0, {1: near})
    row = torch.zeros(1_000_000)  # more than a socket holds
    for r in range(50):
        box.post(1, Letter("models", r, {"models": row}), newest=True)
        box.post(1, Letter("progress", r), newest=True)
    box.post(1, Letter("record", 1))
    box.post(1, Letter("record", 2))
    reader = Mailbox(1, {0: far})
    found: list[tuple[int, Letter]] = []
    until(
        lambda: (
            found.extend(reader.take())
            or (bool(found) and found[-1][1].kind == "record" and found[-1][1].round == 2)
        )
    )
    rounds = {
        kind: [letter.round for _, letter in found if letter.kind == kind]
        for kind in ("models", "progress", "record")
    }
    assert rounds["models"][-1] == rounds["progress"][-1] == 49
    assert len(rounds["models"]) <= 3, "those between were replaced"
    assert rounds["record"] == [1, 2], "a record is never replaced"
    box.close()
    reader.close()


def test_a_peer_that_ends_is_named() -> None:
    near, far = socket.socketpair()
    box = Mailbox(2, {5: near})
    far.close()
    with pytest.raises(LostContact, match="rank 2 lost contact with rank 5: it closed") as lost:
        until(lambda: bool(box.take()))
    assert lost.value.peers == {5}
    box.close()


def test_one_rank_has_no_peers() -> None:
    with open_mailbox(SoloTransport(), 1.0) as box:
        assert box.peers == []
        assert box.take() == []


# -- sums -----------------------------------------------------------------------------------------


def some_weights(ids: Any) -> Weights:
    """Return rows of a symmetric W in which client 0 has no link to the other rank."""
    w_nn = np.array(
        [
            [0.0, 0.5, 0.0, 0.0, 0.0],
            [0.5, 0.0, 0.2, 1.0, 0.0],
            [0.0, 0.2, 0.0, 0.0, 0.3],
            [0.0, 1.0, 0.0, 0.0, 0.7],
            [0.0, 0.0, 0.3, 0.7, 0.0],
        ]
    )
    weights = Weights(ids, range(N), dtype=np.float64, symmetric=True)
    weights.put_rows(np.arange(len(ids)), w_nn[np.asarray(ids)])
    return weights


def mixed(exchange: AsynchronousExchange, x_cd: torch.Tensor) -> torch.Tensor:
    sums = torch.empty_like(x_cd)
    for at, part in exchange.mix(some_weights(exchange.ids), x_cd):
        sums[:, at] = part
    return sums


def test_sums_are_of_the_models_that_arrived_last(both: list[AsynchronousExchange]) -> None:
    x_nd, w_nn = models(), some_weights(range(N)).dense()
    first, second = at_once(*(lambda e=e: mixed(e, x_nd[e.ids]) for e in both))
    torch.testing.assert_close(torch.cat([first, second]), torch.from_numpy(w_nn) @ x_nd)
    # Rank 1 moves on and publishes; rank 0 sees it, while rank 1 still has the old models of rank 0.
    later = x_nd + 1.0
    torch.testing.assert_close(
        mixed(both[1], later[3:]), torch.from_numpy(w_nn)[3:] @ torch.cat([x_nd[:3], later[3:]])
    )
    until(lambda: bool(both[0].mailbox._arrived))
    torch.testing.assert_close(
        mixed(both[0], x_nd[:3]), torch.from_numpy(w_nn)[:3] @ torch.cat([x_nd[:3], later[3:]])
    )
    assert sorted(both[0].models._models) == [3, 4]
    # 2 of 3 clients of rank 0 have a link to the other rank, so 2 models travel each time.
    assert both[0].traffic.bytes["mixing"] == 2 * (2 * 8 + 2 * D * 8)


def test_a_model_that_never_arrived_does_not_pull(both: list[AsynchronousExchange]) -> None:
    x_nd, exchange = models(), both[0]
    exchange._awaited["models"].clear()
    w_cn = some_weights(exchange.ids).dense()
    expected = torch.from_numpy(w_cn[:, :3]) @ x_nd[:3]
    expected += torch.from_numpy(w_cn[:, 3:].sum(axis=1, keepdims=True)) * x_nd[:3]
    torch.testing.assert_close(mixed(exchange, x_nd[:3]), expected)


def test_numbers_of_all_clients(both: list[AsynchronousExchange]) -> None:
    own = [np.asarray(e.ids)[:, None] * [1.0, 10.0] for e in both]
    found = at_once(*(lambda e=e, n=n: e.all_gather(n) for e, n in zip(both, own, strict=True)))
    for numbers_nk in found:
        np.testing.assert_array_equal(numbers_nk, np.arange(N)[:, None] * [1.0, 10.0])


@pytest.mark.parametrize("method", ["all_reduce", "gram", "visits"])
def test_what_needs_all_ranks_is_refused(both: list[AsynchronousExchange], method: str) -> None:
    with pytest.raises(ValueError, match="needs all ranks at once"):
        getattr(both[0], method)(models()[:3])


# -- pairs ----------------------------------------------------------------------------------------

PAIRS = torch.tensor([[0, 1], [0, 3], [1, 4], [2, 3], [3, 4]])


def gradient(client: int, z_d: torch.Tensor) -> torch.Tensor:
    return torch.cos((client + 1) * z_d) + client


def take_round(
    exchange: AsynchronousExchange, x_cd: torch.Tensor, pairs: torch.Tensor, r: int, **given: Any
) -> dict[tuple[int, int], float]:
    """Take the pairs' part of a round; return the alignments that are known, by client and partner."""
    exchange.begin_round(r)
    exchange.send_models(x_cd, pairs)
    exchange.receive_models()
    ends, z_ed = exchange.midpoints(pairs)
    rows = [gradient(i, z_d) for i, z_d in zip(ends.ids.tolist(), z_ed, strict=True)]
    g_ed = torch.stack(rows) if rows else z_ed
    known, alignment_e = exchange.alignment(g_ed, statistic_of("cosine"), **given)
    assert (known.rows == exchange.placement.row_n[known.ids]).all()
    assert (known.first == (known.ids < known.partners)).all()
    pairs_e = zip(known.ids.tolist(), known.partners.tolist(), alignment_e.tolist(), strict=True)
    return {(i, j): one for i, j, one in pairs_e}


def cosine_at(x_i: torch.Tensor, x_j: torch.Tensor, i: int, j: int) -> float:
    z_d = (x_i + x_j) / 2
    a, b = gradient(i, z_d), gradient(j, z_d)
    return float(a @ b / (a.norm() * b.norm()))


NONE = torch.empty((0, 2), dtype=torch.int64)


@pytest.mark.parametrize("size", [0, 8])
def test_both_ends_learn_the_alignment_at_one_midpoint(
    both: list[AsynchronousExchange], size: int
) -> None:
    x_nd = models()
    given = {"sketch": Sketch(size, seed=3, t=0)} if size else {}
    one, other = both
    found = take_round(one, x_nd[:3], PAIRS, 1, **given)
    assert set(found) == {(0, 1), (1, 0)}, "only the pair within the rank is known at once"
    until(lambda: len(other.mailbox._arrived) == 2)
    # The other rank answers with its models of now, in its own round, although it draws no pairs.
    moved = x_nd + 0.5
    assert set(take_round(other, moved[3:], PAIRS[-1:], 7, **given)) == {(3, 4), (4, 3)}
    until(lambda: len(one.mailbox._arrived) == 2)
    told = take_round(one, x_nd[:3] - 4.0, NONE, 9, **given)
    assert set(told) == {(0, 3), (1, 4), (2, 3)}
    until(lambda: len(other.mailbox._arrived) >= 2)
    heard = take_round(other, moved[3:] + 1.0, NONE, 10, **given)
    assert heard == {(j, i): one for (i, j), one in told.items()}
    if not size:
        for (i, j), one_alignment in told.items():
            assert one_alignment == pytest.approx(cosine_at(x_nd[i], moved[j], i, j), rel=1e-12)
    else:  # as the sketch of the round that asked
        for (i, j), one_alignment in told.items():
            z_1d = ((x_nd[i] + moved[j]) / 2)[None]
            a, b = (
                Sketch(size, seed=3, t=0).of_pairs(gradient(k, z_1d), np.array([k]), np.array([m]))[
                    0
                ]
                for k, m in ((i, j), (j, i))
            )
            assert one_alignment == pytest.approx(float(a @ b / (a.norm() * b.norm())), rel=1e-12)


def test_a_pair_has_one_meeting_under_way(both: list[AsynchronousExchange]) -> None:
    one, other = both
    for r in range(1, 5):
        take_round(one, models()[:3], PAIRS, r)
    read_until_round(one, other, 10)
    assert len(other.meetings._requests) == 1, "asked once for pairs drawn four times"
    one.meetings.forget()
    take_round(one, models()[:3], PAIRS, 11)
    read_until_round(one, other, 20)
    assert len(other.meetings._requests) == 2, "asked again once it was broken off"


def test_an_answer_to_a_meeting_that_was_broken_off_is_dropped(
    both: list[AsynchronousExchange],
) -> None:
    one, other = both
    take_round(one, models()[:3], PAIRS, 1)
    until(lambda: len(other.mailbox._arrived) == 2)
    take_round(other, models()[3:], NONE, 1)
    one.meetings.forget()
    until(lambda: len(one.mailbox._arrived) == 2)
    assert take_round(one, models()[:3], NONE, 2) == {}


# -- the pace -------------------------------------------------------------------------------------


def test_a_rank_far_behind_goes_on_with_the_round_of_the_fastest(
    both: list[AsynchronousExchange],
) -> None:
    one, other = both
    for r, expected in ((2, 2), (5, 2), (6, 6), (40, 30)):
        read_until_round(one, other, r)
        assert other.next_round(1, due=30) == expected, f"the fastest is in round {r}"
    assert one.next_round(40, due=50) == 41


def test_ranks_come_together_after_the_same_round(both: list[AsynchronousExchange]) -> None:
    """The rank behind is sent on to the round after which the other one waits."""
    one, other = both

    def fast() -> bool:
        one.begin_round(12)
        return one.meet(12)

    def slow() -> list[bool]:
        other.begin_round(4)
        until(lambda: (other._read(), 0 in other._marks)[1])
        tried = [other.meet(4)]
        other.begin_round(12)
        return [*tried, other.meet(12)]

    assert at_once(fast, slow) == [True, [False, True]]
    assert one.in_step
    assert other.in_step
    other.begin_round(13)
    assert not other.in_step


def test_a_signal_reaches_all(both: list[AsynchronousExchange]) -> None:
    one, other = both
    assert other.asked_to_stop(0) == 0
    assert one.asked_to_stop(15) == 15
    until(lambda: other.asked_to_stop(0) == 15)


def test_records_are_collected_once_all_have_arrived(both: list[AsynchronousExchange]) -> None:
    one, other = both
    for exchange in both:
        exchange.begin_round(1)
    found: list[list[bytes]] = []
    for record in (b"a", b"b"):
        one.collect(record, found.append)
    assert found == []
    other.collect(b"c", found.append)
    until(lambda: (one._read(), len(found) == 1)[1])
    other.collect(b"d", found.append)
    until(lambda: (one._read(), len(found) == 2)[1])
    assert found == [[b"a", b"c"], [b"b", b"d"]]


def test_a_rank_that_keeps_silent_is_lost(both: list[AsynchronousExchange]) -> None:
    one, _ = both
    one.seconds = 0.2
    one.begin_round(1)
    with pytest.raises(
        LostContact, match=r"waiting after round 1: no answer within comm.timeout=0.2 s"
    ) as lost:
        one.meet(1)
    assert lost.value.peers == {1}
    assert lost.value.how == "silent"
