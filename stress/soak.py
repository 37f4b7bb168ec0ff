"""Memory and open files of each rank in a long run of a small problem."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from statistics import median

from .outcome import Outcome, progress
from .problem import QUIET, is_done, write_problem
from .ranks import start, wait_for

RANKS = 2
MAX_GROWTH = 0.02
"""Allowed growth of resident memory from the second quarter of the rounds to the last, as a share."""


def soak(rounds: int, folder: Path, patience: float = 24 * 3600.0) -> list[Outcome]:
    """Train on 2 ranks with evaluation, logging and checkpoints, and sample memory and open files."""
    began = time.monotonic()
    out = folder / "run"
    run = start(
        RANKS,
        [
            *QUIET, "task.name=quadratic", f"task.file={write_problem(folder / 'problem.npz')}",
            "task.noise=0.1", "optimizer.lr=0.05", "optimizer.name=ema_momentum", "optimizer.momentum=0.9",
            f"run.rounds={rounds}", f"run.eval_every={max(1, rounds // 200)}",
            f"run.log_weights_every={max(1, rounds // 40)}", f"run.checkpoint_every={max(1, rounds // 40)}",
            "run.threads=1", f"run.dir={out}",
        ],
        folder / "logs",
    )  # fmt: skip
    wait_for(lambda: (out / "metrics.jsonl").exists(), run, 600.0)
    ids = {rank: process.pid for rank, process in run.processes.items()}
    samples: list[tuple[int, dict[int, tuple[int, int]]]] = []  # round: rank -> (bytes, open files)
    with (out / "metrics.jsonl").open("rb") as log:
        r = 0
        while run.is_alive and time.monotonic() - began < patience:
            before, r = r, r + sum(b'"event": "round"' in line for line in log)
            progress("soak", r, rounds, r - before)
            try:
                samples.append((r, {rank: _held(process) for rank, process in ids.items()}))
            except OSError:  # it ended just now
                break
            time.sleep(0.1 if rounds < 5000 else 0.5)
    ended = run.end(patience)
    wrong = [f"rank {rank}: code {one.code}: {one.err}" for rank, one in ended.items() if one.code]
    wrong += [] if is_done(out) else ["the run is not complete"]
    # After the last round, ranks gather models to write them: these samples do not count.
    samples = [(r, held) for r, held in samples if r < rounds]
    words = []
    for rank in ids:
        second, last = (
            [held[rank] for r, held in samples if low <= r < high]
            for low, high in ((rounds // 4, rounds // 2), (rounds - rounds // 4, rounds))
        )
        if not second or not last:
            wrong.append(f"rank {rank}: too few samples ({len(second)} and {len(last)})")
            continue
        before, after = (median(size for size, _ in part) for part in (second, last))
        growth = after / before - 1
        files = [max(count for _, count in part) for part in (second, last)]
        words.append(
            f"rank {rank}: {before / 2**20:.1f} MiB, {growth:+.2%}, {files[0]} and {files[1]} open files"
        )
        if growth > MAX_GROWTH:
            wrong.append(f"rank {rank} grew by {growth:.2%}")
        if files[1] > files[0]:
            wrong.append(f"rank {rank} had {files[0]} files open, and then {files[1]}")
    return [
        Outcome(
            f"{rounds} rounds on {RANKS} ranks with evaluation, logs and checkpoints",
            f"last quarter's memory within {MAX_GROWTH:.0%} of the second's; open files no more",
            f"{'; '.join(words)}; {len(samples)} samples",
            time.monotonic() - began,
            not wrong,
            details=wrong,
        )
    ]


def _held(process: int) -> tuple[int, int]:
    """Return a process's resident bytes and its number of open files."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * resource.getpagesize(), len(os.listdir(f"/proc/{process}/fd"))
