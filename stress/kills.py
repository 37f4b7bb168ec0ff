"""SIGKILL to a random rank at a random moment, many inside a save, then the same command again.

What a run that was killed any number of times must come to is what it comes to without.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from .outcome import Outcome, progress, shorten
from .problem import arguments, differences, is_done, write_problem
from .ranks import Run, finished, load, start, wait_for

RANKS, CLIENTS, SIZE = 3, 18, 200
ROUNDS, EVERY = 60, 6
TIMEOUT = 60.0
"""comm.timeout, seconds: what a survivor may take."""


@dataclass
class _Seen:
    """What the kills came to."""

    kills: int = 0
    inside: int = 0  # a save
    finished: int = 0  # runs
    codes: Counter[int | None] = field(default_factory=Counter)  # of survivors
    slowest: float = 0.0  # seconds from a kill to the last survivor's end
    named: int = 0  # lines that name the rank that was killed
    line: str = ""
    wrong: list[str] = field(default_factory=list)  # with models, W or rows
    late: list[str] = field(default_factory=list)  # or loud survivors


def kills(
    count: int, folder: Path, seed: int = 0, rounds: int = ROUNDS, every: int = EVERY
) -> list[Outcome]:
    """Kill ranks of 3-rank runs `count` times, each time going on with run.resume=auto.

    A run has so many rounds, with a checkpoint after `every` of them.

    Half of the kills wait, from their random moment on, for the next save to begin.
    """
    began = time.monotonic()
    rng = random.Random(seed)
    run = arguments(write_problem(folder / "problem.npz", CLIENTS, SIZE), rounds, every)
    run += ["run.resume=auto", f"comm.timeout={TIMEOUT:g}"]
    whole = folder / "whole"
    load()
    started = time.monotonic()
    finished(RANKS, [*run, f"run.dir={whole}"], folder / "logs")
    span = time.monotonic() - started
    seen = _Seen()
    cut, killed, without = folder / "cut", 0, 0
    while seen.kills < count or killed:
        attempt = start(RANKS, [*run, f"run.dir={cut}"], folder / "logs")
        rank = rng.randrange(RANKS)
        moment, at_save = rng.uniform(0.0, span), rng.random() < 0.5
        inside = None
        if seen.kills < count:
            inside = _kill(attempt, rank, cut / "checkpoints", moment, at_save, span)
        attempt.mark()
        if inside is None:
            _end_well(attempt, seen)
        else:
            killed, seen.kills, seen.inside = killed + 1, seen.kills + 1, seen.inside + inside
            _end_without(attempt, rank, seen)
            progress("kills", seen.kills, count)
        if is_done(cut):
            name = f"seed {seed}, run {seen.finished}, after {killed} kills"
            seen.wrong += [f"{name}: {one}" for one in differences(whole, cut, rounds)]
            seen.finished += 1
            killed = without = 0
            shutil.rmtree(cut)
        elif inside is None and (without := without + 1) > 3:
            seen.wrong.append(f"seed {seed}: a run does not come to its end; {seen.line}")
            break
    seconds = time.monotonic() - began
    return [
        Outcome(
            f"{seen.kills} x SIGKILL to a random one of {RANKS} ranks at a random moment, then "
            "run.resume=auto",
            "every finished run has models, W and rows as without kills, bit by bit; each row once",
            f"{seen.finished} finished runs, {seen.inside} kills inside a save, "
            f"{len(seen.wrong)} differences",
            seconds,
            not seen.wrong and seen.finished > 0,
            details=seen.wrong,
        ),
        Outcome(
            "the ranks that survived them",
            f"end by themselves with code 1 within comm.timeout={TIMEOUT:g} s (2 where they were still "
            "connecting), and one of them says so",
            f"codes {dict(sorted(seen.codes.items(), key=str))}, the slowest after {seen.slowest:.1f} s; "
            f"{seen.named} of {seen.kills} times a line names the rank that was killed",
            seconds,
            not seen.late,
            seen.line,
            seen.late,
        ),
    ]


def _kill(
    run: Run, rank: int, checkpoints: Path, moment: float, at_save: bool, patience: float
) -> bool | None:
    """Kill a rank at a moment, or at the next save after it; return whether it was inside a save.

    None: the run had ended.
    """
    ended = wait_for(lambda: run.since() > moment, run, 10 * patience + 60)
    if not ended or not run.lives:
        return None
    if at_save and not wait_for(lambda: _is_saving(checkpoints), run, 10 * patience + 60):
        return None
    before = _is_saving(checkpoints)
    if not run.processes[rank].is_alive():
        return None
    run.signal(rank, signal.SIGKILL)
    return before and _is_saving(checkpoints)


def _is_saving(checkpoints: Path) -> bool:
    """Return whether a checkpoint is being written now, or an old one removed."""
    try:
        return any(name.endswith(".part") for name in os.listdir(checkpoints))
    except FileNotFoundError:
        return False


def _end_well(run: Run, seen: _Seen) -> None:
    for rank, one in run.end(10 * TIMEOUT).items():
        if one.code != 0:
            seen.late.append(
                f"rank {rank} of an attempt without a kill ended with {one.code}: {shorten(one.err)}"
            )
            seen.line = one.said[-1] if one.said else seen.line


def _end_without(run: Run, killed: int, seen: _Seen) -> None:
    failed, lines = False, list[str]()
    for rank, one in run.end(TIMEOUT + 15.0).items():
        if rank == killed:
            continue
        seen.codes[one.code] += 1
        seen.slowest = max(seen.slowest, one.seconds)
        # Where the last round was over, others may be done; before all have met, they could not connect.
        quiet = len(one.said) < (2 if one.code else 1)
        if one.code not in (0, 1, 2) or not quiet or "Traceback" in one.err:
            seen.late.append(f"rank {rank} ended with {one.code}: {shorten(one.err)}")
        failed, lines = failed or one.code == 1, lines + one.said
    if failed and not lines:
        seen.late.append(f"nobody said that rank {killed} was lost")
    about = [line for line in lines if f"rank {killed} on" in line]
    seen.named += bool(about)
    seen.line = (about or lines or [seen.line])[0]
