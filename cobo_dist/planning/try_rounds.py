"""Seconds of real rounds, measured on the launched ranks with what the run itself trains with."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from statistics import median_low

from cobo_dist.comm.session import Session, check_backend, choose_device, open_session
from cobo_dist.comm.startup.launch_env import Launch
from cobo_dist.config import Config
from cobo_dist.phase_timer import KINDS
from cobo_dist.training.build import prepare, set_up_torch
from cobo_dist.training.signals import Signals
from cobo_dist.training.trainer import Trainer


@dataclass(frozen=True)
class TriedRounds:
    """Seconds of each counted round, and the parts of the median round; both of its slowest rank."""

    ranks: int
    first: int  # number of the first round that counts
    seconds: list[float]
    parts: dict[str, float]  # by kind, as log.profile has them
    device: str
    engine: str

    @property
    def median(self) -> float:
        """Seconds of the median round, the lower one of two."""
        return median_low(self.seconds)


def try_rounds(config: Config, launch: Launch, rounds: int) -> TriedRounds | None:
    """Run the first rounds of a run on all launched ranks; return their seconds on rank 0.

    Nothing is evaluated, logged or written. The first round allocates buffers, so it does not count unless
    it is the only one.

    Raises:
        ConfigError: the ranks cannot connect, or the run would be refused.
    """
    log = config.log.model_copy(update={"profile": True, "trace": 0})
    config = config.model_copy(update={"log": log})
    check_backend(config.comm.backend, launch)
    device = choose_device(config.run.device, config.comm.backend, launch)
    prepared = prepare(config, launch, with_folder=False)
    with open_session(launch, config.comm, device) as session:
        set_up_torch(config, launch, device)
        session.agree(prepared.refusal, prepared.fingerprint)
        assert prepared.task is not None
        assert prepared.placement is not None
        trainer = Trainer(
            config, session, prepared.task, prepared.placement, prepared.data, None, Signals()
        )
        return _time(trainer, session, rounds)


def _time(trainer: Trainer, session: Session, rounds: int) -> TriedRounds | None:
    """Time each round and its parts on this rank, and keep those of the slowest rank on rank 0."""
    transport, mine = session.transport, []
    for t in range(rounds):
        transport.broadcast(b"")  # all ranks begin together
        trainer.timer.take()
        began = time.perf_counter()
        trainer.algorithm.round(t)
        parts = trainer.timer.take()  # waits for the device
        mine.append((time.perf_counter() - began, parts))
    records = transport.gather(json.dumps(mine).encode())
    if not records:
        return None
    by_round = zip(*(json.loads(record) for record in records), strict=True)
    slowest = [max(ranks, key=lambda rank: float(rank[0])) for ranks in by_round]
    counted = slowest[1:] or slowest
    middle = median_low([seconds for seconds, _ in counted])
    (parts, *_) = (parts for seconds, parts in counted if seconds == middle)
    return TriedRounds(
        ranks=transport.world_size,
        first=rounds - len(counted) + 1,
        seconds=[seconds for seconds, _ in counted],
        parts={kind: parts[kind] for kind in KINDS if parts[kind] > 0},
        device=str(session.device),
        engine=trainer.config.run.engine,
    )
