"""Why ranks lost contact: what all of them report, compared. Pure functions.

A rank sees only that a peer does not answer, or that a connection ended. It may have ended because the peer
had lost another rank before. Two ranks that live and lost each other are different: what lies between them
failed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import asdict, dataclass

from cobo_dist.comm.transports.base import HowLost, LostContact

MAX_NAMED_LINKS = 4
_ENDED = "killed, out of memory, or hanging"


@dataclass(frozen=True)
class Loss:
    """How one rank lost contact: with which peers (empty: not known), after how many seconds of waiting.

    `stopped`: for how many seconds its own process had lately been stopped.
    """

    peers: frozenset[int] = frozenset()
    how: HowLost = "closed"
    waited: float = 0.0
    stopped: float = 0.0

    @classmethod
    def of(cls, error: LostContact, stopped: float = 0.0) -> Loss:
        """Return what the error says."""
        return cls(error.peers, error.how, error.waited, stopped)

    def to_line(self) -> str:
        """Return one line of JSON for the rank's error report."""
        return json.dumps(asdict(self) | {"peers": sorted(self.peers)})

    @classmethod
    def of_line(cls, line: str) -> Loss:
        """Return what `to_line` wrote; a loss without peers if it cannot be read."""
        with suppress(ValueError, TypeError, KeyError):
            read = json.loads(line)
            waited, stopped = (float(read[name]) for name in ("waited", "stopped"))
            return cls(frozenset(map(int, read["peers"])), read["how"], waited, stopped)
        return cls()


def describe_loss(losses: Mapping[int, Loss], hosts: Sequence[str], rank: int) -> str:
    """Return what `rank` can say about the cause; empty if the reports do not tell it.

    Args:
        losses: of every rank that has reported, this one included.
        hosts: the host of each rank; empty if not known.
        rank: the rank that will print it.
    """
    if hosts and (stopped := _stopped(losses)):
        names = ", ".join(
            f"rank {one} on {hosts[one]} was itself stopped for {losses[one].stopped:.0f} s"
            for one in stopped
        )
        return (
            f"; {names} (suspended, or by SIGSTOP), and other ranks wait for comm.timeout at most: resume "
            "with run.resume=auto, and raise comm.timeout for longer stops"
        )
    missing = set(range(len(hosts))) - losses.keys()
    if missing:
        # Ranks that this one did not wait for may still be at work.
        seen = _with_whole_hosts(missing & losses[rank].peers or missing, missing, hosts)
        return f", since when nothing was heard of {_describe_missing(seen, missing, hosts)}"
    if not hosts:
        return ""
    what = _describe_links(losses, hosts)
    return f"; all ranks live, but {what}" if what else ""


def _stopped(losses: Mapping[int, Loss]) -> list[int]:
    """Return the ranks that were stopped for most of the time that another one waited in vain."""
    waited = {rank: loss.waited for rank, loss in losses.items() if loss.how != "closed"}
    return [
        rank
        for rank, loss in sorted(losses.items())
        if any(2 * loss.stopped > waited[other] for other in waited.keys() - {rank})
    ]


# -- ranks that reported nothing ---------------------------------------------------------------------


def _silent_hosts(missing: Set[int], hosts: Sequence[str]) -> set[str]:
    """Return the hosts of which no rank has reported, where another host has one that did."""
    return set(hosts) - {host for rank, host in enumerate(hosts) if rank not in missing}


def _with_whole_hosts(seen: Set[int], missing: Set[int], hosts: Sequence[str]) -> list[int]:
    """Add the ranks that share a silent host with one of `seen`."""
    silent = _silent_hosts(missing, hosts) & {hosts[rank] for rank in seen}
    return sorted(seen | {rank for rank in missing if hosts[rank] in silent})


def _describe_missing(seen: Sequence[int], missing: Set[int], hosts: Sequence[str]) -> str:
    names = ", ".join(f"rank {rank} on {hosts[rank]}" for rank in seen)
    silent = _silent_hosts(missing, hosts)
    lost = sorted({hosts[rank] for rank in seen} & silent)
    if not lost:
        return f"{names}: {_ENDED}"
    network = f"{_join(lost)} or the network to {'it' if len(lost) == 1 else 'them'} is down"
    return f"{names}: {_ENDED}, or {network}"


# -- all ranks live ----------------------------------------------------------------------------------


def _describe_links(losses: Mapping[int, Loss], hosts: Sequence[str]) -> str:
    """Return which ranks lost each other, and where to look; empty if no report tells."""
    mutual = [
        (i, j)
        for i, loss in losses.items()
        for j in loss.peers
        if i < j and j in losses and i in losses[j].peers
    ]
    # If only one of them waited in vain, the other one found a connection that the first had closed.
    silent = [(i, j) for i, j in mutual if "closed" not in (losses[i].how, losses[j].how)]
    if silent:
        return _describe_broken(silent, hosts)
    if late := sorted({k for i, j in mutual for k in (*_late(losses, i, j), *_late(losses, j, i))}):
        names = ", ".join(f"rank {rank} on {hosts[rank]}" for rank in late)
        return f"{names} answered only after comm.timeout: look what took so long, or raise it"
    if mutual:
        return _describe_broken(mutual, hosts)
    waited = [
        (i, j)
        for i, loss in losses.items()
        if loss.how != "closed"
        for j in loss.peers
        if j in losses
    ]
    if waited:
        return _describe_broken(sorted({(min(pair), max(pair)) for pair in waited}), hosts)
    if len(set(hosts)) > 1 and any(loss.how != "closed" for loss in losses.values()):
        return f"they lost contact: look at the network between {_join(sorted(set(hosts)))}"
    return ""


def _late(losses: Mapping[int, Loss], waiting: int, late: int) -> list[int]:
    """Return `late`, in a list, if it began to wait long after `waiting` did, and was closed by it."""
    one, other = losses[waiting], losses[late]
    is_late = (one.how, other.how) == ("silent", "closed") and other.waited < one.waited / 2
    return [late] if is_late else []


def _describe_broken(pairs: Sequence[tuple[int, int]], hosts: Sequence[str]) -> str:
    """Name the hosts whose ranks lost each other, or the ranks where they share a host."""
    links = sorted({tuple(sorted((hosts[i], hosts[j]))) for i, j in pairs if hosts[i] != hosts[j]})
    if not links:
        i, j = min(pairs)
        return (
            f"rank {i} and rank {j} on {hosts[i]} lost each other: look what blocks connections within "
            "that host"
        )
    ends = [set(link) for link in links]
    if len(links) == 1:
        return f"those on {_join(links[0])} lost each other: look at the network between them"
    if shared := set.intersection(*ends):
        (host,) = shared
        others = sorted(set().union(*ends) - shared)
        return f"those on {host} and those on {_join(others)} lost each other: look at the network of {host}"
    named = ", ".join(_join(link) for link in links[:MAX_NAMED_LINKS])
    more = (
        f", and {len(links) - MAX_NAMED_LINKS} more pairs" if len(links) > MAX_NAMED_LINKS else ""
    )
    return f"those on these hosts lost each other: {named}{more}: look at the network between them"


def _join(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
