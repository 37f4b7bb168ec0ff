"""Checkpoints with a file cut short, removed, or changed by one bit: noticed, named, passed over."""

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
HARMS = ("cut short", "one bit changed", "removed")


def corruptions(count: int, folder: Path, seed: int = 0) -> list[Outcome]:
    """Harm one file of the newest checkpoint `count` times, and go on; all in this process.

    Every tenth time all checkpoints are harmed, which must be refused. Files and harms take turns, so that
    each file meets each harm; the place within a file is random.
    """
    began = time.monotonic()
    rng = random.Random(seed)
    run = arguments(write_problem(folder / "problem.npz"), ROUNDS, EVERY, "run.threads=1")
    whole, cut, held = folder / "whole", folder / "cut", folder / "held"
    code, text = train([*run, f"run.dir={whole}"])
    if code != 0:
        raise RuntimeError(text)
    shutil.copytree(whole, held)
    for name in ("summary.json", "status.json"):  # as if killed just before the end
        (held / name).unlink()
    newest = max((held / "checkpoints").iterdir())
    names = sorted(path.name for path in newest.iterdir())
    turns = [(name, harm) for name in names for harm in HARMS]
    rng.shuffle(turns)
    wrong, silent, lines = [], 0, {True: "", False: ""}
    tried: Counter[str] = Counter()
    for number in range(count):
        shutil.rmtree(cut, ignore_errors=True)
        shutil.copytree(held, cut)
        none_good = number % 10 == 9
        name, harm = turns[number % len(turns)]
        targets = sorted((cut / "checkpoints").iterdir(), reverse=True)
        where = [
            _harm(target / name, harm, rng) for target in (targets if none_good else targets[:1])
        ]
        tried[harm] += 1
        code, text = train([*run, f"run.dir={cut}", "run.resume=auto"])
        named = str(targets[0] / name) in text
        told = [line for line in text.splitlines() if targets[0].name in line]
        lines[none_good] = told[0] if told else lines[none_good]
        if none_good:
            fine = code == 2 and named and "no checkpoint is good" in text and len(told) == 1
            found: list[str] = []
        else:
            fine = code == 0 and named and "goes on after round" in text
            found = differences(whole, cut, ROUNDS) if code == 0 else ["it has no result"]
        silent += not named
        if not fine or found or "Traceback" in text:
            wrong.append(
                f"seed {seed}, number {number}, {name} {harm} {where[0]}: code {code}, {found}; "
                f"{shorten(text)}"
            )
        progress("corruption", number + 1, count)
    did = ", ".join(f"{times} x {harm}" for harm, times in sorted(tried.items()))
    alone = count // 10
    return [
        Outcome(
            f"one of the {len(names)} files of the newest checkpoint: {did}",
            "noticed, the file named, the checkpoint before used, the result as without",
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
    """Train in this process; return the code and all that was printed."""
    from cobo_dist.cli.train import main

    said = StringIO()
    with environment(), redirect_stdout(said), redirect_stderr(said):
        code = main(given)
    return code, said.getvalue()


def _harm(path: Path, harm: str, rng: random.Random) -> str:
    """Do it; return where."""
    content = bytearray(path.read_bytes())
    if harm == "removed":
        path.unlink()
        return ""
    place = rng.randrange(len(content))
    if harm == "cut short":
        path.write_bytes(content[:place])
        return f"to {place} of {len(content)} bytes"
    bit = rng.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"at bit {bit} of byte {place}"
