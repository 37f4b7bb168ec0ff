"""The consistency check: whether the ranks' descriptions of themselves fit together. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cobo_dist.comm.startup.interfaces import describe_interfaces, is_loopback


@dataclass(frozen=True)
class ProcessInfo:
    """One process as it describes itself."""

    rank: int
    world_size: int
    launcher: str
    host: str
    pid: int
    token: str  # random: tells this process from every other
    machine: str = ""  # tells hosts with the same name apart
    network: str = (
        ""  # the same for ranks that share a network stack; containers with other names may
    )
    backend: str = "gloo"
    gpu: str = ""  # the GPU's UUID; empty on the CPU
    address: str = ""  # where it listens for other ranks
    interface: str = ""
    interfaces: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""  # why it cannot take part

    def __str__(self) -> str:
        """Return `rank 1 on node7`."""
        return f"rank {self.rank} on {self.host}"

    @property
    def host_key(self) -> tuple[str, str]:
        """What identifies the host."""
        return self.host, self.machine

    @property
    def network_key(self) -> str:
        """What identifies the network stack."""
        return self.network or f"{self.host} {self.machine}"


def numbers_in_words(numbers: Iterable[int]) -> str:
    """Return numbers as text, with runs of three and more shortened.

    >>> numbers_in_words([5, 0, 1, 2, 3])
    '0 to 3, 5'
    """
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(
        f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs
    )


def ranks_by_host(processes: Sequence[ProcessInfo]) -> str:
    """Return `0, 1 on node7; 2, 3 on node8`."""
    hosts: dict[tuple[str, str], list[int]] = {}
    for one in _by_rank(processes):
        hosts.setdefault(one.host_key, []).append(one.rank)
    return "; ".join(f"{numbers_in_words(ranks)} on {host}" for (host, _), ranks in hosts.items())


def find_conflict(processes: Sequence[ProcessInfo]) -> str:
    """Return why these processes, which need not be all, can never form one run; empty if they can.

    One line that names the ranks, their values and the remedy.
    """
    for one in _by_rank(processes):
        if one.problem:
            return f"{one}: {one.problem}"
    checks = (
        _different_world_sizes, _duplicate_ranks, _different_backends, _shared_gpu,
        _loopback_between_hosts, _shared_address,
    )  # fmt: skip
    return next(filter(None, (check(processes) for check in checks)), "")


def describe_missing(processes: Sequence[ProcessInfo], world_size: int, seconds: float) -> str:
    """Return the line that names the ranks that did not arrive within `seconds`."""
    absent = sorted(set(range(world_size)) - {one.rank for one in processes})
    return (
        f"rank(s) {numbers_in_words(absent)} of {world_size} did not come within {seconds:g} s; here are "
        f"{ranks_by_host(processes)}; look for what ended or delays the missing, or raise "
        "comm.connect_timeout"
    )


def host_leaders(processes: Sequence[ProcessInfo]) -> list[ProcessInfo]:
    """Return the first rank of each network stack: the other ranks there can reach the same hosts."""
    first: dict[str, ProcessInfo] = {}
    for one in _by_rank(processes):
        first.setdefault(one.network_key, one)
    return list(first.values())


def describe_unreachable(caller: ProcessInfo, target: ProcessInfo, reason: str) -> str:
    """Return the line about a host that cannot reach another."""
    return (
        f"{caller} cannot reach {target} at {target.address} (interface "
        f"{target.interface or 'unknown'}): {reason}; {_set_interface(target)}, or let the firewall pass "
        "the hosts' ports above 32767"
    )


def describe_unconnected(missing: Sequence[ProcessInfo], target: ProcessInfo) -> str:
    """Return the line about ranks that described themselves, but do not connect to rank 0."""
    return (
        f"{', '.join(map(str, missing))} did not connect to {target} at {target.address}: killed, or "
        f"a firewall is between the hosts; let it pass their ports above 32767, or {_set_interface(target)}"
    )


def _by_rank(processes: Sequence[ProcessInfo]) -> list[ProcessInfo]:
    return sorted(processes, key=lambda one: one.rank)


def _different_world_sizes(processes: Sequence[ProcessInfo]) -> str:
    sizes = list(dict.fromkeys(one.world_size for one in _by_rank(processes)))
    if len(sizes) < 2:
        return ""
    values = "; ".join(
        f"{size} say rank(s) {ranks_by_host([one for one in processes if one.world_size == size])}"
        for size in sizes
    )
    return (
        f"ranks do not agree on how many they are: {values}; start all of them with one command, or "
        "give all the same WORLD_SIZE"
    )


def _duplicate_ranks(processes: Sequence[ProcessInfo]) -> str:
    for rank, count in sorted(Counter(one.rank for one in processes).items()):
        if count > 1:
            who = " and ".join(f"process {p.pid} on {p.host}" for p in processes if p.rank == rank)
            return f"rank {rank} was started {count} times: {who}; give every process a RANK of its own"
    return ""


def _different_backends(processes: Sequence[ProcessInfo]) -> str:
    backends = sorted({one.backend for one in processes})
    if len(backends) < 2:
        return ""
    values = "; ".join(
        f"{name} for {ranks_by_host([one for one in processes if one.backend == name])}"
        for name in backends
    )
    return (
        f"ranks would use different backends: {values}; not all hosts have a GPU for each of "
        "their ranks: set run.device=cpu, or give all of them GPUs"
    )


def _shared_gpu(processes: Sequence[ProcessInfo]) -> str:
    owners: dict[tuple[tuple[str, str], str], ProcessInfo] = {}
    for one in _by_rank(processes):
        if one.gpu and (other := owners.setdefault((one.host_key, one.gpu), one)) is not one:
            return (
                f"ranks {other.rank} and {one.rank} share one GPU of {one.host} ({one.gpu}), which "
                "NCCL refuses; start one rank a GPU, with LOCAL_RANK counting them, or set "
                "run.device=cpu"
            )
    return ""


def _loopback_between_hosts(processes: Sequence[ProcessInfo]) -> str:
    if len({one.network_key for one in processes}) < 2:
        return ""
    for one in _by_rank(processes):
        if is_loopback(one.address):
            return (
                f"{one} would listen at {one.address}, which other hosts cannot reach (its host name "
                f"means this address there); {_set_interface(one)}"
            )
    return ""


def _shared_address(processes: Sequence[ProcessInfo]) -> str:
    owners: dict[str, ProcessInfo] = {}
    for one in _by_rank(processes):
        other = owners.setdefault(one.address, one) if one.address else one
        if other.network_key != one.network_key:
            return (
                f"{other} and {one} would both listen at {one.address} (interface "
                f"{one.interface or 'unknown'}), which cannot lead from one to the other; "
                f"{_set_interface(one)}"
            )
    return ""


def _set_interface(one: ProcessInfo) -> str:
    return (
        "set GLOO_SOCKET_IFNAME to the interface that joins the hosts "
        f"({one.host} has {describe_interfaces(one.interfaces)})"
    )
