"""Whether hosts reach each other at the addresses of their ranks: tested by one rank a host, before gloo.

gloo would try until comm.timeout and then report an address; this test reports the host and the interface.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

CONNECT_SECONDS = 5.0
"""The limit for one connection: far more than any network in use needs."""


@contextmanager
def listening(address: str, token: str) -> Iterator[int]:
    """Listen at the address on a free port (yielded), and send the token to every caller."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.create_server((address, 0), family=family, backlog=256)
    thread = threading.Thread(target=_answer_calls, args=(server, token), daemon=True)
    thread.start()
    try:
        yield int(server.getsockname()[1])
    finally:
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)  # wakes the thread, which close alone would not
        server.close()
        thread.join(CONNECT_SECONDS)


def find_unreachable(targets: Mapping[int, tuple[str, int, str]]) -> dict[int, str]:
    """Connect to each of {rank: (address, port, token)}; return why ranks could not be reached."""
    failures = {}
    for rank, (address, port, token) in targets.items():
        try:
            with socket.create_connection((address, port), timeout=CONNECT_SECONDS) as connection:
                answer = _read_all(connection)
        except OSError as error:
            failures[rank] = (error.strerror or str(error)).lower()
            continue
        if answer != token:
            failures[rank] = "another process answers there"
    return failures


def _answer_calls(server: socket.socket, token: str) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:  # closed
            return
        with connection, suppress(OSError):
            connection.settimeout(CONNECT_SECONDS)
            connection.sendall(token.encode())


def _read_all(connection: socket.socket) -> str:
    parts = []
    while part := connection.recv(256):
        parts.append(part)
    return b"".join(parts).decode(errors="replace")
