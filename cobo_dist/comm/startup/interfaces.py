"""This host's network interfaces, and the address at which gloo will listen."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

import psutil


def interfaces() -> dict[str, str]:
    """Return the interfaces of this host that have an address: {name: address}, IPv4 where there is one."""
    found: dict[str, str] = {}
    known = psutil.net_if_addrs()
    for family in (socket.AF_INET, socket.AF_INET6):
        for name, addresses in known.items():
            for one in addresses:
                if one.family == family:
                    found.setdefault(name, one.address.partition("%")[0])  # fe80::1%eth0
    return found


def describe_interfaces(known: Mapping[str, str]) -> str:
    """Return `eth0 10.0.0.2, lo 127.0.0.1`, without those that have a link-local address alone."""
    rows = [f"{name} {one}" for name, one in sorted(known.items()) if not one.startswith("fe80:")]
    return ", ".join(rows) or "none"


def is_loopback(address: str) -> bool:
    """Return whether a name or address means the host itself, on every host."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Endpoint:
    """Where this rank will listen for other ranks, or why it cannot."""

    address: str
    interface: str  # "" if none has this address
    chosen_by: str  # the variable that names it, or "the host name"
    known: Mapping[str, str]  # all interfaces
    problem: str = ""


def gloo_endpoint(env: Mapping[str, str]) -> Endpoint:
    """Return what gloo will choose: GLOO_SOCKET_IFNAME, else the host name's address, else loopback."""
    known = interfaces()
    if named := env.get("GLOO_SOCKET_IFNAME", ""):
        names = named.split(",")
        if unknown := [name for name in names if name not in known]:
            problem = _no_such_interface(named, unknown[0], known)
            return Endpoint("", names[0], "GLOO_SOCKET_IFNAME", known, problem)
        return Endpoint(known[names[0]], names[0], "GLOO_SOCKET_IFNAME", known)
    address = _usable_address(socket.gethostname()) or "127.0.0.1"
    return Endpoint(address, interface_of(address, known), "the host name", known)


def nccl_problem(env: Mapping[str, str]) -> str:
    """Return why NCCL_SOCKET_IFNAME selects no interface of this host; empty if it does or is not set."""
    wanted = env.get("NCCL_SOCKET_IFNAME", "")
    if not wanted:
        return ""
    known = interfaces()
    excludes, exact = wanted.startswith("^"), wanted.lstrip("^").startswith("=")
    names = [name for name in wanted.lstrip("^=").split(",") if name]

    def is_named(interface: str) -> bool:
        return any(interface == name if exact else interface.startswith(name) for name in names)

    if any(is_named(interface) != excludes for interface in known):
        return ""
    return (
        f"NCCL_SOCKET_IFNAME={wanted} leaves none of this host's interfaces "
        f"({describe_interfaces(known)}); name one of them there, or unset it"
    )


def _no_such_interface(named: str, name: str, known: Mapping[str, str]) -> str:
    exists = name in psutil.net_if_stats()
    what = "an interface without an address" if exists else "no interface of this host"
    return (
        f"GLOO_SOCKET_IFNAME={named} names {what}, which has {describe_interfaces(known)}; "
        "name one of them there, or unset it"
    )


def _usable_address(host: str) -> str:
    """Return the first address of the host name that this host can listen at; empty if there is none.

    gloo tries them in this way, and psutil does not resolve names.
    """
    try:
        answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return ""
    for family, kind, protocol, _, place in answers:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind((place[0], 0, *place[2:]))
        except OSError:
            continue
        return str(place[0])
    return ""


def interface_of(address: str, known: Mapping[str, str]) -> str:
    """Return the interface that has the address; loopback has many (127.0.1.1)."""
    for name, other in known.items():
        if other == address or (is_loopback(other) and is_loopback(address)):
            return name
    return ""


def boot_id() -> str:
    """Return what tells two running machines with the same host name apart; empty if unknown.

    By hand, since psutil.boot_time() counts in seconds and moves with the clock.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def network_namespace() -> str:
    """Return what is the same for processes that share one network stack; empty if unknown."""
    try:
        return f"{boot_id()} {os.readlink('/proc/self/ns/net')}" if boot_id() else ""
    except OSError:
        return ""
