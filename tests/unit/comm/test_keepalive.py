"""Which connections end when the other host acknowledges nothing, and after how long."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from cobo_dist.comm.startup.keepalive import noticing_lost_hosts


@contextmanager
def connection(address: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield both ends of a connection from 127.0.0.1 to an address of the loopback interface."""
    with socket.create_server((address, 0)) as server:
        client = socket.create_connection(server.getsockname(), source_address=("127.0.0.1", 0))
        with client, server.accept()[0] as other:
            yield client, other


def options(one: socket.socket) -> tuple[int, int]:
    """Return whether it probes an idle connection, and its limit in ms."""
    return (
        one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        one.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
    )


@pytest.mark.parametrize(("timeout", "limit"), [(600.0, 150_000), (1.0, 1000), (1e7, 2**31 - 1)])
def test_new_connections_to_other_hosts_have_a_limit(timeout: float, limit: int) -> None:
    with ExitStack() as opened:
        earlier = opened.enter_context(connection("127.0.0.2"))
        with noticing_lost_hosts(timeout):
            new = opened.enter_context(connection("127.0.0.3"))
            same_host = opened.enter_context(connection("127.0.0.1"))
        assert [options(one) for one in new] == [(1, limit)] * 2
        assert [options(one) for one in (*earlier, *same_host)] == [(0, 0)] * 4
        new[0].sendall(b"still open")
        assert new[1].recv(20) == b"still open"


def test_sockets_without_a_peer_are_left_alone() -> None:
    with noticing_lost_hosts(600.0):
        listener, pair = socket.create_server(("127.0.0.1", 0)), socket.socketpair()
        datagrams = socket.socket(type=socket.SOCK_DGRAM)
    for one in (listener, *pair, datagrams):
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
        one.close()
