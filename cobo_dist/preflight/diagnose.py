"""The doctor's diagnosis of what all ranks report: fine, a warning, or wrong with the remedy. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TypeVar

from cobo_dist.comm.startup.consistency import numbers_in_words
from cobo_dist.comm.startup.link_benchmark import MODEL_BYTES, Link
from cobo_dist.formatting import human_bytes

FINE, WARNING, WRONG = "fine", "warning", "wrong"

MAX_CLOCK_SKEW_SECONDS = 1.0
"""Beyond this, logs of several hosts are hard to read side by side."""
MAX_ROUND_TRIP_SECONDS, MIN_LINK_BYTES_PER_SECOND = 0.02, 100e6
"""Beyond these limits a round waits for the network."""
MAX_SLOWDOWN = 4.0
"""A link this many times slower than the median of its kind is reported."""
MIN_FREE_BYTES = 100_000_000
"""Free disk space below which the doctor warns, however little the run needs."""
MAX_LISTED_LINKS, SLOWEST_LINKS, MAX_NAMED_LINKS = 28, 5, 6
"""Links listed one by one; beyond that, how many of the slowest are listed; links named in a warning."""

Key = TypeVar("Key")


@dataclass(frozen=True)
class RankInfo:
    """What one rank knows of itself and of its host."""

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
    refusals: tuple[str, ...] = ()  # other reasons why a run would be refused here
    card: Mapping[str, float | str] = field(default_factory=dict)  # its GPU (`gpu_status.facts`)


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    level: str
    topic: str
    text: str
    remedy: str = ""
    more: tuple[str, ...] = ()


def diagnose(
    ranks: Sequence[RankInfo], links: Sequence[Link], measured: str, run_dir: str
) -> list[Finding]:
    """Return all findings; `measured` says which links were measured."""
    checks: tuple[Callable[[Sequence[RankInfo]], list[Finding]], ...] = (
        refusals, versions, devices, network, threads, data,
    )  # fmt: skip
    found = [finding for check in checks for finding in check(ranks)]
    return [*found, *folder(ranks, run_dir), *clocks(ranks, links), *speeds(ranks, links, measured)]


def grouped(ranks: Sequence[RankInfo], key: Callable[[RankInfo], Key]) -> dict[Key, list[RankInfo]]:
    """Return the ranks by a key, in order of first appearance."""
    groups: dict[Key, list[RankInfo]] = {}
    for one in ranks:
        groups.setdefault(key(one), []).append(one)
    return groups


def by_host(ranks: Sequence[RankInfo]) -> dict[str, list[RankInfo]]:
    """Return each host's ranks."""
    return grouped(ranks, lambda one: one.host)


def name_ranks(ranks: Sequence[RankInfo]) -> str:
    """Return `rank(s) 0 to 3 on a; 4 on b`."""
    return "rank(s) " + "; ".join(
        f"{numbers_in_words(one.rank for one in there)} on {host}"
        for host, there in by_host(ranks).items()
    )


def refusals(ranks: Sequence[RankInfo]) -> list[Finding]:
    """What a run would refuse with, word for word, each once."""
    texts = dict.fromkeys(text for one in ranks for text in one.refusals)
    return [
        Finding(
            WRONG, "settings", f"{name_ranks([k for k in ranks if text in k.refusals])}: {text}"
        )
        for text in texts
    ]


def versions(ranks: Sequence[RankInfo]) -> list[Finding]:
    """All ranks need the same libraries: ranks with other versions of torch may not even connect."""
    found = []
    remedy = "install the same version on all hosts, or use one environment on a shared disk"
    for library in sorted({name for one in ranks for name in one.versions}):
        groups = grouped(ranks, lambda one: one.versions.get(library, "none"))  # noqa: B023  # used at once
        if len(groups) > 1:
            text = ", ".join(
                f"{version} for {name_ranks(some)}" for version, some in groups.items()
            )
            level = WRONG if library in ("cobo_dist", "torch") else WARNING
            found.append(Finding(level, "versions", f"{library} is {text}", remedy))
    if not found:
        same = ranks[0].versions
        names = ("cobo_dist", "torch", "numpy", "python")
        text = ", ".join(f"{name} {same[name]}" for name in names if name in same)
        found.append(Finding(FINE, "versions", f"{text} on all ranks"))
    return found


def devices(ranks: Sequence[RankInfo]) -> list[Finding]:
    """A GPU for each rank is best, and no GPU should be idle by mistake."""
    found = []
    for (_, gpu), some in grouped(ranks, lambda one: (one.host, one.gpu)).items():
        if gpu and len(some) > 1:
            # With NCCL they would not have connected.
            remedy = "one rank a GPU is faster: their messages are copied through memory of the CPU"
            text = f"{name_ranks(some)} share one GPU"
            found.append(Finding(WARNING, "devices", text, remedy))
    idle = [one for one in ranks if one.gpus and one.device == "cpu"]
    if idle:
        text = f"{name_ranks(idle)} compute on the CPU where the host has {idle[0].gpus} GPU(s)"
        remedy = "start at most one rank a GPU, and leave run.device at auto or set it to cuda"
        found.append(Finding(WARNING, "devices", text, remedy))
    kinds = sorted({one.device.partition(":")[0] for one in ranks})
    return found or [Finding(FINE, "devices", f"{' and '.join(kinds)} for {name_ranks(ranks)}")]


def network(ranks: Sequence[RankInfo]) -> list[Finding]:
    """Where ranks listen."""
    places = dict.fromkeys(
        f"{one.host} at {one.address} ({one.interface or 'no interface'})" for one in ranks
    )
    return [Finding(FINE, "network", "ranks listen on " + ", ".join(places))]


def threads(ranks: Sequence[RankInfo]) -> list[Finding]:
    """The ranks of a host should not have more threads than cores."""
    found = []
    for host, there in by_host(ranks).items():
        cores = float(len({core for one in there for core in one.cores}))
        limit = min([cores, *(one.quota for one in there if one.quota)])
        total = sum(one.threads for one in there)
        text = f"{host}: {len(there)} rank(s) with {total} thread(s) in all on {limit:g} core(s)"
        if total <= limit:
            found.append(Finding(FINE, "threads", text))
            continue
        if len(there) > limit:
            remedy = f"start at most {max(1, int(limit))} rank(s) on this host"
        else:
            remedy = f"set run.threads={int(limit) // len(there)}"
        found.append(Finding(WARNING, "threads", f"{text}: they take turns", remedy))
    return found


def data(ranks: Sequence[RankInfo]) -> list[Finding]:
    """All ranks need the same good data."""
    bad = [one for one in ranks if one.data]
    if bad:
        hosts = ", ".join(by_host(bad))
        remedy = f"python -m cobo_dist.prepare with the same arguments, where {hosts} can read the result"
        return [Finding(WRONG, "data", f"{name_ranks([bad[0]])}: {bad[0].data}", remedy)]
    others = [one for one in ranks if one.fingerprint != ranks[0].fingerprint]
    if others:
        text = f"{name_ranks(others)} read other data than rank 0 on {ranks[0].host}"
        remedy = "copy the data of one host to all, or share the folder"
        return [Finding(WRONG, "data", text, remedy)]
    return [Finding(FINE, "data", "there, whole and the same on all ranks")]


def folder(ranks: Sequence[RankInfo], run_dir: str) -> list[Finding]:
    """Every host writes its clients' models and checkpoints; a run on other hosts reads them."""
    found = []
    for host, there in by_host(ranks).items():
        if bad := next((one for one in there if one.unwritable), None):
            text = f"{host} cannot write in {bad.folder}: {bad.unwritable}"
            remedy = "set run.dir to a folder all hosts can write in"
            found.append(Finding(WRONG, "run folder", text, remedy))
            continue
        one = there[0]
        text = f"{host} can write in {one.folder}, {human_bytes(one.free)} free"
        if one.needed:
            text += f" of which the run needs about {human_bytes(one.needed)}"
        if one.free < max(one.needed, MIN_FREE_BYTES):
            remedy = "make room, set run.dir elsewhere, or lower run.keep_checkpoints"
            found.append(Finding(WARNING, "run folder", text, remedy))
        else:
            found.append(Finding(FINE, "run folder", text))
    apart = [one for one in ranks if not one.sees_marker and not one.unwritable]
    if apart and not any(one.unwritable for one in ranks):
        text = (
            f"{', '.join(by_host(apart))} do not see what {ranks[0].host} writes in {run_dir}: every "
            "host will keep its own clients' models and checkpoints"
        )
        remedy = "set run.dir to a disk that all hosts share; without one, a run cannot be resumed"
        found.append(Finding(WARNING, "shared disk", text, remedy))
    elif len(by_host(ranks)) > 1 and not apart:
        found.append(Finding(FINE, "shared disk", "all hosts see the same run folder"))
    return found


def clocks(ranks: Sequence[RankInfo], links: Sequence[Link]) -> list[Finding]:
    """Clocks of hosts, by the round trips of rank 0."""
    if len(by_host(ranks)) < 2:
        return []
    skews = {ranks[k.second].host: k.skew for k in links if k.first == 0}
    skews.pop(ranks[0].host, None)
    host = max(skews, key=lambda host: abs(skews[host]))
    text = f"the clock of {host} is {1000 * skews[host]:+.1f} ms off that of {ranks[0].host}"
    if len(skews) > 1:
        text += ", others less"
    if abs(skews[host]) > MAX_CLOCK_SKEW_SECONDS:
        remedy = "let the hosts follow one time server (chrony, ntpd)"
        return [Finding(WARNING, "clocks", text, remedy)]
    return [Finding(FINE, "clocks", text)]


def speeds(ranks: Sequence[RankInfo], links: Sequence[Link], measured: str) -> list[Finding]:
    """Links that are slow in absolute terms, and those far slower than the others of their kind."""
    if not links:
        return []
    lines = tuple(_in_words(ranks, link) for link in links)
    if len(links) > MAX_LISTED_LINKS:
        slowest = sorted(links, key=lambda link: link.throughput)[:SLOWEST_LINKS]
        lines = ("the slowest:", *(_in_words(ranks, link) for link in slowest))
    text = (
        f"{len(links)} measured ({measured}): "
        f"round trip {_span([1000 * k.round_trip for k in links])} ms, "
        f"{MODEL_BYTES / 1e6:g} MB both ways at {_span([k.throughput / 1e6 for k in links])} MB/s each way"
    )
    within, between = (
        [k for k in links if (ranks[k.first].host == ranks[k.second].host) is same]
        for same in (True, False)
    )
    remedy = "look for other work on this host, or fewer cores than ranks"
    found = _slow_links(within, 0.0, "on one host", remedy)
    remedy = "set GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME) to the fastest network they share"
    found += _slow_links(between, MIN_LINK_BYTES_PER_SECOND, "between hosts", remedy)
    return [Finding(FINE, "links", text, more=lines), *found]


def _slow_links(links: Sequence[Link], least: float, where: str, remedy: str) -> list[Finding]:
    """Return warnings of links of one kind below `least` bytes/s, far below the median, or late."""
    if not links:
        return []
    limit = max(median(k.throughput for k in links) / MAX_SLOWDOWN, least)
    slow = [k for k in links if k.throughput < limit]
    late = [k for k in links if k.round_trip > MAX_ROUND_TRIP_SECONDS and k not in slow]
    found = []
    for some, why in ((slow, "slow"), (late, "late to answer")):
        if some:
            pairs = ", ".join(f"{k.first}-{k.second}" for k in some[:MAX_NAMED_LINKS])
            more = len(some) - MAX_NAMED_LINKS
            text = f"links {where} are {why}: {pairs}" + (f" and {more} more" if more > 0 else "")
            found.append(Finding(WARNING, "links", text, remedy))
    return found


def _in_words(ranks: Sequence[RankInfo], link: Link) -> str:
    hosts = ranks[link.first].host, ranks[link.second].host
    where = "one host" if hosts[0] == hosts[1] else " to ".join(hosts)
    return (
        f"{link.first}-{link.second} ({where}): {1000 * link.round_trip:.2f} ms, "
        f"{link.throughput / 1e6:.0f} MB/s"
    )


def _span(values: Sequence[float]) -> str:
    least, most = (f"{value:.3g}" for value in (min(values), max(values)))
    return least if least == most else f"{least} to {most}"
