"""This host's network interfaces, and the address at which gloo will listen."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass

_GET_ADDRESS = 0x8915  # SIOCGIFADDR of Linux


def interfaces() -> dict[str, str]:
    """Return the interfaces of this host that have an address: {name: address}, IPv4 where there is one."""
    found: dict[str, str] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _GET_ADDRESS, struct.pack("256s", name.encode()[:15]))
            except OSError:  # no IPv4 address, or taken away just now
                continue
            found[name] = socket.inet_ntoa(answer[20:24])
    for name, address in _with_ipv6():
        found.setdefault(name, address)
    return found


def _with_ipv6() -> list[tuple[str, str]]:
    try:
        with open("/proc/net/if_inet6", encoding="ascii") as file:
            rows = [line.split() for line in file]
    except OSError:
        return []
    return [(row[5], str(ipaddress.IPv6Address(bytes.fromhex(row[0])))) for row in rows]


def in_words(known: Mapping[str, str]) -> str:
    """Return `eth0 10.0.0.2, lo 127.0.0.1`, without those that lead nowhere (link-local IPv6 alone)."""
    rows = [f"{name} {one}" for name, one in sorted(known.items()) if not one.startswith("fe80:")]
    return ", ".join(rows) or "none"


def is_loopback(address: str) -> bool:
    """Return whether a name or address means the host that asks, whichever it is."""
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
    """Return what gloo will choose: GLOO_SOCKET_IFNAME, else what the host name means, else loopback."""
    known = interfaces()
    if named := env.get("GLOO_SOCKET_IFNAME", ""):
        name = named.split(",")[0]
        if wrong := [one for one in named.split(",") if one not in known]:
            return Endpoint(
                "", name, "GLOO_SOCKET_IFNAME", known, _none_such(named, wrong[0], known)
            )
        return Endpoint(known[name], name, "GLOO_SOCKET_IFNAME", known)
    address = _usable_address(socket.gethostname()) or "127.0.0.1"
    return Endpoint(address, interface_of(address, known), "the host name", known)


def nccl_problem(env: Mapping[str, str]) -> str:
    """Return why NCCL_SOCKET_IFNAME serves no interface of this host; empty if it does or is not set."""
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
        f"NCCL_SOCKET_IFNAME={wanted} leaves none of this host's interfaces ({in_words(known)}); "
        "name one of them there, or unset it"
    )


def _none_such(named: str, name: str, known: Mapping[str, str]) -> str:
    exists = name in (one for _, one in socket.if_nameindex())
    what = "an interface without an address" if exists else "no interface of this host"
    return (
        f"GLOO_SOCKET_IFNAME={named} names {what}, which has {in_words(known)}; "
        "name one of them there, or unset it"
    )


def _usable_address(host: str) -> str:
    """Return the first address of the host name that this host can listen at; empty if there is none."""
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
    """Return the interface that has the address; loopback's has many (127.0.1.1)."""
    for name, held in known.items():
        if held == address or (is_loopback(held) and is_loopback(address)):
            return name
    return ""


def machine() -> str:
    """Return what tells two running machines of one name apart."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def network_stack() -> str:
    """Return what is the same for processes that share one network stack; empty if it cannot be told."""
    try:
        return f"{machine()} {os.readlink('/proc/self/ns/net')}" if machine() else ""
    except OSError:
        return ""
