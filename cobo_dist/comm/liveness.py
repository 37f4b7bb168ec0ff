"""Liveness: every rank keeps one TCP connection to rank 0 for as long as the session lasts.

The kernel closes a process's connections when it ends, however it ends. So rank 0 learns at once that a rank
was killed, and tells the others. A rank that fails says why over the same connection, also while there is no
run folder yet that a report could go into. Silence means nothing here: a rank that is slow, suspended or cut
off by the network keeps its connection, and the time-outs decide about it. The thread that reads notices when
its own process was stopped.
"""

from __future__ import annotations

import errno
import json
import math
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cobo_dist.errors import EXIT_FAILED, RunFailure

CONNECT_SECONDS = 5.0
"""The limit for the connection to rank 0, whose host is known to be up."""
MAX_LINE_BYTES = 1 << 16
"""A longer line is no message of a rank: its connection is closed."""
_KEEPALIVE = (
    (socket.TCP_KEEPIDLE, 60),
    (socket.TCP_KEEPINTVL, 60),
    (socket.TCP_KEEPCNT, 120),
)
"""One probe a minute; the connection outlasts two hours without an answer."""
_WAKE_SECONDS = 1.0  # how often the reading thread looks at the clock
MIN_STOP_SECONDS = 2.0
"""If the thread wakes up later than this, its process was stopped, and not only short of a processor."""
STOP_MEMORY_SECONDS = 60.0
"""A stop that ended longer ago than this, and than it lasted, has no part in a loss of contact now."""
_DRAIN_SECONDS = 0.2  # for messages on their way, before a process ends and resets its connections


class RankEnded(RunFailure):
    """Another rank ended, and the run with it. The same line on all ranks.

    Args:
        rank: that rank.
        message: its own reason, or that it died.
        code: the exit code for all ranks.
        died: it did not say why.
        here_only: this rank prints the message, for rank 0.
    """

    def __init__(
        self,
        rank: int,
        message: str,
        code: int = EXIT_FAILED,
        *,
        died: bool = False,
        here_only: bool = False,
    ) -> None:
        super().__init__(message, here_only, code)
        self.rank, self.died = rank, died


@dataclass
class _Peer:
    """One connection, with what has arrived of its next message."""

    connection: socket.socket
    rank: int = -1  # -1: it has not said who it is
    host: str = ""
    pending: bytes = b""


class Liveness:
    """What this rank knows of the other ranks' ends. Without connections (one rank, MPI): nothing.

    Thread-safe. One thread a rank reads the connections.
    """

    def __init__(self, rank: int = 0) -> None:
        self.rank, self.activity = rank, "while connecting"
        self.hosts = [os.uname().nodename]
        """The host of each rank, once all are connected."""
        self.on_failure: Callable[[RankEnded], None] = lambda failure: None
        """Called in a thread of its own with the first failure of another rank."""
        self._changed = threading.Condition()
        self._failure: RankEnded | None = None
        self._ready: set[int] = (
            set()
        )  # ranks that wait in `wait_for_all`; on others than 0: {0} for go
        self._peers: list[_Peer] = []
        self._selector: selectors.BaseSelector | None = None  # None: there are no connections
        self._listener: socket.socket | None = None
        self._token = ""
        self._looked = time.monotonic()
        self._stop = (-math.inf, 0.0)  # when the last stop of this process ended, and its seconds
        self._is_closed = False
        self._is_leaving = False  # it knows why it ends, so what others do then is no news

    # -- connecting -------------------------------------------------------------------------------

    def listen(self, address: str, token: str) -> int:
        """Listen on a free port of the address for the other ranks, on rank 0; return the port.

        `token`: what a rank of this run knows.

        Raises:
            OSError: this host does not have the address.
        """
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.create_server((address, 0), family=family, backlog=2048)
        self._listener.setblocking(False)
        self._token = token
        self._reading().register(self._listener, selectors.EVENT_READ, self._listener)
        return int(self._listener.getsockname()[1])

    def join(self, address: str, port: int, token: str, host: str) -> None:
        """Connect to rank 0, on `host`.

        Raises:
            OSError: it does not answer.
        """
        self._token = token
        connection = socket.create_connection((address, port), timeout=CONNECT_SECONDS)
        _send(connection, {"token": token, "rank": self.rank, "host": os.uname().nodename})
        self._leave()  # an earlier start of the run, under torchrun
        self._add(_Peer(connection, 0, host))

    def connected(self) -> set[int]:
        """Return the ranks that are connected here: on rank 0 the others, elsewhere rank 0."""
        return {peer.rank for peer in list(self._peers)} - {-1}

    def stop_listening(self) -> None:
        """Accept no further connection, and close those that did not come from a rank."""
        if self._listener is not None:
            self._reading().unregister(self._listener)
            self._listener.close()
            self._listener = None
        for peer in [one for one in self._peers if one.rank < 0]:
            self._drop(peer)

    # -- what other ranks did -----------------------------------------------------------------------

    def failure(self, seconds: float = 0.0) -> RankEnded | None:
        """Return the first failure of another rank, waiting up to `seconds` for one; else None."""
        with self._changed:
            if self._peers:
                self._changed.wait_for(lambda: self._failure is not None, seconds)
            return self._failure

    def wait_for_all(self, world_size: int, seconds: float) -> set[int]:
        """Wait until all ranks have called this; return the ranks that did not within `seconds`.

        Only rank 0 knows these; other ranks return {0} where rank 0 does not let them go on.

        Raises:
            RankEnded: a rank failed meanwhile.
        """
        if self._selector is None:
            return set()
        awaited = set(range(1, world_size)) if self.rank == 0 else {0}
        if self.rank:
            self._tell({"ready": True})
        with self._changed:
            self._changed.wait_for(lambda: self._failure or awaited <= self._ready, seconds)
            if self._failure is not None:
                raise self._failure
            missing = awaited - self._ready
        if not missing and self.rank == 0:
            self._tell({"ready": True})
        return missing

    def stopped_seconds(self) -> float:
        """Return for how long this process was lately stopped (suspended, or by SIGSTOP); 0: it was not."""
        if self._selector is None:
            return 0.0
        self._look_at_clock()
        ended, seconds = self._stop
        recent = time.monotonic() - ended <= max(STOP_MEMORY_SECONDS, seconds)
        return seconds if recent else 0.0

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        late = now - self._looked - _WAKE_SECONDS
        if late > MIN_STOP_SECONDS:
            self._stop = (now, late)
        self._looked = now

    # -- what this rank does ------------------------------------------------------------------------

    def report(self, line: str, code: int = EXIT_FAILED) -> bool:
        """Tell all ranks, before this one ends, why it does; return whether there is anyone to tell."""
        self._is_leaving = True
        self._tell({"failed": line, "code": code, "rank": self.rank, "died": False})
        return bool(self._peers)

    def close(self) -> None:
        """Leave: from here on, that this process ends is no failure. Also ends the reading thread."""
        if self._selector is None or self._is_closed:
            return
        self._is_closed = self._is_leaving = True
        self._tell({"bye": True})
        self.drain()
        self._leave()
        self._wake.close()

    def drain(self) -> None:
        """Let messages on their way arrive: unread input would make the kernel discard them."""
        for peer in list(self._peers):
            with suppress(OSError):
                peer.connection.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + _DRAIN_SECONDS
        while self._peers and time.monotonic() < deadline:
            time.sleep(0.002)

    # -- connections --------------------------------------------------------------------------------

    def _reading(self) -> selectors.BaseSelector:
        """Return the connections that the reading thread reads; the first call starts it."""
        if self._selector is None:
            self._selector, self._looked = selectors.DefaultSelector(), time.monotonic()
            self._wake, woken = socket.socketpair()  # closing one end wakes the thread
            self._selector.register(woken, selectors.EVENT_READ)
            threading.Thread(
                target=self._read_all, args=(self._selector, woken), name="liveness", daemon=True
            ).start()
        return self._selector

    def _add(self, peer: _Peer) -> None:
        peer.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Now and then a packet, since firewalls forget connections that carry none.
        peer.connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            peer.connection.setsockopt(socket.IPPROTO_TCP, option, value)
        peer.connection.settimeout(CONNECT_SECONDS)
        self._peers.append(peer)
        self._reading().register(peer.connection, selectors.EVENT_READ, peer)

    def _drop(self, peer: _Peer) -> None:
        with self._changed:
            if peer in self._peers:
                self._peers.remove(peer)
                self._reading().unregister(peer.connection)
                peer.connection.close()

    def _leave(self) -> None:
        """Close all connections."""
        if self._selector is not None:
            self.stop_listening()
            for peer in list(self._peers):
                self._drop(peer)

    def _tell(self, message: dict[str, Any], but: _Peer | None = None) -> None:
        """Send a message to all connected ranks, or to rank 0."""
        for peer in list(self._peers):
            if peer.rank >= 0 and peer is not but:
                with suppress(OSError):  # it has ended, which the reading thread sees
                    _send(peer.connection, message)

    def _read_all(self, selector: selectors.BaseSelector, woken: socket.socket) -> None:
        """Read all connections until this rank leaves."""
        with woken, selector:
            while True:
                events = selector.select(_WAKE_SECONDS)
                self._look_at_clock()
                for key, _ in events:
                    if key.fileobj is woken:
                        return
                    with suppress(OSError):
                        if isinstance(key.data, _Peer):
                            self._receive(key.data)
                        else:
                            self._add(_Peer(key.data.accept()[0]))

    def _receive(self, peer: _Peer) -> None:
        died = not self._is_leaving
        try:
            content = peer.connection.recv(4096)
        except OSError as error:
            content = b""
            died &= error.errno == errno.ECONNRESET  # another error is one of the network
        *lines, peer.pending = (peer.pending + content).split(b"\n")
        for line in lines:
            if peer in self._peers:
                self._handle(peer, line)
        if peer in self._peers and (not content or len(peer.pending) > MAX_LINE_BYTES):
            if peer.rank >= 0 and died:
                self._fail(self._died(peer), peer)
            self._drop(peer)

    def _died(self, peer: _Peer) -> RankEnded:
        line = f"rank {peer.rank} on {peer.host} died {self.activity}: killed, or out of memory"
        speaks = peer.rank == 0 and self._speaks_for_host()
        return RankEnded(peer.rank, line, died=True, here_only=speaks)

    def _speaks_for_host(self) -> bool:
        """Return whether this rank is the first on its host to ask: rank 0 cannot print any more."""
        self._speaker = socket.socket(socket.AF_UNIX)  # open until this process ends
        try:
            self._speaker.bind(f"\0cobo_dist {self._token}")
        except OSError:
            return False
        return True

    def _handle(self, peer: _Peer, line: bytes) -> None:
        """Act on one message."""
        try:
            message = json.loads(line)
            if peer.rank < 0:
                if message["token"] != self._token:
                    raise ValueError
                peer.rank, peer.host = int(message["rank"]), str(message["host"])
            elif "bye" in message:
                self._drop(peer)
            elif "ready" in message:
                with self._changed:
                    self._ready.add(peer.rank)
                    self._changed.notify_all()
            else:
                rank, code = int(message["rank"]), int(message["code"])
                failure = RankEnded(rank, str(message["failed"]), code, died=bool(message["died"]))
                self._fail(failure, peer)
        except (ValueError, KeyError, TypeError):
            self._drop(peer)

    def _fail(self, failure: RankEnded, source: _Peer) -> None:
        """Keep the first failure of another rank, and pass it on."""
        with self._changed:
            if self._failure is not None:
                return
            if self.rank == 0:  # before this rank can act on it, and leave
                news = {"failed": str(failure), "code": failure.code}
                self._tell({**news, "rank": failure.rank, "died": failure.died}, source)
            self._failure = failure
            self._changed.notify_all()
        threading.Thread(target=self.on_failure, args=(failure,), daemon=True).start()


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")
