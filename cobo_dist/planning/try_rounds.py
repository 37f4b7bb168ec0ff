"""Seconds of real rounds, measured on the launched ranks with what the run itself trains with."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from statistics import median_low

from cobo_dist.comm.session import Session, check_backend, open_session
from cobo_dist.comm.startup.devices import choose_device
from cobo_dist.comm.startup.launch_env import Launch, check_open_files
from cobo_dist.config import Config
from cobo_dist.phase_timer import PHASES, PhaseTimer
from cobo_dist.training.build import build_learner
from cobo_dist.training.learner import Learner
from cobo_dist.training.preparation import prepare, set_up_torch
from cobo_dist.training.startup import choose_engine


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
    check_open_files(launch)
    check_backend(config.comm.backend, launch)
    device = choose_device(config.run.device, config.comm.backend, launch)
    prepared = prepare(config, launch, with_folder=False)
    with open_session(launch, config.comm, device) as session:
        set_up_torch(config.run, launch.cores, config.comm.deterministic, device)
        problem = prepared.agree(session)
        timer = PhaseTimer(device)
        learner = build_learner(config, session, problem, timer)
        engine, _ = choose_engine(config.run, config.comm.deterministic, learner, session, None)
        learner.clients.use_engine(engine)
        records = _time(learner, timer, session, rounds)
        return _of_slowest_rank(records, session, engine) if records else None


def _time(learner: Learner, timer: PhaseTimer, session: Session, rounds: int) -> list[bytes]:
    """Time each round and its parts on this rank; return the records of all ranks, on rank 0."""
    mine = []
    for t in range(rounds):
        session.transport.broadcast(b"")  # all ranks begin together
        timer.take()
        began = time.perf_counter()
        learner.algorithm.round(t)
        parts = timer.take()  # waits for the device
        mine.append((time.perf_counter() - began, parts))
    return session.transport.gather(json.dumps(mine).encode())


def _of_slowest_rank(records: list[bytes], session: Session, engine: str) -> TriedRounds:
    """Keep the slowest rank of each round, and of these rounds the parts of the median one."""
    by_round = zip(*(json.loads(record) for record in records), strict=True)
    slowest = [max(ranks, key=lambda rank: float(rank[0])) for ranks in by_round]
    counted = slowest[1:] or slowest
    middle = median_low([seconds for seconds, _ in counted])
    (parts, *_) = (parts for seconds, parts in counted if seconds == middle)
    return TriedRounds(
        ranks=session.transport.world_size,
        first=len(slowest) - len(counted) + 1,
        seconds=[seconds for seconds, _ in counted],
        parts={kind: parts[kind] for kind in PHASES if parts[kind] > 0},
        device=str(session.device),
        engine=engine,
    )
