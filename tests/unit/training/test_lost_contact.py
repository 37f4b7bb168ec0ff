"""What the reports of ranks that lost contact tell about the cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from cobo_dist.comm.transports.base import HowLost, LostContact
from cobo_dist.training.lost_contact import Loss, describe_loss

TWO = ["node-1", "node-1", "node-2", "node-2"]
THREE = ["a", "a", "b", "b", "c", "c"]
LIVE = "; all ranks live, but "
BETWEEN = f"{LIVE}those on node-1 and node-2 lost each other: look at the network between them"


def silent(*peers: int, waited: float = 10.0) -> Loss:
    return Loss(frozenset(peers), "silent", waited)


def closed(*peers: int, waited: float = 10.0) -> Loss:
    return Loss(frozenset(peers), "closed", waited)


def unreachable(*peers: int, waited: float = 2.0) -> Loss:
    return Loss(frozenset(peers), "unreachable", waited)


@pytest.mark.parametrize(
    "losses",
    [
        # A cut link: each rank waits in vain for those on the other side, or for the first of them.
        {0: silent(2, 3), 1: silent(2, 3), 2: silent(0, 1), 3: silent(0, 1)},
        {0: silent(2), 1: silent(2), 2: silent(0), 3: silent(0)},
        {0: unreachable(2), 1: unreachable(3), 2: unreachable(0), 3: unreachable(1)},
        # No two ranks name each other.
        {0: unreachable(2), 1: unreachable(3), 2: unreachable(1), 3: unreachable(0)},
        # Ranks of one side noticed first, and closed their connections to their neighbors.
        {0: silent(2), 1: closed(0), 2: silent(0), 3: closed(2)},
        {0: closed(1), 1: silent(3), 2: closed(3), 3: silent(1)},
        # Records go by rank 0 only.
        {0: silent(2, 3), 1: closed(0), 2: silent(0), 3: silent(0)},
        # One-way deafness: node-1 hears nothing of node-2, which sees that node-1 closes.
        {0: silent(2), 1: silent(3), 2: closed(0, waited=9.0), 3: closed(1, waited=9.5)},
        {0: closed(3, waited=9.0), 1: closed(0), 2: closed(3), 3: silent(0)},
        # What lies between them resets connections.
        {0: closed(2), 1: closed(0), 2: closed(0), 3: closed(2)},
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_cut_between_two_hosts(losses: Mapping[int, Loss], rank: int) -> None:
    assert describe_loss(losses, TWO, rank) == BETWEEN


def test_mpi_names_no_rank_in_a_collective_operation() -> None:
    losses = {rank: silent() for rank in range(4)}
    words = "they lost contact: look at the network between node-1 and node-2"
    assert describe_loss(losses, TWO, 0) == LIVE + words
    assert describe_loss({0: silent(), 1: silent()}, ["a", "a"], 0) == ""


B_C = "those on b and c lost each other: look at the network between them"


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        # b and c lost each other. Those on a wait for them in the next exchange, or see them leave.
        ([silent(2, 4), closed(2), silent(4), silent(5), silent(2), silent(3)], B_C),
        ([closed(2), closed(0), silent(4, 5), silent(4), silent(2, 3), closed(4)], B_C),
        # b is cut off from both.
        (
            [silent(2, 3), silent(2), silent(0, 4), silent(0), silent(2), silent(2, 3)],
            "those on b and those on a and c lost each other: look at the network of b",
        ),
        # None hears another.
        (
            [silent(2, 4), silent(2), silent(0, 4), silent(0), silent(0, 2), silent(2)],
            "those on these hosts lost each other: a and b, a and c, b and c: look at the network "
            "between them",
        ),
    ],
)
def test_cuts_between_three_hosts(losses: Sequence[Loss], words: str) -> None:
    assert describe_loss(dict(enumerate(losses)), THREE, 0) == LIVE + words


def test_many_pairs_are_not_all_named() -> None:
    hosts = [f"n{rank}" for rank in range(8)]
    losses = {
        rank: silent(*(peer for peer in range(8) if peer % 2 != rank % 2)) for rank in range(8)
    }
    assert describe_loss(losses, hosts, 0) == (
        f"{LIVE}those on these hosts lost each other: n0 and n1, n0 and n3, n0 and n5, n0 and n7, and "
        "12 more pairs: look at the network between them"
    )


def test_ranks_of_one_host() -> None:
    losses = {0: closed(1), 1: closed(0), 2: closed(0), 3: closed(1)}
    assert describe_loss(losses, TWO, 0) == (
        f"{LIVE}rank 0 and rank 1 on node-1 lost each other: look what blocks connections within that host"
    )


@pytest.mark.parametrize(
    "losses",
    [
        {0: silent(2), 1: silent(2), 2: closed(0, waited=0.0), 3: closed(0)},
        {0: closed(1), 1: silent(2), 2: closed(1, waited=0.1), 3: closed(1)},
        {0: closed(3), 1: closed(3), 2: closed(3, waited=0.1), 3: silent(2)},
    ],
)
def test_a_rank_that_was_only_slow_is_not_a_network_that_failed(
    losses: Mapping[int, Loss],
) -> None:
    words = "rank 2 on node-2 answered only after comm.timeout: look what took so long, or raise it"
    assert describe_loss(losses, TWO, 0) == LIVE + words


def test_connections_that_ended_one_after_the_other_tell_nothing() -> None:
    """A rank ended that had lost nothing itself, and it says why."""
    assert describe_loss({0: closed(1), 1: closed(2), 2: closed()}, ["a", "b", "c"], 0) == ""
    assert describe_loss({0: silent(1)}, [], 0) == "", "the hosts are not known"


KILLED = "killed, out of memory, or hanging"


@pytest.mark.parametrize(
    ("hosts", "losses", "words"),
    [
        (TWO, {0: closed(1), 2: closed(0), 3: closed(0)}, f"rank 1 on node-1: {KILLED}"),
        # Rank 3 is still at work.
        (TWO, {0: closed(1), 2: closed(0)}, f"rank 1 on node-1: {KILLED}"),
        (TWO, {0: closed(), 2: closed(0)}, f"rank 1 on node-1, rank 3 on node-2: {KILLED}"),
        # A host is lost, or a side that no longer sees the run folder.
        (
            TWO,
            {0: unreachable(2), 1: unreachable(3)},
            f"rank 2 on node-2, rank 3 on node-2: {KILLED}, or node-2 or the network to it is down",
        ),
        (
            THREE,
            {0: silent(2), 1: silent(4)},
            f"rank 2 on b, rank 3 on b: {KILLED}, or b or the network to it is down",
        ),
        (
            THREE,
            {0: silent(2, 4), 1: silent(4)},
            f"rank 2 on b, rank 3 on b, rank 4 on c, rank 5 on c: {KILLED}, or b and c or the network to "
            "them is down",
        ),
        (["a", "b"], {0: closed(1)}, f"rank 1 on b: {KILLED}, or b or the network to it is down"),
        (["a", "a"], {0: closed(1)}, f"rank 1 on a: {KILLED}"),
    ],
)
def test_ranks_without_a_report(
    hosts: Sequence[str], losses: Mapping[int, Loss], words: str
) -> None:
    assert describe_loss(losses, hosts, 0) == f", since when nothing was heard of {words}"


@pytest.mark.parametrize("how", ["closed", "silent", "unreachable"])
def test_a_report_keeps_the_loss(how: HowLost) -> None:
    loss = Loss.of(LostContact("rank 0 lost contact", [3, 1], how, 2.5), stopped=1.5)
    assert Loss.of_line(loss.to_line()) == loss == Loss(frozenset({1, 3}), how, 2.5, 1.5)


@pytest.mark.parametrize("line", ["", "Traceback", "[]", "{}", '{"peers": 1}', "null"])
def test_a_report_that_cannot_be_read_names_no_peer(line: str) -> None:
    assert Loss.of_line(line) == Loss()


def stopped(seconds: float, *peers: int) -> Loss:
    return Loss(frozenset(peers), "closed", seconds, seconds)


def test_a_rank_that_was_stopped_is_the_cause_wherever_it_is() -> None:
    """It finds its connections closed by those that waited for it."""
    for rank in (0, 2):
        losses = {other: silent(rank) for other in range(4)} | {rank: stopped(12.0, 1)}
        found = describe_loss(losses, TWO, 0)
        assert found.startswith(f"; rank {rank} on {TWO[rank]} was itself stopped for 12 s (")
        assert "comm.timeout" in found


def test_a_stop_that_kept_nobody_waiting_is_not_the_cause() -> None:
    cut = {
        0: silent(2, 3),
        1: silent(2, 3),
        2: silent(0, 1),
        3: Loss(frozenset({0, 1}), "silent", 10.0, 4.0),
    }
    assert describe_loss(cut, TWO, 0) == BETWEEN
    none_waited = {0: stopped(12.0, 1), 1: closed(0)}
    assert "stopped" not in describe_loss(none_waited, ["a", "b"], 0)
