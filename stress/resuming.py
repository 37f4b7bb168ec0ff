"""N rounds, resumed for N more on another number of ranks, equal 2 N rounds."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from .outcome import Outcome
from .problem import RANK_KEYS, arguments, differences, write_problem
from .ranks import finished


def resuming(folder: Path, counts: Sequence[int] = (1, 2, 3), half: int = 40) -> list[Outcome]:
    """Compare every pair of numbers of ranks, in this order, with an uninterrupted run on one rank."""
    began = time.monotonic()
    problem = write_problem(folder / "problem.npz")
    whole, logs = folder / "whole", folder / "logs"
    run = arguments(problem, 2 * half, 10)
    finished(1, [*run, f"run.dir={whole}"], logs)
    wrong = []
    for first in counts:
        begun = folder / f"half-{first}"
        finished(first, [*arguments(problem, half, 10), f"run.dir={begun}"], logs)
        for second in counts:
            both = folder / f"{first}-{second}"
            shutil.copytree(begun, both)
            finished(second, [*run, f"run.dir={both}", "run.resume=auto"], logs)
            # Warnings about W at the end of a run differ between the half run and the whole one.
            found = differences(whole, both, 2 * half, RANK_KEYS, ("traffic", "warning"))
            wrong += [f"{first} ranks, then {second}: {one}" for one in found]
    return [
        Outcome(
            f"{half} rounds on a ranks, resumed for {half} more on b; a, b in {list(counts)}",
            f"models, W and rows of {2 * half} rounds on one rank, bit by bit",
            f"{len(counts) ** 2} combinations, {len(wrong)} differences",
            time.monotonic() - began,
            not wrong,
            details=wrong,
        )
    ]
