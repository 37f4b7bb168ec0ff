"""SIGKILL to a random rank at a random moment, often inside a save, then the same command again.

A run that was killed any number of times must have the same result as a run that was never killed.
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
"""comm.timeout in seconds: a surviving rank must end within it."""
CONNECT = 20.0
"""comm.connect_timeout in seconds. Only a launcher knows of a rank that is killed before it has connected."""


@dataclass
class _Counts:
    """The results of all kills."""

    kills: int = 0
    inside: int = 0  # a save
    finished: int = 0  # runs
    codes: Counter[int | None] = field(default_factory=Counter)  # of survivors
    slowest: float = 0.0  # seconds from a kill to the last survivor's end
    named: int = 0  # lines that name the rank that was killed
    line: str = ""
    wrong: list[str] = field(default_factory=list)  # with models, W or rows
    late: list[str] = field(default_factory=list)  # survivors: late, or with a stack trace


def kills(
    count: int, folder: Path, seed: int = 0, rounds: int = ROUNDS, every: int = EVERY
) -> list[Outcome]:
    """Kill ranks of 3-rank runs `count` times, and resume each time with run.resume=auto.

    Half of the kills wait, after their random moment, until the next save begins.
    """
    began = time.monotonic()
    rng = random.Random(seed)
    run = arguments(write_problem(folder / "problem.npz", CLIENTS, SIZE), rounds, every)
    run += ["run.resume=auto", f"comm.timeout={TIMEOUT:g}", f"comm.connect_timeout={CONNECT:g}"]
    whole = folder / "whole"
    load()
    started = time.monotonic()
    finished(RANKS, [*run, f"run.dir={whole}"], folder / "logs")
    span = time.monotonic() - started
    counts = _Counts()
    cut, killed, without = folder / "cut", 0, 0
    while counts.kills < count or killed:
        attempt = start(RANKS, [*run, f"run.dir={cut}"], folder / "logs")
        rank = rng.randrange(RANKS)
        moment, at_save = rng.uniform(0.0, span), rng.random() < 0.5
        inside = None
        if counts.kills < count:
            inside = _kill(attempt, rank, cut / "checkpoints", moment, at_save, span)
        attempt.restart_clock()
        if inside is None:
            _end_well(attempt, counts)
        else:
            killed, counts.kills, counts.inside = (
                killed + 1,
                counts.kills + 1,
                counts.inside + inside,
            )
            _end_without(attempt, rank, counts)
            progress("kills", counts.kills, count)
        if is_done(cut):
            name = f"seed {seed}, run {counts.finished}, after {killed} kills"
            counts.wrong += [f"{name}: {one}" for one in differences(whole, cut, rounds)]
            counts.finished += 1
            killed = without = 0
            shutil.rmtree(cut)
        elif inside is None and (without := without + 1) > 3:
            counts.wrong.append(f"seed {seed}: a run does not come to its end; {counts.line}")
            break
    seconds = time.monotonic() - began
    return [
        Outcome(
            f"{counts.kills} x SIGKILL to a random one of {RANKS} ranks at a random moment, then "
            "run.resume=auto",
            "every finished run has bitwise the same models, W and rows as without kills; each row once",
            f"{counts.finished} finished runs, {counts.inside} kills inside a save, "
            f"{len(counts.wrong)} differences",
            seconds,
            not counts.wrong and counts.finished > 0,
            details=counts.wrong,
        ),
        Outcome(
            "the ranks that survived them",
            f"end by themselves with code 1 within comm.timeout={TIMEOUT:g} s (2 where they were still "
            "connecting), and one of them says so",
            f"codes {dict(sorted(counts.codes.items(), key=str))}, the slowest after {counts.slowest:.1f} s; "
            f"{counts.named} of {counts.kills} times a line names the rank that was killed",
            seconds,
            not counts.late,
            counts.line,
            counts.late,
        ),
    ]


def _kill(
    run: Run, rank: int, checkpoints: Path, moment: float, at_save: bool, patience: float
) -> bool | None:
    """Kill a rank at a moment, or at the next save after it; return whether it was inside a save.

    None: the run had ended.
    """
    ended = wait_for(lambda: run.since() > moment, run, 10 * patience + 60)
    if not ended or not run.is_alive:
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


def _end_well(run: Run, counts: _Counts) -> None:
    for rank, one in run.end(10 * TIMEOUT).items():
        if one.code != 0:
            counts.late.append(
                f"rank {rank} of an attempt without a kill ended with {one.code}: {shorten(one.err)}"
            )
            counts.line = one.said[-1] if one.said else counts.line


def _end_without(run: Run, killed: int, counts: _Counts) -> None:
    failed, lines = False, list[str]()
    for rank, one in run.end(TIMEOUT + 15.0).items():
        if rank == killed:
            continue
        counts.codes[one.code] += 1
        counts.slowest = max(counts.slowest, one.seconds)
        # After the last round, other ranks may be done; during start-up, they could not connect.
        quiet = len(one.said) < (2 if one.code else 1)
        if one.code not in (0, 1, 2) or not quiet or "Traceback" in one.err:
            counts.late.append(f"rank {rank} ended with {one.code}: {shorten(one.err)}")
        failed, lines = failed or one.code == 1, lines + one.said
    if failed and not lines:
        counts.late.append(f"no message says that rank {killed} was lost")
    # A rank that never connected is named without its host.
    names = (f"rank {killed} on", f"rank(s) {killed} of", f"rank {killed} of")
    about = [line for line in lines if any(name in line for name in names)]
    counts.named += bool(about)
    counts.line = (about or lines or [counts.line])[0]
