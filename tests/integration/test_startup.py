"""Starts that fail end with one line, from the rank that knows the reason, soon after the time-out."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from launching import environment, said
from pool import RankPool, free_port
from problems import QUIET
from torch.distributed import Store

from cobo_dist.comm.liveness import Liveness
from cobo_dist.comm.session import Session
from cobo_dist.comm.startup.consistency import (
    ProcessInfo,
    describe_missing,
    find_conflict,
    host_leaders,
    numbers_in_words,
)
from cobo_dist.comm.startup.interfaces import gloo_endpoint, interfaces, nccl_problem
from cobo_dist.comm.startup.launch_env import Launch
from cobo_dist.comm.startup.reachability import find_unreachable, listening
from cobo_dist.comm.startup.rendezvous import Rendezvous
from cobo_dist.errors import ConfigError, HostConfigError

CPU = torch.device("cpu")
SECONDS = 2.0


# -- in the processes of the pool --------------------------------------------------------------------


def connect(launch: Launch, seconds: float) -> Store:
    """Return the store of ranks that are connected."""
    return Rendezvous(launch, seconds, CPU, Liveness(launch.rank)).connect()


def start_up(
    session: Session,
    launches: list[Launch | None],
    env: list[dict[str, str]] | None = None,
    seconds: float = SECONDS,
) -> tuple[str, bool, float]:
    """Connect this process by `launches`; return its error, whether it reports it, and after how long."""
    launch = launches[session.transport.rank]
    mine = (env or [{} for _ in launches])[session.transport.rank]
    if launch is None:
        return "not started", False, 0.0
    began = time.monotonic()
    before = {name: os.environ.get(name) for name in mine}
    os.environ.update(mine)
    try:
        store = connect(launch, seconds)
        store.add("done", 1)
        with suppress(RuntimeError):  # the store ends with rank 0
            while int(store.add("done", 0)) < launch.world_size:
                time.sleep(0.01)
        return "", False, time.monotonic() - began
    except ConfigError as refusal:
        reports = launch.rank == 0 or isinstance(refusal, HostConfigError)
        return str(refusal), reports, time.monotonic() - began
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def by_hand(rank: int, size: int, port: int, address: str = "127.0.0.1") -> Launch:
    return Launch("python", rank, size, rank, size, address, port)


def only_line(answers: list[tuple[str, bool, float]], limit: float) -> str:
    """Return the one line that the ranks report; all of them end within the limit."""
    reported = [line for line, reports, _ in answers if reports]
    assert len(reported) == 1, answers
    assert "\n" not in reported[0]
    assert all(seconds < limit for _, _, seconds in answers), answers
    return reported[0]


def test_ranks_that_agree_connect_at_once(pool: RankPool) -> None:
    port = free_port()
    answers = pool.run(4, start_up, [by_hand(rank, 4, port) for rank in range(4)], None, 60.0)
    assert [line for line, _, _ in answers] == [""] * 4
    assert all(seconds < 5 for _, _, seconds in answers)


def test_a_world_size_mismatch_shows_each_ranks_view_long_before_the_timeout(
    pool: RankPool,
) -> None:
    port, host = free_port(), os.uname().nodename
    launches = [by_hand(0, 3, port), by_hand(1, 3, port), by_hand(2, 4, port)]
    line = only_line(pool.run(3, start_up, launches, None, 60.0), 10)
    assert f"3 say rank(s) 0, 1 on {host}; 4 say rank(s) 2 on {host}" in line
    assert "WORLD_SIZE" in line


def test_a_missing_rank_is_named(pool: RankPool) -> None:
    port = free_port()
    line = only_line(
        pool.run(3, start_up, [by_hand(0, 3, port), None, by_hand(2, 3, port)]), SECONDS + 5
    )
    assert "rank(s) 1 of 3 did not come within 2 s; here are 0, 2 on" in line
    assert "comm.connect_timeout" in line


def test_a_missing_rank_0_is_reported_by_another_rank(pool: RankPool) -> None:
    port = free_port()
    line = only_line(pool.run(2, start_up, [None, by_hand(1, 2, port)]), SECONDS + 5)
    assert f"rank 0 of 2 was not found at 127.0.0.1:{port}" in line
    assert "connection refused" in line
    assert "127.0.0.1 is" in line, "a loopback address means another host there"


def test_rank_0_missing_under_torchrun_whose_store_is_there(pool: RankPool) -> None:
    """The agent serves the store, so all ranks but rank 0 connect to it; one of them reports."""
    with torchruns_store() as port:
        agent = {
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        launches = [None, *(Launch("torchrun", r, 3, r, 3, "127.0.0.1", port) for r in (1, 2))]
        answers = pool.run(3, start_up, launches, [agent] * 3)
        line = only_line(answers, SECONDS + 5)
        assert "rank(s) 0 of 3 did not come within 2 s; here are 1, 2 on" in line
        # All three: rank 0 does not try to serve.
        everyone = [Launch("torchrun", r, 3, r, 3, "127.0.0.1", port, 1, 1) for r in range(3)]
        answers = pool.run(3, start_up, everyone, [agent] * 3, 60.0)
        assert [line for line, _, _ in answers] == [""] * 3
        # A node has left with its rank: torchrun restarts the others, and does not count that restart.
        fewer = [
            *(Launch("torchrun", r, 2, r, 2, "127.0.0.1", port, 1, 1 - r) for r in range(2)),
            None,
        ]
        answers = pool.run(3, start_up, fewer, [agent] * 3, 60.0)
        assert [line for line, _, _ in answers] == ["", "", "not started"]


class torchruns_store:
    """A store like that of torchrun's agent, in the tests' process."""

    def __enter__(self) -> int:
        from torch.distributed import TCPStore

        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        return int(self.store.port)

    def __exit__(self, *_: object) -> None:
        del self.store


def test_a_port_in_use_is_named_with_the_remedy(pool: RankPool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        answers = pool.run(2, start_up, [by_hand(0, 2, port), by_hand(1, 2, port)])
    assert (
        f"rank 0 cannot listen at 127.0.0.1:{port}: another process holds this port"
        in answers[0][0]
    )
    assert "MASTER_PORT" in answers[0][0]
    assert answers[0][2] < 1, "at once"
    # If no launcher ends rank 1, it connects to something that is no store: torch would wait for ever.
    assert "what listens there is no run's rank 0" in answers[1][0]
    assert answers[1][2] < SECONDS + 5


def test_rank_0_listens_only_at_the_address_it_was_told() -> None:
    """All of 127.x.y.z is this host: a store that listens at all addresses would answer at 127.0.0.2."""
    port = free_port()
    store = connect(by_hand(0, 1, port), 10.0)
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=5)
    del store


def test_a_wrong_interface_on_one_rank_ends_all_at_once_with_the_list(pool: RankPool) -> None:
    port = free_port()
    env = [{}, {"GLOO_SOCKET_IFNAME": "ib7"}]
    answers = pool.run(2, start_up, [by_hand(0, 2, port), by_hand(1, 2, port)], env, 60.0)
    line = only_line(answers, 10)
    assert re.search(r"rank 1 on \S+: GLOO_SOCKET_IFNAME=ib7 names no interface", line), line
    assert "lo 127.0.0.1" in line
    assert answers[1][0] == line


def test_a_process_of_another_run_is_refused(pool: RankPool) -> None:
    """Two runs on one port by mistake: the third process's run has three ranks, this one has two."""
    port = free_port()
    launches = [by_hand(0, 2, port), by_hand(1, 2, port), by_hand(2, 3, port)]
    answers = pool.run(3, late_third, launches)
    assert "this rank counts 3 ranks, but the run of 2 at" in answers[2][0]
    assert answers[2][1]


def late_third(session: Session, launches: list[Launch]) -> tuple[str, bool, float]:
    """The first two connect; the third starts after them."""
    rank = session.transport.rank
    if rank == 2:
        session.transport.broadcast(b"")
        return start_up(session, list(launches))
    store = connect(launches[rank], 60.0)
    session.transport.broadcast(b"")
    if rank == 0:
        time.sleep(2.0)
    del store  # not before the third has connected
    return "", False, 0.0


def test_a_loopback_address_for_another_host_is_named(pool: RankPool) -> None:
    """No process listens there. (Two nodes on one machine may share the address.)"""
    second = Launch("srun", 2, 4, 0, 2, "127.0.0.1", free_port())
    line, reports, seconds = pool.run(1, start_up, [second])[0]
    assert "itself: rank 0 must run here" in line
    assert "MASTER_ADDR" in line
    assert reports
    assert seconds < SECONDS + 5


def test_an_unknown_name_of_rank_0s_host(pool: RankPool) -> None:
    launch = by_hand(1, 2, free_port(), "no-such-host.invalid")
    line, _, seconds = pool.run(1, start_up, [launch], None, 1.0)[0]
    assert "does not know the name no-such-host.invalid" in line
    assert seconds < 6


# -- the consistency check ----------------------------------------------------------------------------


def process(rank: int, size: int = 4, host: str = "a", **more: object) -> ProcessInfo:
    address = {"a": "10.0.0.1", "b": "10.0.0.2"}.get(host, "")
    known = {"lo": "127.0.0.1", "eth0": address}
    given = {"address": address, "interface": "eth0", "interfaces": known, "network": host}
    return ProcessInfo(rank, size, "torchrun", host, 100 + rank, f"t{rank}", **{**given, **more})  # type: ignore[arg-type]


GOOD = [process(0), process(1), process(2, host="b"), process(3, host="b")]

BAD = {
    "sizes": ([process(0), process(1, 3)], "4 say rank(s) 0 on a; 3 say rank(s) 1 on a"),
    "twice": (
        [process(0), process(1), process(1)],
        "rank 1 was started 2 times: process 101 on a and",
    ),
    "backends": (
        [process(0), process(2, host="b", backend="nccl")],
        "gloo for 0 on a; nccl for 2 on b",
    ),
    "one GPU": (
        [process(0, gpu="g1"), process(1, gpu="g1")],
        "ranks 0 and 1 share one GPU of a (g1)",
    ),
    "loopback": (
        [process(0), process(2, host="b", address="127.0.1.1")],
        "rank 2 on b would listen at 127.0.1.1, which other hosts cannot reach",
    ),
    "one address": (
        [
            process(0, interface="docker0"),
            process(2, host="b", address="10.0.0.1", interface="docker0"),
        ],
        "rank 0 on a and rank 2 on b would both listen at 10.0.0.1 (interface docker0)",
    ),
    "own problem": ([process(0), process(1, problem="no interface")], "rank 1 on a: no interface"),
}


@pytest.mark.parametrize("name", BAD)
def test_conflicting_processes(name: str) -> None:
    processes, words = BAD[name]
    line = find_conflict(processes)
    assert words in line
    assert "\n" not in line
    assert name in ("sizes", "twice", "own problem", "backends", "one GPU") or "eth0" in line


def test_consistent_processes() -> None:
    assert find_conflict(GOOD) == ""
    assert find_conflict(GOOD[:2]) == "", "not all are there yet"
    assert find_conflict([process(0, gpu="g"), process(2, host="b", gpu="g")]) == "", (
        "another host's GPU"
    )
    shared = [
        process(0, address="127.0.0.1", network="n"),
        process(2, host="b", address="127.0.0.1", network="n"),
    ]
    assert find_conflict(shared) == "", "containers of two names that share one network"
    assert [one.rank for one in host_leaders(GOOD)] == [0, 2]
    assert "rank(s) 1, 3 of 4 did not come within 5 s; here are 0 on a; 2 on b" in describe_missing(
        [GOOD[0], GOOD[2]], 4, 5.0
    )


@pytest.mark.parametrize(
    ("numbers", "words"), [([], ""), ([3], "3"), ([0, 1], "0, 1"), ([4, 0, 1, 2], "0 to 2, 4")]
)
def test_numbers_in_words(numbers: list[int], words: str) -> None:
    assert numbers_in_words(numbers) == words


# -- this host's network -----------------------------------------------------------------------------


def test_interfaces_and_gloos_choice() -> None:
    assert interfaces()["lo"] == "127.0.0.1"
    chosen = gloo_endpoint({"GLOO_SOCKET_IFNAME": "lo"})
    assert (chosen.address, chosen.interface, chosen.problem) == ("127.0.0.1", "lo", "")
    by_name = gloo_endpoint({})
    assert by_name.address
    assert by_name.problem == ""
    assert (
        "names no interface of this host" in gloo_endpoint({"GLOO_SOCKET_IFNAME": "lo,ib7"}).problem
    )
    for fine in ("lo", "l", "=lo", "^ib"):
        assert nccl_problem({"NCCL_SOCKET_IFNAME": fine}) == "", fine
    for none in ("ib", "=l", "^" + ",".join(interfaces())):
        assert "NCCL_SOCKET_IFNAME" in nccl_problem({"NCCL_SOCKET_IFNAME": none}), none


def test_calls_between_hosts() -> None:
    with listening("127.0.0.1", "mine") as port, listening("127.0.0.1", "other") as strange:
        places = {1: ("127.0.0.1", port, "mine"), 2: ("127.0.0.1", strange, "mine"),
                  3: ("127.0.0.1", free_port(), "mine")}  # fmt: skip
        assert find_unreachable(places) == {
            2: "another process answers there", 3: "connection refused",
        }  # fmt: skip
    assert find_unreachable({1: ("127.0.0.1", port, "mine")}) == {1: "connection refused"}


# -- whole runs --------------------------------------------------------------------------------------


@pytest.fixture
def ranks() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for rank in started:
        rank.kill()
        rank.communicate()


def test_a_run_with_a_wrong_interface_on_one_rank(
    tmp_path: Path, ranks: list[subprocess.Popen[str]]
) -> None:
    """Only rank 1 knows its error; rank 0 reports it and rank 1 prints nothing; both exit with 2."""
    port = str(free_port())
    for rank, more in enumerate(({}, {"GLOO_SOCKET_IFNAME": "ib7"})):
        launched = {
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        command = [
            sys.executable,
            "-m",
            "cobo_dist.train",
            *QUIET,
            "comm.timeout=60",
            "run.dir=out",
        ]
        ranks.append(
            subprocess.Popen(
                command, cwd=tmp_path, env=environment(**launched, **more), text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    texts = [rank.communicate(timeout=90)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2], texts
    assert len(texts[0].splitlines()) == 1, "no stack"
    assert "GLOO_SOCKET_IFNAME=ib7" in said(texts[0])[0]
    assert texts[1] == ""
    assert list(tmp_path.iterdir()) == []
