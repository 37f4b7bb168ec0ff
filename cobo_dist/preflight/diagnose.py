"""What the doctor makes of the facts that ranks told: fine, a warning, or wrong with the remedy. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from cobo_dist.comm.startup.consistency import numbers_in_words
from cobo_dist.comm.startup.link_benchmark import MODEL_BYTES, Link
from cobo_dist.formatting import human_bytes

FINE, WARNING, WRONG = "fine", "warning", "wrong"

SKEW = 1.0
"""Seconds between clocks that make logs of several hosts hard to read."""
SLOW_TRIP, SLOW_LINK = 0.02, 100e6
"""Seconds of a round trip, and bytes a second, that make a round of models wait for the network."""
APART = 4.0
"""How many times slower than the median link one is worth a look."""


@dataclass(frozen=True)
class RankInfo:
    """What one rank knows of itself."""

    rank: int
    host: str
    device: str
    gpu: str  # its identity
    gpus: int  # that this host has
    cores: tuple[int, ...]  # that this rank may use
    quota: float  # cores that the host's control group grants; 0: no limit
    threads: int
    versions: Mapping[str, str]
    address: str
    interface: str
    folder: str  # the nearest folder of run.dir that exists here
    unwritable: str  # why nothing can be written there
    free: int  # bytes
    needed: int  # bytes that the run will write at most, about, all ranks; 0: unknown
    sees_marker: bool  # the file that rank 0 left beside the run folder
    data: str  # why the data are not good here
    fingerprint: str
    refusals: tuple[str, ...] = ()  # what else stands in a run's way here


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    level: str
    topic: str
    text: str
    remedy: str = ""
    more: tuple[str, ...] = field(default=())


def who(some: Sequence[RankInfo]) -> str:
    """Return `rank(s) 0 to 3 on a; 4 on b`."""
    hosts = by_host(some)
    return "rank(s) " + "; ".join(
        f"{numbers_in_words(one.rank for one in there)} on {host}" for host, there in hosts.items()
    )


def by_host(facts: Sequence[RankInfo]) -> dict[str, list[RankInfo]]:
    """Return each host's ranks."""
    hosts: dict[str, list[RankInfo]] = {}
    for one in facts:
        hosts.setdefault(one.host, []).append(one)
    return hosts


def judge(
    facts: Sequence[RankInfo], links: Sequence[Link], words: str, run_dir: str
) -> list[Finding]:
    """Return all findings; `words` says which links were measured."""
    checks: tuple[Callable[[Sequence[RankInfo]], list[Finding]], ...] = (
        refusals, versions, devices, network, threads, data,
    )  # fmt: skip
    found = [finding for check in checks for finding in check(facts)]
    return [*found, *folder(facts, run_dir), *clocks(facts, links), *speeds(facts, links, words)]


def refusals(facts: Sequence[RankInfo]) -> list[Finding]:
    """What a run would refuse with, word for word, each once."""
    said: dict[str, list[RankInfo]] = {}
    for one in facts:
        for refusal in one.refusals:
            said.setdefault(refusal, []).append(one)
    return [Finding(WRONG, "settings", f"{who(some)}: {text}") for text, some in said.items()]


def versions(facts: Sequence[RankInfo]) -> list[Finding]:
    """The same libraries everywhere: other versions of torch need not even talk."""
    found = []
    for library in sorted({name for one in facts for name in one.versions}):
        held: dict[str, list[RankInfo]] = {}
        for one in facts:
            held.setdefault(one.versions.get(library, "none"), []).append(one)
        if len(held) > 1:
            opinions = ", ".join(f"{version} for {who(some)}" for version, some in held.items())
            level = WRONG if library in ("cobo_dist", "torch") else WARNING
            remedy = (
                "install the same version on all hosts, or use one environment on a shared disk"
            )
            found.append(Finding(level, "versions", f"{library} is {opinions}", remedy))
    if not found:
        same = facts[0].versions
        names = ("cobo_dist", "torch", "numpy", "python")
        text = ", ".join(f"{name} {same[name]}" for name in names if name in same)
        found.append(Finding(FINE, "versions", f"{text} on all ranks"))
    return found


def devices(facts: Sequence[RankInfo]) -> list[Finding]:
    """One GPU a rank, and none left idle by mistake."""
    found = []
    held: dict[tuple[str, str], list[RankInfo]] = {}
    for one in facts:
        if one.gpu:
            held.setdefault((one.host, one.gpu), []).append(one)
    for some in held.values():
        if len(some) > 1:
            remedy = "start one rank a GPU, or set run.device=cpu"
            found.append(Finding(WRONG, "devices", f"{who(some)} share one GPU", remedy))
    idle = [one for one in facts if one.gpus and one.device == "cpu"]
    if idle:
        text = f"{who(idle)} compute on the CPU where the host has {idle[0].gpus} GPU(s)"
        remedy = "start at most one rank a GPU, and leave run.device at auto or set it to cuda"
        found.append(Finding(WARNING, "devices", text, remedy))
    kinds = sorted({one.device.partition(":")[0] for one in facts})
    return found or [Finding(FINE, "devices", f"{' and '.join(kinds)} for {who(facts)}")]


def network(facts: Sequence[RankInfo]) -> list[Finding]:
    """Where ranks listen."""
    places = {
        f"{one.host} at {one.address} ({one.interface or 'no interface'})": 0 for one in facts
    }
    return [Finding(FINE, "network", "ranks listen on " + ", ".join(places))]


def threads(facts: Sequence[RankInfo]) -> list[Finding]:
    """No more threads on a host than cores."""
    found = []
    for host, there in by_host(facts).items():
        cores = float(len({core for one in there for core in one.cores}))
        limit = min([cores, *(one.quota for one in there if one.quota)])
        total = sum(one.threads for one in there)
        text = f"{host}: {len(there)} rank(s) with {total} thread(s) in all on {limit:g} core(s)"
        if total > limit:
            each = max(1, int(limit) // len(there))
            remedy = f"set run.threads={each}"
            if len(there) > limit:
                remedy = f"start at most {max(1, int(limit))} rank(s) on this host"
            found.append(Finding(WARNING, "threads", f"{text}: they take turns", remedy))
        else:
            found.append(Finding(FINE, "threads", text))
    return found


def data(facts: Sequence[RankInfo]) -> list[Finding]:
    """The same good data on all ranks."""
    bad = [one for one in facts if one.data]
    if bad:
        hosts = ", ".join(by_host(bad))
        remedy = f"python -m cobo_dist.prepare with the same arguments, where {hosts} can read the result"
        return [Finding(WRONG, "data", f"{who([bad[0]])}: {bad[0].data}", remedy)]
    others = [one for one in facts if one.fingerprint != facts[0].fingerprint]
    if others:
        text = f"{who(others)} read other data than rank 0 on {facts[0].host}"
        return [
            Finding(WRONG, "data", text, "copy the data of one host to all, or share the folder")
        ]
    return [Finding(FINE, "data", "there, whole and the same on all ranks")]


def folder(facts: Sequence[RankInfo], run_dir: str) -> list[Finding]:
    """Every host writes its clients' models and checkpoints; a run on other hosts reads them."""
    found = []
    for host, there in by_host(facts).items():
        if bad := next((one for one in there if one.unwritable), None):
            text = f"{host} cannot write in {bad.folder}: {bad.unwritable}"
            found.append(
                Finding(WRONG, "run folder", text, "set run.dir to a folder all hosts can write in")
            )
            continue
        one = there[0]
        text = f"{host} can write in {one.folder}, {human_bytes(one.free)} free"
        if one.needed:
            text += f" of which the run needs about {human_bytes(one.needed)}"
        if one.free < max(one.needed, 100_000_000):
            remedy = "make room, set run.dir elsewhere, or lower run.keep_checkpoints"
            found.append(Finding(WARNING, "run folder", text, remedy))
        else:
            found.append(Finding(FINE, "run folder", text))
    apart = [one for one in facts if not one.sees_marker and not one.unwritable]
    if apart and not any(one.unwritable for one in facts):
        text = (
            f"{', '.join(by_host(apart))} do not see what {facts[0].host} writes in {run_dir}: every "
            "host will keep its own clients' models and checkpoints"
        )
        remedy = "set run.dir to a disk that all hosts share; without one, a run cannot be resumed"
        found.append(Finding(WARNING, "shared disk", text, remedy))
    elif len(by_host(facts)) > 1 and not apart:
        found.append(Finding(FINE, "shared disk", "all hosts see the same run folder"))
    return found


def clocks(facts: Sequence[RankInfo], links: Sequence[Link]) -> list[Finding]:
    """Clocks of hosts, by the round trips of rank 0."""
    if len(by_host(facts)) < 2:
        return []
    skews = {facts[k.second].host: k.skew for k in links if k.first == 0}
    skews.pop(facts[0].host, None)
    host = max(skews, key=lambda host: abs(skews[host]))
    text = f"the clock of {host} is {1000 * skews[host]:+.1f} ms off that of {facts[0].host}"
    if len(skews) > 1:
        text += ", others less"
    if abs(skews[host]) > SKEW:
        return [
            Finding(WARNING, "clocks", text, "let the hosts follow one time server (chrony, ntpd)")
        ]
    return [Finding(FINE, "clocks", text)]


def speeds(facts: Sequence[RankInfo], links: Sequence[Link], words: str) -> list[Finding]:
    """Links: slow ones in absolute terms, and those far slower than the others of their kind."""
    if not links:
        return []
    lines = tuple(_in_words(facts, link) for link in links)
    worst = sorted(links, key=lambda link: link.throughput)
    if len(links) > 28:
        lines = ("the slowest:", *(_in_words(facts, link) for link in worst[:5]))
    text = (
        f"{len(links)} measured ({words}): round trip {_span([1000 * k.round_trip for k in links])} ms, "
        f"{MODEL_BYTES / 1e6:g} MB both ways at {_span([k.throughput / 1e6 for k in links])} MB/s each way"
    )
    found = []
    for within in (True, False):
        kind = [k for k in links if (facts[k.first].host == facts[k.second].host) is within]
        middle = median(k.throughput for k in kind) if kind else 0.0
        slow = [k for k in kind if k.throughput < max(middle / APART, 0.0 if within else SLOW_LINK)]
        late = [k for k in kind if k.round_trip > SLOW_TRIP and k not in slow]
        for some, why in ((slow, "slow"), (late, "late to answer")):
            if some:
                pairs = ", ".join(f"{k.first}-{k.second}" for k in some[:6])
                more = f" and {len(some) - 6} more" if len(some) > 6 else ""
                where = "on one host" if within else "between hosts"
                remedy = (
                    "look for other work on this host, or fewer cores than ranks"
                    if within
                    else "set GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME) to the fastest network they share"
                )
                found.append(
                    Finding(WARNING, "links", f"links {where} are {why}: {pairs}{more}", remedy)
                )
    return [Finding(FINE, "links", text, more=lines), *found]


def _in_words(facts: Sequence[RankInfo], link: Link) -> str:
    hosts = facts[link.first].host, facts[link.second].host
    where = "one host" if hosts[0] == hosts[1] else " to ".join(hosts)
    return (
        f"{link.first}-{link.second} ({where}): {1000 * link.round_trip:.2f} ms, "
        f"{link.throughput / 1e6:.0f} MB/s"
    )


def _span(values: Sequence[float]) -> str:
    least, most = (f"{value:.3g}" for value in (min(values), max(values)))
    return least if least == most else f"{least} to {most}"
