"""Faults of the network between hosts: cut links, a lost host, a host that another one does not hear."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cobo_dist.comm.startup.keepalive import UNREACHABLE_SHARE
from cobo_dist.storage.run_dir import RunDir

from .endings import judge, skipped
from .hosts import Host, enter_host, hosts, why_no_hosts
from .outcome import Outcome
from .problem import RANK_KEYS, arguments, differences, write_problem
from .ranks import Ended, Fault, Run, finished, free_port, start, wait_for

RANKS = 4
TWO_HOSTS, THREE_HOSTS = (0, 0, 1, 1), (0, 0, 1, 2)  # the host of each rank
ROUNDS, EVERY, FAULT_ROUND = 60, 10, 30  # round 30 also evaluates and saves
BETWEEN = ["rank 0 lost contact", "all ranks live", "those on node-1 and node-2 lost each other"]
LOST = ["rank 0 lost contact", "nothing was heard of rank 2 on node-2, rank 3 on node-2", "network"]


@dataclass
class Network:
    """A run on several hosts, and the same without a fault that the resumed ones are compared with."""

    folder: Path
    timeout: float  # comm.timeout, seconds
    slack: float  # seconds beyond the time-out until the last rank must have ended
    run: list[str]
    reference: Path

    @classmethod
    def prepare(cls, folder: Path, timeout: float, slack: float) -> Network:
        """Run without any fault, on one rank."""
        problem = write_problem(folder / "problem.npz", 8)
        run = [*arguments(problem, ROUNDS, EVERY), f"comm.timeout={timeout:g}"]
        reference = folder / "whole"
        finished(1, [*run, f"run.dir={reference}"], folder / "logs")
        return cls(folder, timeout, slack, run, reference)

    def start(
        self,
        made: Sequence[Host],
        out: Path,
        then: Fault | None = None,
        host_of: Sequence[int] = TWO_HOSTS,
    ) -> Run:
        """Start ranks on these hosts; `then` is injected into each of them."""
        return start(
            RANKS, [*self.run, f"run.dir={out}"], self.folder / "logs", port=free_port(),
            fault=(enter_host, ([made[host] for host in host_of], then)),
            variables=lambda rank: {
                "LOCAL_RANK": host_of[:rank].count(host_of[rank]),
                "LOCAL_WORLD_SIZE": host_of.count(host_of[rank]),
                "MASTER_ADDR": made[0].address, "GLOO_SOCKET_IFNAME": "eth0",
            },
        )  # fmt: skip

    def judge(
        self,
        action: str,
        ended: dict[int, Ended],
        words: list[str],
        out: Path,
        killed: Sequence[int] = (),
    ) -> Outcome:
        """Resume on one rank, and return the row."""
        codes = {rank: -signal.SIGKILL if rank in killed else 1 for rank in range(RANKS)}
        try:
            finished(1, [*self.run, f"run.dir={out}", "run.resume=auto"], self.folder / "logs")
            wrong = differences(self.reference, out, ROUNDS, RANK_KEYS)
        except RuntimeError as error:
            wrong = [f"it cannot be resumed: {error}"]
        return judge(
            f"{action}, comm.timeout={self.timeout:g}", "all ranks end with 1; resumes", ended, codes,
            words, self.timeout + self.slack, wrong,
        )  # fmt: skip


def _cut(network: Network, where: str, share: float = UNREACHABLE_SHARE) -> Outcome:
    """The link of the second host is cut while all ranks do something together.

    `share`: of comm.timeout, after which a host that acknowledges nothing counts as lost.
    """
    out, done = network.folder / f"cut-{where}-{share}", network.folder / f"{where}-{share} is cut"
    with hosts(2) as made:
        run = network.start(made, out, (inject_cut, (where, made[1], done, share)))
        wait_for(done.exists, run, 600.0)
        run.restart_clock()
        ended = run.end(network.timeout + 2 * network.slack)
    action = f"a link cut for good in {where}"
    if share > 1:
        action += ", and only comm.timeout tells"
    return network.judge(action, ended, BETWEEN, out)


def _break(
    network: Network,
    action: str,
    words: list[str],
    break_it: Callable[[list[Host], Run], None],
    *,
    then: Fault | None = None,
    host_of: Sequence[int] = TWO_HOSTS,
    killed: Sequence[int] = (),
) -> Outcome:
    """Break something after the first checkpoint; rank 0 must say the words."""
    out = network.folder / action.replace(" ", "-")
    with hosts(len(set(host_of))) as made:
        run = network.start(made, out, then, host_of)
        wait_for(lambda: list(out.glob("checkpoints/round-?????????")), run, 600.0)
        break_it(made, run)
        run.restart_clock()
        ended = run.end(network.timeout + 2 * network.slack)
    return network.judge(action, ended, words, out, killed)


def _lost(network: Network) -> Outcome:
    """All processes of the second host are gone, and so is its link: it sends no farewell."""

    def lose(made: list[Host], run: Run) -> None:
        made[1].cut()
        for rank in (2, 3):
            run.signal(rank, signal.SIGKILL)

    return _break(network, "a host lost", LOST, lose, killed=(2, 3))


def _deaf(network: Network, speaker: int, listener: int) -> Outcome:
    """What one host sends does not arrive, while it hears the other."""
    names = [f"node-{k + 1}" for k in (listener, speaker)]
    return _break(
        network, f"{names[0]} hears nothing of {names[1]}, which hears it", BETWEEN,
        lambda made, run: made[speaker].mute([made[listener]]),
    )  # fmt: skip


def _between_two_of_three(network: Network) -> Outcome:
    """Two hosts lose each other, and the third, with rank 0, reaches both."""

    def part(made: list[Host], run: Run) -> None:
        made[1].mute([made[2]])
        made[2].mute([made[1]])

    words = ["rank 0 lost contact", "all ranks live", "those on node-2 and node-3 lost each other"]
    return _break(network, "node-2 and node-3 lose each other", words, part, host_of=THREE_HOSTS)


def _no_folder(network: Network) -> Outcome:
    """The cut link was also the way of the second host to the run folder."""
    return _break(
        network, "a link cut, and with it the run folder of node-2", LOST,
        lambda made, run: made[1].cut(), then=(inject_lost_folder, ()),
    )  # fmt: skip


def _suspended(network: Network) -> Outcome:
    """All ranks of a host do nothing for longer than it may be unreachable: its kernel still answers."""
    out, seconds = network.folder / "suspended", 2 * UNREACHABLE_SHARE * network.timeout
    with hosts(2) as made:
        run = network.start(made, out)
        wait_for(lambda: list(out.glob("checkpoints/round-?????????")), run, 600.0)
        for number, pause in ((signal.SIGSTOP, seconds), (signal.SIGCONT, 0.0)):
            for rank in (2, 3):
                run.signal(rank, number)
            time.sleep(pause)
        run.restart_clock()
        ended = run.end(network.timeout + 2 * network.slack)
    wrong = [f"rank {rank}: {one.code} {one.err}" for rank, one in ended.items() if one.code != 0]
    wrong = wrong or differences(network.reference, out, ROUNDS, RANK_KEYS)
    named = [rank.split()[0] for rank in RunDir(out).environment().ranks]
    if named != ["node-1", "node-1", "node-2", "node-2"]:
        wrong.append(f"the ranks are on {named}")
    return Outcome(
        f"a host's ranks suspended for {seconds:g} s, comm.timeout={network.timeout:g}",
        "the run goes on to its end", f"{len(wrong)} differences", seconds, not wrong, details=wrong,
    )  # fmt: skip


FAULTS: dict[str, Callable[[Network], Outcome]] = {
    "cut-in-round": lambda network: _cut(network, "a round"),
    "cut-and-silent": lambda network: _cut(network, "a round", share=10.0),
    "cut-in-save": lambda network: _cut(network, "a save"),
    "cut-in-evaluation": lambda network: _cut(network, "an evaluation"),
    "host-lost": _lost,
    "node-1-deaf": lambda network: _deaf(network, speaker=1, listener=0),
    "node-2-deaf": lambda network: _deaf(network, speaker=0, listener=1),
    "two-of-three": _between_two_of_three,
    "no-folder": _no_folder,
    "suspended": _suspended,
}


def network(
    folder: Path, which: Sequence[str] = (), timeout: float = 8.0, slack: float = 20.0
) -> list[Outcome]:
    """Try the faults of these names, or all; skip them where this machine cannot have hosts."""
    if why := why_no_hosts():
        return [skipped("two hosts", why)]
    prepared = Network.prepare(folder, timeout, slack)
    return [FAULTS[name](prepared) for name in which or FAULTS]


def inject_lost_folder() -> None:
    """Let ranks 2 and 3 neither write reports nor see any."""
    if os.environ["RANK"] in ("2", "3"):

        def stale(*arguments):  # type: ignore[no-untyped-def]
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

        RunDir.error_report = stale  # type: ignore[method-assign]
        RunDir.error_reports = stale  # type: ignore[method-assign]


def inject_cut(where: str, host: Host, done: Path, share: float) -> None:
    """Let rank 2 cut the link of its host while it does this in FAULT_ROUND, and then make a file."""
    from cobo_dist.algorithms.cobo import CoBo
    from cobo_dist.checkpoint.writer import CheckpointWriter
    from cobo_dist.comm.startup import keepalive
    from cobo_dist.tracking.metrics_buffer import MetricsBuffer

    keepalive.UNREACHABLE_SHARE = share
    if os.environ["RANK"] != "2":
        return
    owner, name, argument = {
        "a round": (CoBo, "round", FAULT_ROUND),
        "a save": (CheckpointWriter, "begin", FAULT_ROUND),
        "an evaluation": (MetricsBuffer, "evaluate", FAULT_ROUND),
    }[where]
    good = getattr(owner, name)

    def cutting(self, r, *rest, **more):  # type: ignore[no-untyped-def]
        if r == argument:
            host.cut()
            done.touch()
        return good(self, r, *rest, **more)

    setattr(owner, name, cutting)
