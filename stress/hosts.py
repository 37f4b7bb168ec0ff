"""Hosts on one machine: network namespaces on one switch, whose links can be cut. They need root on Linux.

A host is a network namespace with one interface, `eth0`. A rank enters the namespace of its host before it
starts, and a UTS namespace of its own that gives it the name of the host. The switch is a bridge in one more
namespace, so nothing of this machine's network is changed.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from .ranks import Fault

_CLONE_NEWUTS, _CLONE_NEWNET = 0x04000000, 0x40000000
_NOBODY = "02:00:00:00:ff:ff"  # the MAC address of no interface


@dataclass(frozen=True)
class Host:
    """One host: its name, its network namespace and its address on the switch."""

    name: str
    namespace: str
    address: str

    def cut(self) -> None:
        """Cut its link for good: nothing arrives any more, and no connection is reset."""
        _ip("-n", self.namespace, "link", "set", "eth0", "down")

    def mute(self, others: Sequence[Host]) -> None:
        """Lose all that it sends to these hosts, while it still receives what they send.

        Its packets go to a MAC address that no interface has. Unlike netem, this needs no kernel module.
        """
        for other in others:
            _ip(
                "-n", self.namespace, "neigh", "replace", other.address, "lladdr", _NOBODY,
                "dev", "eth0", "nud", "permanent",
            )  # fmt: skip


def why_no_hosts() -> str:
    """Return why this machine cannot have hosts; empty if it can."""
    try:
        with hosts(1):
            pass
        if ctypes.CDLL(None, use_errno=True).unshare(0):
            return "no unshare"
    except (OSError, RuntimeError, AttributeError) as error:
        return f"network namespaces need root and iproute2: {error}"
    return ""


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """Yield hosts node-1, node-2 ... on one switch; remove them in the end.

    Raises:
        OSError: there is no program `ip`.
        RuntimeError: the kernel or the rights of this process lack something, in the words of `ip`.
    """
    switch = f"cobo-{os.getpid()}-switch"
    made = [
        Host(f"node-{k}", f"cobo-{os.getpid()}-{k}", f"10.231.0.{k}") for k in range(1, count + 1)
    ]
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for k, host in enumerate(made):
            own, port = ("-n", host.namespace), f"port{k}"
            _ip("netns", "add", host.namespace)
            _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0",
                "netns", host.namespace)  # fmt: skip
            _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
            _ip(*own, "address", "add", f"{host.address}/24", "dev", "eth0")
            _ip(*own, "link", "set", "lo", "up")
            _ip(*own, "link", "set", "eth0", "up")
        yield made
    finally:
        for name in (switch, *(host.namespace for host in made)):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def enter_host(by_rank: Sequence[Host], then: Fault | None = None) -> None:
    """Move this rank to its host, and inject a fault there."""
    host = by_rank[int(os.environ["RANK"])]
    library = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{host.namespace}", "rb") as namespace:
        failed = library.setns(namespace.fileno(), _CLONE_NEWNET) or library.unshare(_CLONE_NEWUTS)
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    socket.sethostname(host.name)
    if then is not None:
        function, given = then
        function(*given)
