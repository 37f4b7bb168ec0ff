"""What ranks tell of themselves before they connect, and why they may not go together: pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cobo_dist.comm.startup.interfaces import in_words, is_loopback


@dataclass(frozen=True)
class ProcessInfo:
    """One process as it sees itself."""

    rank: int
    world_size: int
    launcher: str
    host: str
    pid: int
    token: str  # drawn at random: tells this process from every other
    machine: str = ""  # tells hosts of one name apart
    network: str = (
        ""  # the same where ranks share one network stack: containers may, under other names
    )
    backend: str = "gloo"
    gpu: str = ""  # the GPU's own identity; empty on the CPU
    address: str = ""  # where it listens for other ranks
    interface: str = ""
    interfaces: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""  # why it cannot take part

    def __str__(self) -> str:
        """Return `rank 1 on node7`."""
        return f"rank {self.rank} on {self.host}"

    @property
    def place(self) -> tuple[str, str]:
        """The host it runs on."""
        return self.host, self.machine

    @property
    def stack(self) -> str:
        """The network stack it uses."""
        return self.network or f"{self.host} {self.machine}"


def numbers_in_words(numbers: Iterable[int]) -> str:
    """Return `0 to 3, 5` for 0, 1, 2, 3, 5."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(
        f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs
    )


def hosts_of(views: Sequence[ProcessInfo]) -> dict[tuple[str, str], list[ProcessInfo]]:
    """Return the views of each host, in the order of ranks."""
    hosts: dict[tuple[str, str], list[ProcessInfo]] = {}
    for view in sorted(views, key=lambda view: view.rank):
        hosts.setdefault(view.place, []).append(view)
    return hosts


def ranks_in_words(views: Sequence[ProcessInfo]) -> str:
    """Return `0, 1 on node7; 2, 3 on node8`."""
    return "; ".join(
        f"{numbers_in_words(view.rank for view in there)} on {host}"
        for (host, _), there in hosts_of(views).items()
    )


def disagreement(views: Sequence[ProcessInfo]) -> str:
    """Return why these ranks, which need not be all, can never go together; empty if they can.

    One line: who, with which values, and the remedy.
    """
    for view in sorted(views, key=lambda view: view.rank):
        if view.problem:
            return f"{view}: {view.problem}"
    checks = (_other_size, _twice, _other_backend, _one_gpu, _loopback_across, _one_address)
    return next(filter(None, (check(views) for check in checks)), "")


def missing(views: Sequence[ProcessInfo], world_size: int, seconds: float) -> str:
    """Return the line that names who did not come within `seconds`."""
    absent = sorted(set(range(world_size)) - {view.rank for view in views})
    return (
        f"rank(s) {numbers_in_words(absent)} of {world_size} did not come within {seconds:g} s; here are "
        f"{ranks_in_words(views)}; look for what ended or delays the missing, or raise "
        "comm.connect_timeout"
    )


def _other_size(views: Sequence[ProcessInfo]) -> str:
    sizes = Counter(view.world_size for view in views)
    if len(sizes) < 2:
        return ""
    opinions = "; ".join(
        f"{size} say rank(s) {ranks_in_words([v for v in views if v.world_size == size])}"
        for size in sorted(
            sizes, key=lambda size: min(v.rank for v in views if v.world_size == size)
        )
    )
    return (
        f"ranks do not agree on how many they are: {opinions}; start all of them with one command, or "
        "give all the same WORLD_SIZE"
    )


def _twice(views: Sequence[ProcessInfo]) -> str:
    for rank, count in sorted(Counter(view.rank for view in views).items()):
        if count > 1:
            who = " and ".join(f"process {v.pid} on {v.host}" for v in views if v.rank == rank)
            return f"rank {rank} was started {count} times: {who}; give every process a RANK of its own"
    return ""


def _other_backend(views: Sequence[ProcessInfo]) -> str:
    if len({view.backend for view in views}) < 2:
        return ""
    opinions = "; ".join(
        f"{name} for {ranks_in_words([view for view in views if view.backend == name])}"
        for name in sorted({view.backend for view in views})
    )
    return (
        f"ranks would talk by different backends: {opinions}; not all hosts have a GPU for each of "
        "their ranks: set run.device=cpu, or give all of them GPUs"
    )


def _one_gpu(views: Sequence[ProcessInfo]) -> str:
    held: dict[tuple[tuple[str, str], str], ProcessInfo] = {}
    for view in sorted(views, key=lambda view: view.rank):
        if view.gpu:
            other = held.setdefault((view.place, view.gpu), view)
            if other is not view:
                return (
                    f"ranks {other.rank} and {view.rank} share one GPU of {view.host} ({view.gpu}), which "
                    "NCCL refuses; start one rank a GPU, with LOCAL_RANK counting them, or set "
                    "run.device=cpu"
                )
    return ""


def _loopback_across(views: Sequence[ProcessInfo]) -> str:
    if len({view.stack for view in views}) < 2:
        return ""
    for view in sorted(views, key=lambda view: view.rank):
        if is_loopback(view.address):
            return (
                f"{view} would listen at {view.address}, which other hosts cannot reach (its host name "
                f"means this address there); {_set_interface(view)}"
            )
    return ""


def _one_address(views: Sequence[ProcessInfo]) -> str:
    owners: dict[str, ProcessInfo] = {}
    for view in sorted(views, key=lambda view: view.rank):
        other = owners.setdefault(view.address, view) if view.address else view
        if other.stack != view.stack:
            return (
                f"{other} and {view} would both listen at {view.address} (interface "
                f"{view.interface or 'unknown'}), which cannot lead from one to the other; "
                f"{_set_interface(view)}"
            )
    return ""


def _set_interface(view: ProcessInfo) -> str:
    return (
        "set GLOO_SOCKET_IFNAME to the interface that joins the hosts "
        f"({view.host} has {in_words(view.interfaces)})"
    )


def leaders(views: Sequence[ProcessInfo]) -> list[ProcessInfo]:
    """Return the first rank of each network stack: what one of them can reach, its neighbours can."""
    first: dict[str, ProcessInfo] = {}
    for view in sorted(views, key=lambda view: view.rank):
        first.setdefault(view.stack, view)
    return list(first.values())


def unreachable(seeker: ProcessInfo, sought: ProcessInfo, reason: str) -> str:
    """Return the line on one host that cannot reach another."""
    return (
        f"{seeker} cannot reach {sought} at {sought.address} (interface "
        f"{sought.interface or 'unknown'}): {reason}; {_set_interface(sought)}, or let the firewall pass "
        "the hosts' ports above 32767"
    )
