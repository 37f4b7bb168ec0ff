"""Hosts that the network has lost: the kernel can notice them long before comm.timeout.

A host that is gone, or a link that is cut, closes no connection: a rank would wait for all of comm.timeout,
which must be long enough for the slowest round. But a host that is up acknowledges packets whatever its ranks
do. gloo has no key for that, so the options are set on its sockets from outside. Only Linux lists them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNREACHABLE_SHARE = 0.25
"""The share of comm.timeout after which a host that acknowledges nothing counts as lost. Not less: a process
that is suspended in the middle of a message takes no more data, which ends its connections as well."""
_SOCKETS = Path("/proc/self/fd")


@contextmanager
def noticing_lost_hosts(timeout: float) -> Iterator[None]:
    """Let connections to other hosts that are opened meanwhile end when those hosts acknowledge nothing.

    `timeout`: comm.timeout, in seconds.
    """
    before = _sockets()
    yield
    after = _sockets()
    for name in after.keys() - before.keys():
        # Closing the copy leaves the connection open.
        with suppress(OSError), socket.socket(fileno=os.dup(after[name])) as one:
            if one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM:
                own, peer = one.getsockname(), one.getpeername()  # raises where it only listens
                if own[0] != peer[0]:
                    _set_limit(one, max(1.0, UNREACHABLE_SHARE * timeout))


def _sockets() -> dict[str, int]:
    """Return the descriptors of this process's sockets, by a name that is never used twice."""
    found = {}
    with suppress(OSError):
        for path in _SOCKETS.iterdir():
            with suppress(OSError):
                if (name := os.readlink(path)).startswith("socket:"):
                    found[name] = int(path.name)
    return found


def _set_limit(connection: socket.socket, seconds: float) -> None:
    """Limit the wait for an acknowledgment: of data, and of the probes of a connection that carries none."""
    probe_seconds = max(1, min(int(seconds / 4), 1000))
    milliseconds = min(int(1000 * seconds), 2**31 - 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, probe_seconds)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, probe_seconds)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
