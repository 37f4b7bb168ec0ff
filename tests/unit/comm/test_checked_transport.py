"""`comm.check`: a run that breaks NCCL's rules ends with rank, peer and batch; a correct run goes on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from pool import RankPool, free_port
from problems import train, write_quadratic
from torch import Tensor

from cobo_dist.comm.session import Session
from cobo_dist.comm.transports.base import LostContact, SoloTransport
from cobo_dist.comm.transports.checked_transport import CheckedTransport, RuleBroken
from cobo_dist.comm.transports.nccl_rules import NcclRuleBroken, Operation, check_mirrors
from cobo_dist.errors import RunFailure


def checked_run(session: Session, arguments: list[str]) -> tuple[int, int, int]:
    """Train with checks; return the exit code, and how many batches were checked and are still kept."""
    transport = CheckedTransport(session.transport)
    code = train(dataclasses.replace(session, transport=transport), arguments)
    return code, transport.checked, len(transport._batches)


@pytest.mark.slow
def test_a_correct_run_is_checked_to_the_end_and_nothing_is_kept(
    pool: RankPool, tmp_path: Path
) -> None:
    problem = write_quadratic(tmp_path / "problem.npz")
    arguments = [
        "task.name=quadratic", f"task.file={problem}", f"run.dir={tmp_path / 'run'}", "run.rounds=12",
        "algorithm.sampling.name=all",
    ]  # fmt: skip
    answers = pool.run(2, checked_run, arguments)
    assert [code for code, _, _ in answers] == [0, 0]
    assert answers[0][1] > 12 * 2 * 3, "every rank's models, halves, scalars and mixing"
    assert [kept for _, _, kept in answers] == [0, 0]


class Distorted:
    """Passes on to a transport; rank 1 expects one number too many in its fifth batch."""

    def __init__(self, inner: CheckedTransport) -> None:
        self.inner, self.rank, self.world_size = inner, inner.rank, inner.world_size
        self.gather, self.broadcast = inner.gather, inner.broadcast
        self.batches = 0

    def exchange(self, sends, receives, purpose):  # type: ignore[no-untyped-def]
        self.batches += bool(sends or receives)
        if self.rank == 1 and self.batches == 5:
            receives = {peer: box.new_zeros(box.numel() + 1) for peer, box in receives.items()}
        return self.inner.exchange(sends, receives, purpose)


def distorted_run(session: Session, arguments: list[str]) -> str:
    transport = Distorted(CheckedTransport(session.transport))
    try:
        train(dataclasses.replace(session, transport=transport), arguments)
    except RunFailure as failure:
        return str(failure)
    return "nothing noticed"


def test_a_broken_rule_ends_the_run_with_one_line_on_all_ranks(
    pool: RankPool, tmp_path: Path
) -> None:
    """Gloo accepts a message that is shorter than the receiver's buffer; NCCL would hang."""
    problem = write_quadratic(tmp_path / "problem.npz")
    arguments = [
        "task.name=quadratic", f"task.file={problem}", f"run.dir={tmp_path / 'run'}",
        "run.rounds=1000", "algorithm.sampling.name=all",
    ]  # fmt: skip
    first, second = pool.run_broken(2, distorted_run, arguments)
    assert first == second
    assert first.startswith("comm.check: rank 0, batch 4 ("), first
    assert "with rank 1, whose batch 4 (" in first
    assert "do not mirror" in first
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["exit_code"], status["reason"]) == (1, first)


class Silent:
    """Posts nothing, and loses contact when it waits."""

    def __init__(self, session: Session) -> None:
        self.rank, self.world_size = session.transport.rank, session.transport.world_size
        self.gather, self.broadcast = session.transport.gather, session.transport.broadcast

    def exchange(self, sends, receives, purpose):  # type: ignore[no-untyped-def]
        return self

    def wait(self) -> None:
        raise LostContact(f"rank {self.rank} lost contact")


def wait_in_vain(session: Session, port: int, count: int) -> str:
    """Rank 0 receives three numbers; rank 1 sends `count` numbers, or nothing (0); return rank 0's error."""
    from torch.distributed import TCPStore

    rank = session.transport.rank
    store = TCPStore("127.0.0.1", port, is_master=rank == 0, wait_for_workers=False)
    transport = CheckedTransport(Silent(session), store)
    transport.gather(b"")
    message = ""
    if rank == 1 and count:
        transport.exchange({0: torch.ones(count)}, {}, "mixing")
    session.transport.broadcast(b"")
    if rank == 0:
        try:
            transport.exchange({}, {1: torch.ones(3)}, "mixing").wait()
        except (LostContact, RuleBroken) as error:
            message = str(error)
    session.transport.broadcast(b"")  # rank 0 serves the store
    return message


@pytest.mark.parametrize("count", [0, 3, 4])
def test_the_store_explains_why_contact_was_lost(pool: RankPool, count: int) -> None:
    """A message that is too long makes gloo abort the receiver; rank 1 may have died for another reason."""
    message = pool.run_broken(2, wait_in_vain, free_port(), count)[0]
    if count == 4:
        assert message == (
            "comm.check: rank 0, batch 0 (mixing) has recv [(3, torch.float32)] with rank 1, whose "
            "batch 0 (mixing) has send [(4, torch.float32)]: the two do not mirror"
        )
    else:
        assert message == "rank 0 lost contact"


def test_mirrors_are_checked_where_a_rank_is_missing() -> None:
    def op(kind: str, peer: int, count: int) -> Operation:
        return Operation(kind, peer, count, torch.float32, purpose="pairs")

    here = {
        0: [[op("send", 2, 1)], [op("send", 1, 4)]],
        1: [[op("recv", 0, 4)], [op("send", 2, 9)]],
    }
    check_mirrors(here)
    here[1][0] = [op("recv", 0, 5)]
    with pytest.raises(
        NcclRuleBroken, match=r"rank 0, batch 8 \(pairs\).*rank 1.*batch 3 \(pairs\)"
    ):
        check_mirrors(here, {0: 7, 1: 3})


def test_one_rank_alone() -> None:
    transport = CheckedTransport(SoloTransport())
    assert transport.gather(b"abc") == [b"abc"]
    assert transport.broadcast(b"") == b""
    none: dict[int, Tensor] = {}
    transport.exchange(none, none, "pairs").wait()
