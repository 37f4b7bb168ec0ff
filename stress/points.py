"""SIGKILL to a rank at a named point of a run, with the default time-outs: is it named, and how soon?"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .outcome import Outcome, progress, shorten
from .problem import arguments, write_problem
from .ranks import load, start

RANKS, CLIENTS, SIZE = 3, 9, 200
ROUNDS, EVERY = 12, 6
LATEST_SECONDS = 15.0
"""From the kill to the end of the last survivor."""

POINTS = {
    "connect": ("comm.startup.handshake", "Handshake", "_await_verdict"),
    "handshake": ("comm.startup.handshake", "Handshake", "_follow"),
    "group": ("comm.session", "", "_init_process_group"),
    "data": ("training.run", "", "prepare"),
    "claim": ("training.startup", "", "claim"),
    "first round": ("algorithms.cobo", "CoBo", "round"),
    "save": ("checkpoint.writer", "CheckpointWriter", "begin"),
    "finish": ("training.run", "", "finish"),
}
"""Module, class and function at whose first call the rank is killed. connect: it has described itself to
rank 0, which itself is killed when all others have come."""


def inject_kill(point: str, rank: int) -> None:
    """Let a rank kill itself as it comes to the point."""
    if os.environ["RANK"] != str(rank):
        return
    module, owner, name = POINTS[point]
    place = importlib.import_module(f"cobo_dist.{module}")
    if owner:
        place = getattr(place, owner)
    if rank == 0 and point == "connect":
        name = "_check_reachability"
    setattr(place, name, lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL))


@dataclass
class _Counts:
    """The kills at one point."""

    kills: int = 0
    named: int = 0
    slowest: float = 0.0
    line: str = ""
    wrong: list[str] = field(default_factory=list)


def points(count: int, folder: Path, which: Sequence[str] = ()) -> list[Outcome]:
    """Kill ranks 0, 1, 2 in turn at each of the points, `count` times in all; return a row for each point."""
    which = which or list(POINTS)
    problem = write_problem(folder / "problem.npz", CLIENTS, SIZE)
    load()
    outcomes, done = [], 0
    for index, point in enumerate(which):
        began, counts = time.monotonic(), _Counts()
        for turn in range(count * index // len(which), count * (index + 1) // len(which)):
            out = folder / "run"
            _kill(
                point, turn % RANKS, [*arguments(problem, ROUNDS, EVERY), f"run.dir={out}"], counts
            )
            shutil.rmtree(out, ignore_errors=True)
            progress("points", done := done + 1, count)
        outcomes.append(
            Outcome(
                f"{counts.kills} x SIGKILL at the point: {point}",
                f"the rank is named; all others end within {LATEST_SECONDS:g} s, with default time-outs",
                f"{counts.named} of {counts.kills} named, the last rank after {counts.slowest:.1f} s",
                time.monotonic() - began,
                not counts.wrong,
                counts.line,
                counts.wrong,
            )
        )
    return outcomes


def _kill(point: str, rank: int, run: list[str], counts: _Counts) -> None:
    """Kill the rank at the point, and count how the others end."""
    logs = Path(run[-1].removeprefix("run.dir=")).parent / "logs"
    attempt = start(RANKS, run, logs, fault=(inject_kill, (point, rank)))
    attempt.wait(60.0, [rank])
    attempt.restart_clock()
    ended = attempt.end(2 * LATEST_SECONDS)
    others = {other: one for other, one in ended.items() if other != rank}
    seconds = max(one.seconds for one in others.values())
    lines = [line for one in others.values() for line in one.said]
    about = [line for line in lines if f"rank {rank} on" in line]
    counts.kills += 1
    counts.named += bool(about)
    counts.slowest = max(counts.slowest, seconds)
    counts.line = (about or lines or [counts.line])[0]
    what = f"{point}, rank {rank} killed"
    if not about:
        counts.wrong.append(f"{what}: no line names it, but {lines}")
    if seconds > LATEST_SECONDS:
        counts.wrong.append(f"{what}: the last rank ended after {seconds:.1f} s")
    for other, one in others.items():
        finished = point == "finish" and one.code == 0  # it had sent rank 0 its last record
        if (one.code not in (1, 2) and not finished) or "Traceback" in one.err:
            counts.wrong.append(f"{what}: rank {other} ended with {one.code}: {shorten(one.err)}")
