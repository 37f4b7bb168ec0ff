"""`comm.check`: a run whose ranks do not do the same ends with one line; a correct run goes on."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pool import RankPool
from problems import train, write_quadratic
from torch import Tensor

from cobo_dist.algorithms.statistics import statistic_of
from cobo_dist.comm.exchange import Exchange
from cobo_dist.comm.placement import Placement
from cobo_dist.comm.session import Session
from cobo_dist.comm.transports.base import LostContact, SoloTransport
from cobo_dist.comm.transports.checked_transport import CheckedTransport, RuleBroken
from cobo_dist.errors import RunFailure
from cobo_dist.maths.weights import Weights

N = 7


def checked_run(session: Session, arguments: list[str]) -> tuple[int, int]:
    """Train with checks; return the exit code, and how many batches were checked."""
    transport = CheckedTransport(session.transport)
    code = train(dataclasses.replace(session, transport=transport), arguments)
    return code, transport.checked


@pytest.mark.slow
def test_a_correct_run_is_checked_to_the_end(pool: RankPool, tmp_path: Path) -> None:
    problem = write_quadratic(tmp_path / "problem.npz")
    arguments = [
        "task.name=quadratic", f"task.file={problem}", f"run.dir={tmp_path / 'run'}", "run.rounds=12",
        "algorithm.sampling.name=all",
    ]  # fmt: skip
    answers = pool.run(2, checked_run, arguments)
    assert [code for code, _ in answers] == [0, 0]
    assert answers[0][1] > 12 * 2 * 3, "every rank's models, halves, scalars and mixing"


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


def right(exchange: Exchange, x_cd: Tensor) -> None:
    """Call every method as an algorithm should; rank 1 has nothing to send in one batch."""
    exchange.begin_round(1)
    pairs_m2 = torch.tensor([[0, 4], [1, 2]])
    exchange.send_models(x_cd, pairs_m2)
    exchange.receive_models()
    _, z_ed = exchange.midpoints(pairs_m2)
    exchange.alignment(z_ed, statistic_of("inner"))
    list(exchange.mix(Weights(exchange.ids, (0,) * N, symmetric=True), x_cd))
    exchange.all_reduce(np.eye(N)[:2], x_cd)
    exchange.all_gather(np.arange(len(exchange.ids)))


def one_skips(exchange: Exchange, x_cd: Tensor, method: str) -> None:
    """Rank 1 does not call one method, and goes on."""
    calls = {
        "mix": lambda: list(exchange.mix(Weights(exchange.ids, range(N)), x_cd)),
        "all_reduce": lambda: exchange.all_reduce(np.eye(N), x_cd),
        "all_gather": lambda: exchange.all_gather(np.arange(len(exchange.ids))),
        "send_models": lambda: exchange.send_models(x_cd, torch.tensor([[0, 4]])),
    }
    for r in (1, 2):
        exchange.begin_round(r)
        if not (exchange.transport.rank == 1 and r == 2):
            calls[method]()
        if method == "send_models":
            exchange.receive_models()
    exchange.begin_round(3)


def not_symmetric(exchange: Exchange, x_cd: Tensor, i: int, j: int, value: float) -> None:
    """w_ij differs from w_ji, on two ranks or on one."""
    w_nn = np.ones((N, N), dtype=np.float32)
    w_nn[i, j] = value
    weights = Weights.of_rows(exchange.ids, w_nn[exchange.ids], symmetric=True)
    exchange.mix(weights, x_cd)


def other_arguments(exchange: Exchange, x_cd: Tensor, method: str) -> None:
    """The last rank calls with other arguments."""
    last = exchange.transport.rank == exchange.transport.world_size - 1
    if method == "weights":
        weights_kn = np.ones((2, N))
        weights_kn[1, 3] = 0.25 if last else 0.5
        exchange.all_reduce(weights_kn, x_cd)
    elif method == "count":
        exchange.all_reduce(np.ones((2 if last else 3, N)), x_cd)
    elif method == "pairs":
        exchange.send_models(x_cd, torch.tensor([[0, 3 if last else 4]]))
    elif method == "flag":
        exchange.mix(Weights(exchange.ids, range(N), symmetric=last), x_cd)
    else:
        exchange.mix(Weights(exchange.ids, range(N)), x_cd[:, : 1 + last].contiguous())


def unmatched(exchange: Exchange, x_cd: Tensor, kind: str) -> None:
    """Rank 0 posts what rank 1 does not."""
    transport, first = exchange.transport, exchange.transport.rank == 0
    message = {1: torch.ones(3)} if first else {}
    if kind == "send":
        transport.exchange(message, {}, "pairs")
    elif kind == "receive":
        transport.exchange({}, message, "pairs")
    elif first:
        transport.exchange(message, {}, "pairs")
    transport.gather(b"")


def one_skips_receiving(exchange: Exchange, x_cd: Tensor) -> None:
    exchange.send_models(x_cd, torch.tensor([[0, 4]]))
    exchange.receive_models()
    if exchange.transport.rank == 0:
        exchange.receive_models()
    exchange.all_gather(np.arange(len(exchange.ids)))


def wrong_on_one(exchange: Exchange, x_cd: Tensor) -> None:
    """The last rank averages models before it has received them."""
    exchange.send_models(x_cd, torch.tensor([[0, 4]]))
    if exchange.transport.rank == 0:
        exchange.receive_models()
    exchange.all_reduce(np.eye(N), x_cd)


LINE = r"at test_checked_transport\.py:\d+"
MISTAKES = {
    "none": (right, (), "", 4),
    "skips mix": (
        one_skips, ("mix",), f"rank 0 calls exchange.mix {LINE}, but rank 1 begins round 3 {LINE}: ", 2,
    ),
    "skips all_reduce": (
        one_skips, ("all_reduce",), f"rank 0 calls exchange.all_reduce {LINE}, but rank 1 begins round 3", 4,
    ),
    "skips all_gather": (
        one_skips, ("all_gather",), f"rank 0 calls exchange.all_gather {LINE}, but rank 1 begins round 3", 2,
    ),
    "skips send_models": (
        one_skips, ("send_models",),
        f"rank 0 calls exchange.send_models {LINE}, but rank 1 calls exchange.receive_models", 2,
    ),
    "skips receive_models": (
        one_skips_receiving, (),
        f"rank 0 calls exchange.receive_models {LINE}, but rank 1 calls exchange.all_gather {LINE}", 2,
    ),
    "a call too early": (
        wrong_on_one, (),
        rf"rank 1, exchange.all_reduce {LINE}: called before exchange.send_models is finished", 2,
    ),
    "between ranks": (
        not_symmetric, (1, 5, 0.5),
        rf"exchange.mix {LINE}: the weights say symmetric=True, but w\[1, 5\] is 0.5 and w\[5, 1\] is 1;", 2,
    ),
    "within a rank": (
        not_symmetric, (6, 5, 1.0000001), r"w\[6, 5\] is 1.00000012 and w\[5, 6\] is 1;", 2,
    ),
    "on one rank": (not_symmetric, (2, 0, np.nan), r"w\[2, 0\] is nan and w\[0, 2\] is 1;", 1),
    "other weights": (
        other_arguments, ("weights",),
        rf"exchange.all_reduce {LINE}: weights_kn must be the same on every rank.*: "
        r"weights_kn\[1, 3\] is 0.5 on rank 0 and 0.25 on rank 2", 3,
    ),
    "other number of sums": (
        other_arguments, ("count",),
        r"weights_kn must be .* float64 \[3, 7\] \w+ on rank 0 and float64 \[2, 7\] \w+ on rank 1", 2,
    ),
    "other pairs": (
        other_arguments, ("pairs",),
        rf"exchange.send_models {LINE}: .*pairs_m2\[0, 1\] is 4 on rank 0 and 3 on rank 1", 2,
    ),
    "other claim": (
        other_arguments, ("flag",), "symmetric must be .* is False on rank 0 and True on rank 1", 2,
    ),
    "other columns": (
        other_arguments, ("columns",), "columns must be .* is 1 on rank 0 and 2 on rank 1", 2,
    ),
    "send without receive": (
        unmatched, ("send",),
        rf"rank 0, batch 0 \(pairs, {LINE}\) has send \[\(3, torch.float32\)\] with rank 1, "
        "whose batch 0 has recv nothing: the two do not mirror", 2,
    ),
    "receive without send": (
        unmatched, ("receive",), r"rank 0, batch 0 .* has recv .* rank 1, .* has send nothing", 2,
    ),
    "a batch too many": (
        unmatched, ("batch",),
        rf"rank 0 posts batch 0 \(pairs, {LINE}\): sends 3 float32 to rank 1, "
        rf"but rank 1 gathers a record {LINE}: "
        "every rank makes the same calls in the same order", 2,
    ),
}  # fmt: skip


def mistaken(session: Session, act: Callable[..., None], args: tuple[object, ...]) -> str:
    """Call the exchange as `act` does; return the line that ends it."""
    transport = CheckedTransport(session.transport)
    placement = Placement.contiguous(N, transport.world_size)
    exchange = Exchange(transport, placement, torch.float32, torch.device("cpu"))
    x_cd = torch.arange(2.0 * N).view(N, 2)[exchange.ids].clone()
    try:
        act(exchange, x_cd, *args)
    except RuleBroken as broken:
        return str(broken)
    return ""


@pytest.mark.parametrize("carrier", ["gloo", "mpi"])
@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_ends_all_ranks_with_its_line(
    request: pytest.FixtureRequest, carrier: str, name: str
) -> None:
    """At once: `comm.timeout` is 60 s here."""
    act, args, words, ranks = MISTAKES[name]
    began = time.monotonic()
    found = request.getfixturevalue(f"{carrier}_pool").run_broken(ranks, mistaken, act, args)
    assert time.monotonic() - began < 20
    assert len(set(found)) == 1, found
    assert re.search(words, found[0]), found[0]
    assert bool(found[0]) == bool(words)


def test_a_step_that_a_rank_never_takes_is_named_by_those_that_wait(pool: RankPool) -> None:
    """Rank 1 ends while rank 0 has a message for it."""
    first, _ = pool.run_broken(2, ends_early)
    assert re.search(rf"comm.check: rank 0 posts batch 0 \(pairs, {LINE}\): sends 3 float32", first)


def ends_early(session: Session) -> str:
    transport = CheckedTransport(session.transport)
    try:
        if transport.rank == 0:
            transport.exchange({1: torch.ones(3)}, {}, "pairs")
    except LostContact as lost:
        return str(lost)
    return ""


@pytest.mark.parametrize(
    ("dtype", "strides", "words"),
    [("int16", 1, "does not travel"), ("float32", 2, "not contiguous")],
)
def test_what_does_not_travel_is_refused_before_it_is_posted(
    pool: RankPool, dtype: str, strides: int, words: str
) -> None:
    found = pool.run_broken(2, sends_wrongly, dtype, strides)
    assert found[0] == found[1]
    assert "rank 1, batch 0 (pairs" in found[0]
    assert words in found[0]


def sends_wrongly(session: Session, dtype: str, strides: int) -> str:
    transport = CheckedTransport(session.transport)
    box = torch.ones(4 * strides, dtype=getattr(torch, dtype))[::strides]
    sends, receives = ({0: box}, {}) if transport.rank else ({}, {1: torch.ones(4)})
    try:
        transport.exchange(sends, receives, "pairs")
    except RuleBroken as broken:
        return str(broken)
    return ""


def test_one_rank_alone() -> None:
    transport = CheckedTransport(SoloTransport())
    assert transport.gather(b"abc") == [b"abc"]
    assert transport.broadcast(b"") == b""
    none: dict[int, Tensor] = {}
    transport.exchange(none, none, "pairs").wait()
