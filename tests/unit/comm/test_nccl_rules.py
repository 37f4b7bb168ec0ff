"""The sends and receives of real rounds keep NCCL's rules, and the checker refuses what breaks them."""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path

import pytest
import torch
from pool import RankPool
from problems import train, write_quadratic
from recording import RecordingTransport

from cobo_dist.comm.session import Session
from cobo_dist.comm.transports.base import Transport
from cobo_dist.comm.transports.nccl_rules import (
    NcclRuleBroken,
    Operation,
    check_schedule,
)


def recorded_run(session: Session, arguments: list[str]) -> list[list[Operation]]:
    """Train through a recording transport; return this rank's batches."""
    transport = RecordingTransport(session.transport)
    train(dataclasses.replace(session, transport=transport), arguments)
    return transport.batches


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("strategy", ["constant", "all"])
@pytest.mark.parametrize("domain", ["box", "simplex"])
def test_real_rounds_keep_the_rules(
    pool: RankPool, tmp_path: Path, ranks: int, strategy: str, domain: str
) -> None:
    problem = write_quadratic(tmp_path / "problem.npz", clients=9, size=40)
    arguments = [
        "task.name=quadratic", f"task.file={problem}", f"run.dir={tmp_path / 'run'}",
        "run.rounds=12", f"algorithm.sampling.name={strategy}", "algorithm.gamma=0.05",
        f"algorithm.domain={domain}",
    ]  # fmt: skip
    schedule = dict(enumerate(pool.run(ranks, recorded_run, arguments)))
    check_schedule(schedule)
    kinds = {op.dtype for batches in schedule.values() for batch in batches for op in batch}
    assert kinds == {torch.float32, torch.float64}, "models and halves, and the scalars"
    assert sum(len(batches) for batches in schedule.values()) > 12 * ranks
    # The record is complete: with one operation less, the same schedule is refused.
    broken = {rank: [list(batch) for batch in batches] for rank, batches in schedule.items()}
    del broken[1][5][0]
    with pytest.raises(NcclRuleBroken):
        check_schedule(broken)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_validation_based_rounds_keep_the_rules(pool: RankPool, tmp_path: Path, ranks: int) -> None:
    """BatchNorm's statistics visit in the models' messages; blocks of W are sent before the averages."""
    arguments = [
        "algorithm.name=validation_based", f"run.dir={tmp_path / 'run'}", "run.rounds=3",
        "run.eval_every=0", "model.norm=batch", "algorithm.buffers=averaged",
    ]  # fmt: skip
    schedule = dict(enumerate(pool.run(ranks, recorded_run, arguments)))
    check_schedule(schedule)
    counts = {op.count for batches in schedule.values() for batch in batches for op in batch}
    size = max(counts)
    assert {count for count in counts if count <= (8 // ranks + 1) ** 2}, "blocks of W"
    assert size % (9226 + 4 * 64) == 0, "rows of models, with means and variances of two layers"


class Checksums:
    """Passes on to a transport, and checks that no buffer in flight is changed before `wait`."""

    def __init__(self, inner: Transport) -> None:
        self.inner, self.rank, self.world_size = inner, inner.rank, inner.world_size
        self.gather, self.broadcast = inner.gather, inner.broadcast
        self.checked = 0

    def exchange(self, sends, receives, purpose):  # type: ignore[no-untyped-def]
        before = [(tensor, tensor.clone()) for tensor in sends.values()]
        pending = self.inner.exchange(sends, receives, purpose)
        addresses = [tensor.data_ptr() for tensor in (*sends.values(), *receives.values())]
        assert len(set(addresses)) == len(addresses), "no buffer serves two messages at once"

        def wait() -> None:
            for tensor, copy in before:
                assert torch.equal(tensor, copy), f"a {purpose} message changed in flight"
            pending.wait()
            self.checked += len(before)

        return types.SimpleNamespace(wait=wait)


def checked_run(session: Session, arguments: list[str]) -> int:
    """Train with copies of all messages in flight; return how many were compared."""
    transport = Checksums(session.transport)
    train(dataclasses.replace(session, transport=transport), arguments)
    return transport.checked


def test_no_message_changes_in_flight(pool: RankPool, tmp_path: Path) -> None:
    arguments = ["run.rounds=10", f"run.dir={tmp_path / 'run'}", "algorithm.sampling.name=all"]
    assert all(checked > 10 * 2 * 3 for checked in pool.run(3, checked_run, arguments))


def send(peer: int, count: int = 4, **more: object) -> Operation:
    return Operation("send", peer, count, **{"dtype": torch.float32, **more})


def recv(peer: int, count: int = 4, **more: object) -> Operation:
    return Operation("recv", peer, count, **{"dtype": torch.float32, **more})


def test_a_clean_schedule_passes() -> None:
    check_schedule(
        {
            0: [[send(1), recv(1)], [send(2, 5)], [recv(1, 1)]],
            1: [[send(0), recv(0), send(2, 9)], [send(0, 1)]],
            2: [[recv(1, 9)], [recv(0, 5)]],
        }
    )


PLANTED = {
    "empty batch": ({0: [[]], 1: []}, "empty batch"),
    "empty message": ({0: [[send(1, 0)]], 1: [[recv(0, 0)]]}, "empty message"),
    "to oneself": ({0: [[send(0), recv(0)]]}, "to oneself"),
    "no such rank": ({0: [[send(5)]]}, "no such rank"),
    "tag": ({0: [[send(1, tag=3)]], 1: [[recv(0, tag=3)]]}, "tag 3"),
    "stride": ({0: [[send(1, contiguous=False)]], 1: [[recv(0)]]}, "contiguous"),
    "dtype that does not travel": (
        {0: [[send(1, dtype=torch.int16)]], 1: [[recv(0, dtype=torch.int16)]]},
        "does not travel",
    ),
    "short message": ({0: [[send(1, 4)]], 1: [[recv(0, 5)]]}, "mirror"),
    "other dtype": ({0: [[send(1)]], 1: [[recv(0, dtype=torch.int32)]]}, "mirror"),
    "order swapped": ({0: [[send(1, 4), send(1, 5)]], 1: [[recv(0, 5), recv(0, 4)]]}, "mirror"),
    "two batches against one": (
        {0: [[send(1)], [recv(1)]], 1: [[recv(0), send(0)]]},
        "mirror",
    ),
    "both send first": ({0: [[send(1)], [recv(1)]], 1: [[send(0)], [recv(0)]]}, "mirror"),
    "send without receive": ({0: [[send(1)]], 1: []}, "no batch left"),
    "receive without send": ({0: [[recv(1)]], 1: []}, "no batch left"),
    "ring": (
        {
            0: [[send(1)], [recv(2)]],
            1: [[send(2)], [recv(0)]],
            2: [[send(0)], [recv(1)]],
        },
        "wait for one another",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_violations_are_refused(name: str) -> None:
    schedule, words = PLANTED[name]
    with pytest.raises(NcclRuleBroken, match=words):
        check_schedule(schedule)
