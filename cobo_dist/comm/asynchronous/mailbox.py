"""Letters between ranks that do not wait for each other.

A letter is posted and goes out when the peer takes it; a newer one of its kind may take its place until then.
So a rank that is stopped holds up nobody, and what waits for it stays bounded. Each pair of ranks has a TCP
connection of its own, whatever carries models otherwise: NCCL and MPI would need a receive for each send, and
neither side knows when the other writes.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import socket
import struct
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from safetensors.torch import load, save
from torch import Tensor

from cobo_dist.comm.startup.interfaces import gloo_endpoint
from cobo_dist.comm.transports.base import LostContact, Transport
from cobo_dist.errors import ConfigError

_HEAD = struct.Struct("!16sqq")  # kind, round, bytes of the body
_HELLO = struct.Struct("!32sq")  # token, rank
CLOSE_SECONDS = 5.0
"""How long a rank that ends waits until its last letters are out."""


@dataclass(frozen=True)
class Letter:
    """What one rank tells another. Its tensors, of the CPU, must not change after it is posted."""

    kind: str
    round: int  # of the sender
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """The bytes of its tensors."""
        return sum(one.numel() * one.element_size() for one in self.tensors.values())


class Mailbox:
    """The letters of one rank: those that wait to go out, and those that have arrived."""

    def __init__(self, rank: int, connections: Mapping[int, socket.socket]) -> None:
        """Serve connections to all peers, two threads each."""
        self.rank, self.peers = rank, sorted(connections)
        self._connections = dict(connections)
        self._changed = threading.Condition()
        self._arrived: deque[tuple[int, Letter]] = deque()
        self._waiting: dict[int, OrderedDict[object, Letter]] = {
            peer: OrderedDict() for peer in self.peers
        }
        self._posted = 0
        self._lost: dict[int, str] = {}
        self._is_closing = False
        self._threads = [
            threading.Thread(target=work, args=(peer,), name=f"{name} {peer}", daemon=True)
            for peer in self.peers
            for name, work in (("letters to", self._send), ("letters from", self._receive))
        ]
        for thread in self._threads:
            thread.start()

    def post(self, peer: int, letter: Letter, *, newest: bool = False) -> None:
        """Let a letter go out; return at once. `newest`: it replaces one of its kind that still waits."""
        with self._changed:
            waiting = self._waiting[peer]
            self._posted += 1
            key: object = letter.kind if newest else self._posted
            waiting.pop(key, None)
            waiting[key] = letter
            self._changed.notify_all()

    def take(self) -> list[tuple[int, Letter]]:
        """Return the peers and letters that have arrived since the last call, oldest first.

        Raises:
            LostContact: a peer has ended.
        """
        with self._changed:
            if self._lost:
                peer, why = next(iter(self._lost.items()))
                raise LostContact(f"rank {self.rank} lost contact with rank {peer}: {why}", [peer])
            letters = list(self._arrived)
            self._arrived.clear()
        return letters

    def wait(self, seconds: float) -> None:
        """Return when a letter has arrived or a peer is lost, at the latest after so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._arrived or self._lost), seconds)

    def close(self) -> None:
        """Let the last letters go out, and close the connections."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        until = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            if thread.name.startswith("letters to"):
                thread.join(max(0.0, until - time.monotonic()))
        for connection in self._connections.values():
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        for thread in self._threads:
            thread.join(max(0.1, until - time.monotonic()))

    def _send(self, peer: int) -> None:
        connection, waiting = self._connections[peer], self._waiting[peer]
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(waiting) or self._is_closing)
                if not waiting:
                    return
                _, letter = waiting.popitem(last=False)
            body = save({name: one.contiguous() for name, one in letter.tensors.items()})
            try:
                connection.sendall(_HEAD.pack(letter.kind.encode(), letter.round, len(body)))
                connection.sendall(body)
            except OSError as error:
                self._lose(peer, error)
                return

    def _receive(self, peer: int) -> None:
        connection = self._connections[peer]
        try:
            while True:
                kind, r, length = _HEAD.unpack(_read(connection, _HEAD.size))
                tensors = load(_read(connection, length))
                letter = Letter(kind.rstrip(b"\0").decode(), r, tensors)
                with self._changed:
                    self._arrived.append((peer, letter))
                    self._changed.notify_all()
        except (OSError, EOFError) as error:
            self._lose(peer, error)

    def _lose(self, peer: int, error: Exception) -> None:
        with self._changed:
            if not self._is_closing:
                self._lost.setdefault(peer, str(error) or type(error).__name__)
            self._changed.notify_all()


@contextmanager
def open_mailbox(transport: Transport, seconds: float) -> Iterator[Mailbox]:
    """Connect all ranks with each other, over addresses that `transport` makes known; all ranks call it.

    Raises:
        ConfigError: a rank could not be reached within so many seconds.
    """
    mailbox = Mailbox(transport.rank, _connect(transport, seconds))
    try:
        yield mailbox
    finally:
        mailbox.close()


def _connect(transport: Transport, seconds: float) -> dict[int, socket.socket]:
    """Return a connection to each peer: this rank calls the lower ones, and the higher ones call it."""
    if transport.world_size == 1:
        return {}
    address = gloo_endpoint(os.environ).address
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family, backlog=2048) as server:
        mine = json.dumps([address, server.getsockname()[1], os.uname().nodename])
        places = [json.loads(one) for one in transport.gather(mine.encode())]
        told = json.dumps([places, secrets.token_hex(16)]).encode()
        places, token = json.loads(transport.broadcast(told))
        until, connections = time.monotonic() + seconds, {}
        for peer in range(transport.rank):
            connections[peer] = _call(transport.rank, peer, places[peer], token, until)
        while len(connections) < transport.world_size - 1:
            missing = sorted(set(range(transport.world_size)) - {transport.rank, *connections})
            server.settimeout(max(0.01, until - time.monotonic()))
            try:
                connection, _ = server.accept()
                connection.settimeout(max(0.01, until - time.monotonic()))
                said, peer = _HELLO.unpack(_read(connection, _HELLO.size))
            except (OSError, EOFError) as error:
                if time.monotonic() < until and not isinstance(error, TimeoutError):
                    continue  # no rank of this run
                raise ConfigError(
                    f"comm.mode=asynchronous: rank(s) {', '.join(map(str, missing))} did not connect to "
                    f"rank {transport.rank} at {address} within {seconds:g} s; check that "
                    "GLOO_SOCKET_IFNAME names the right interface, or set comm.mode=synchronous"
                ) from error
            if hmac.compare_digest(said, token.encode()) and peer in missing:
                connections[int(peer)] = connection
            else:
                connection.close()
    for connection in connections.values():
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return connections


def _call(
    rank: int, peer: int, place: tuple[str, int, str], token: str, until: float
) -> socket.socket:
    address, port, host = place
    try:
        connection = socket.create_connection(
            (address, port), timeout=max(0.01, until - time.monotonic())
        )
        connection.sendall(_HELLO.pack(token.encode(), rank))
    except OSError as error:
        raise ConfigError(
            f"comm.mode=asynchronous: rank {rank} cannot reach rank {peer} on {host} at {address}:{port} "
            f"({error.strerror or error}); check that GLOO_SOCKET_IFNAME names the right interface, or set "
            "comm.mode=synchronous"
        ) from error
    return connection


def _read(connection: socket.socket, size: int) -> bytes:
    """Return the next `size` bytes.

    Raises:
        EOFError: the peer closed the connection.
    """
    buffer = bytearray(size)
    view, got = memoryview(buffer), 0
    while got < size:
        count = connection.recv_into(view[got:])
        if not count:
            raise EOFError("it closed the connection")
        got += count
    return bytes(buffer)
