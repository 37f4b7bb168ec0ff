"""Checkpoints with a file truncated, removed, or changed by one bit: each must be detected and skipped."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from .outcome import Outcome, progress, shorten
from .problem import arguments, differences, write_problem
from .ranks import environment

ROUNDS, EVERY = 24, 8
DAMAGES = ("truncated", "one bit changed", "removed")


def corruptions(count: int, folder: Path, seed: int = 0) -> list[Outcome]:
    """Damage one file of the newest checkpoint `count` times, and resume; all in this process.

    Every tenth time all checkpoints are damaged, which must be refused. Files and damages take turns, so that
    each file gets each damage; the position within a file is random.
    """
    began = time.monotonic()
    rng = random.Random(seed)
    run = arguments(write_problem(folder / "problem.npz"), ROUNDS, EVERY, "run.threads=1")
    whole, cut, sound = folder / "whole", folder / "cut", folder / "sound"
    code, text = train([*run, f"run.dir={whole}"])
    if code != 0:
        raise RuntimeError(text)
    shutil.copytree(whole, sound)
    for name in ("summary.json", "status.json"):  # as if the run was killed just before the end
        (sound / name).unlink()
    newest = max((sound / "checkpoints").iterdir())
    names = sorted(path.name for path in newest.iterdir())
    turns = [(name, damage) for name in names for damage in DAMAGES]
    rng.shuffle(turns)
    wrong, silent, lines = [], 0, {True: "", False: ""}
    tried: Counter[str] = Counter()
    for number in range(count):
        shutil.rmtree(cut, ignore_errors=True)
        shutil.copytree(sound, cut)
        none_good = number % 10 == 9
        name, damage = turns[number % len(turns)]
        targets = sorted((cut / "checkpoints").iterdir(), reverse=True)
        where = [
            _damage(target / name, damage, rng)
            for target in (targets if none_good else targets[:1])
        ]
        tried[damage] += 1
        code, text = train([*run, f"run.dir={cut}", "run.resume=auto"])
        named = str(targets[0] / name) in text
        lines_about = [line for line in text.splitlines() if targets[0].name in line]
        lines[none_good] = lines_about[0] if lines_about else lines[none_good]
        if none_good:
            fine = code == 2 and named and "no checkpoint is good" in text and len(lines_about) == 1
            found: list[str] = []
        else:
            fine = code == 0 and named and "goes on after round" in text
            found = differences(whole, cut, ROUNDS) if code == 0 else ["it has no result"]
        silent += not named
        if not fine or found or "Traceback" in text:
            wrong.append(
                f"seed {seed}, number {number}, {name} {damage} {where[0]}: code {code}, {found}; "
                f"{shorten(text)}"
            )
        progress("corruption", number + 1, count)
    did = ", ".join(f"{times} x {damage}" for damage, times in sorted(tried.items()))
    alone = count // 10
    return [
        Outcome(
            f"one of the {len(names)} files of the newest checkpoint: {did}",
            "detected, the file named, the previous checkpoint used, the same result as without damage",
            f"{silent} silent, {len(wrong)} wrong of {count}",
            time.monotonic() - began,
            not wrong and not silent,
            lines[False],
            wrong,
        ),
        Outcome(
            f"the same file of all checkpoints ({alone} of them)",
            "refused with code 2, the file named",
            "as in the row above" if alone else "not among so few",
            0.0,
            (not wrong and not silent) if alone else None,
            lines[True],
        ),
    ]


def train(given: list[str]) -> tuple[int, str]:
    """Train in this process; return the exit code and all output."""
    from cobo_dist.cli.train import main

    said = StringIO()
    with environment(), redirect_stdout(said), redirect_stderr(said):
        code = main(given)
    return code, said.getvalue()


def _damage(path: Path, damage: str, rng: random.Random) -> str:
    """Damage a file; return where."""
    content = bytearray(path.read_bytes())
    if damage == "removed":
        path.unlink()
        return ""
    place = rng.randrange(len(content))
    if damage == "truncated":
        path.write_bytes(content[:place])
        return f"to {place} of {len(content)} bytes"
    bit = rng.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"at bit {bit} of byte {place}"
