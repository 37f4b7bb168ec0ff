"""Whether hosts reach each other where their ranks will listen: tried by one rank a host, before gloo does.

gloo would try until comm.timeout and then name an address; this names the host and the interface.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

SECONDS = 5.0  # for one connection: far more than any network in use needs


@contextmanager
def answering(address: str, token: str) -> Iterator[int]:
    """Listen at the address on a free port (yielded) and tell every caller the token."""
    server = socket.create_server((address, 0), family=_family(address), backlog=256)
    thread = threading.Thread(target=_answer, args=(server, token), daemon=True)
    thread.start()
    try:
        yield int(server.getsockname()[1])
    finally:
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)  # wakes the thread, which close alone would not
        server.close()
        thread.join(SECONDS)


def _answer(server: socket.socket, token: str) -> None:
    while True:
        try:
            caller, _ = server.accept()
        except OSError:  # closed
            return
        with caller, suppress(OSError):
            caller.settimeout(SECONDS)
            caller.sendall(token.encode())


def fails_to_reach(places: Mapping[int, tuple[str, int, str]]) -> dict[int, str]:
    """Call everyone in {rank: (address, port, token)}; return who could not be reached, and why."""
    failures = {}
    for rank, (address, port, token) in places.items():
        try:
            with socket.create_connection((address, port), timeout=SECONDS) as caller:
                answer = _read(caller)
        except OSError as error:
            failures[rank] = (error.strerror or str(error)).lower()
            continue
        if answer != token:
            failures[rank] = "another process answers there"
    return failures


def _read(caller: socket.socket) -> str:
    parts = []
    while part := caller.recv(256):
        parts.append(part)
    return b"".join(parts).decode(errors="replace")


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
