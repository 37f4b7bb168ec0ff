"""What ranks learn of each other's ends over the connections of `Liveness`; here ranks are objects."""

from __future__ import annotations

import errno
import json
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from unittest import mock

import pytest

from cobo_dist.comm.liveness import MAX_LINE_BYTES, Liveness, RankEnded, _Peer

SOON = 10.0  # far more than a message takes; nothing waits so long when it works


@pytest.fixture
def ranks() -> Iterator[list[Liveness]]:
    """Three ranks that are connected."""
    ranks, token = [Liveness(rank) for rank in range(3)], secrets.token_hex()
    port = ranks[0].listen("127.0.0.1", token)
    for one in ranks[1:]:
        one.join("127.0.0.1", port, token, "host0")
    until = time.monotonic() + SOON
    while ranks[0].connected() != {1, 2} and time.monotonic() < until:
        time.sleep(0.01)
    ranks[0].stop_listening()
    yield ranks
    for one in ranks:
        one.close()


def die(rank: Liveness) -> None:
    """Close a rank's connections as the kernel does when a process ends."""
    rank._is_leaving = True  # a dead process takes note of nothing
    for peer in list(rank._peers):
        peer.connection.shutdown(socket.SHUT_RDWR)


def test_a_dead_rank_is_known_to_all_others(ranks: list[Liveness]) -> None:
    assert ranks[0].failure() is None
    heard: list[RankEnded] = []
    ranks[1].on_failure = heard.append
    die(ranks[2])
    for one in ranks[:2]:
        failure = one.failure(SOON)
        assert failure is not None
        assert (failure.rank, failure.died, failure.code) == (2, True, 1)
        assert "rank 2 on" in str(failure)
        assert "died while connecting" in str(failure)
    until = time.monotonic() + SOON
    while not heard and time.monotonic() < until:
        time.sleep(0.01)
    assert heard == [ranks[1].failure()]


def test_when_rank_0_dies_one_rank_of_a_host_prints(ranks: list[Liveness]) -> None:
    die(ranks[0])
    failures = [one.failure(SOON) for one in ranks[1:]]
    assert [one is not None and one.rank for one in failures] == [0, 0]
    assert sorted(one is not None and one.here_only for one in failures) == [False, True]
    assert "rank 0 on host0 died" in str(failures[0])


def test_a_reported_failure_keeps_its_words_and_code(ranks: list[Liveness]) -> None:
    assert ranks[1].report("no memory", 7)
    ranks[1].close()
    for one in (ranks[0], ranks[2]):
        failure = one.failure(SOON)
        assert failure is not None
        assert (str(failure), failure.rank, failure.code, failure.died) == (
            "no memory",
            1,
            7,
            False,
        )


def test_a_rank_that_leaves_in_order_has_not_failed(ranks: list[Liveness]) -> None:
    ranks[2].close()
    ranks[0].close()
    assert ranks[1].failure(0.3) is None
    assert ranks[0].failure() is None


@pytest.mark.parametrize(
    ("number", "died"),
    [(errno.ECONNRESET, True), (errno.ETIMEDOUT, False), (errno.EHOSTUNREACH, False)],
)
def test_an_error_of_the_network_is_no_death(number: int, died: bool) -> None:
    hub, connection = Liveness(), mock.Mock()
    connection.recv.side_effect = OSError(number, "")
    peer = _Peer(connection, 1, "host1")
    with mock.patch.object(hub, "_reading"):
        hub._peers.append(peer)
        hub._receive(peer)
    assert hub.connected() == set()
    assert (hub.failure() is not None) == died


def test_all_wait_for_all(ranks: list[Liveness]) -> None:
    missing: dict[int, set[int]] = {}

    def wait(rank: int) -> None:
        missing[rank] = ranks[rank].wait_for_all(3, SOON)

    threads = [threading.Thread(target=wait, args=(rank,)) for rank in range(3)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(SOON)
    assert missing == {0: set(), 1: set(), 2: set()}


def test_a_rank_that_does_not_come_is_named(ranks: list[Liveness]) -> None:
    assert ranks[1].wait_for_all(3, 0.2) == {0}, "rank 0 does not let it go on"
    assert ranks[0].wait_for_all(3, 0.5) == {2}
    ranks[2].report("slow", 2)
    with pytest.raises(RankEnded, match="slow"):
        ranks[0].wait_for_all(3, SOON)


def test_a_stranger_is_no_rank() -> None:
    """Without the token, with broken JSON, or with a line that never ends: the connection is closed."""
    hub = Liveness()
    port = hub.listen("127.0.0.1", "token")
    hello = {"token": "other", "rank": 1, "host": "x"}
    for content in (json.dumps(hello).encode() + b"\n", b"{\n", b"x" * (2 * MAX_LINE_BYTES)):
        with socket.create_connection(("127.0.0.1", port), timeout=SOON) as stranger:
            stranger.settimeout(SOON)
            try:
                stranger.sendall(content)
                assert stranger.recv(1) == b""
            except ConnectionError:
                pass
    assert hub.connected() == set()
    assert hub.failure() is None
    hub.stop_listening()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=SOON)
    hub.close()


def test_one_rank_has_nobody_to_ask() -> None:
    alone = Liveness()
    assert alone.wait_for_all(1, SOON) == set()
    assert alone.failure(SOON) is None
    assert not alone.report("x")
    alone.close()


def test_a_stop_of_its_own_process_is_noticed_and_forgotten(ranks: list[Liveness]) -> None:
    assert ranks[0].stopped_seconds() == Liveness().stopped_seconds() == 0.0
    ranks[0]._looked -= 20.0  # as if the reading thread had not run since then
    assert 18.0 < ranks[0].stopped_seconds() < 20.0
    ended, seconds = ranks[0]._stop
    ranks[0]._stop = ended - 61.0, seconds
    assert ranks[0].stopped_seconds() == 0.0
    ranks[0]._stop = ended - 61.0, 100.0
    assert ranks[0].stopped_seconds() == 100.0
