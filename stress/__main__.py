"""Runs that are killed, cut off, starved and lied to: what was done, what should come of it, what does.

python -m stress [--only PART ...] [sizes]

Parts are kills, restarts, elastic, resume, corruption, endings, fuzz and soak, each in stress/.
All take place in a temporary folder, with small problems on CPU. The exit code is 0 if everything held that
could be tried here, and 1 otherwise; what did not hold is printed under the table with its seed. Endings with
a full disk or a read-only folder mount small file systems, which needs root, and are skipped without.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from stress.corruption import corruptions
from stress.endings import ENDINGS, endings
from stress.fuzz import fuzz, one
from stress.kills import kills
from stress.launched import elastic, restarts
from stress.outcome import Outcome, show
from stress.resuming import resuming
from stress.soak import soak


def main() -> int:
    """Try the parts that the arguments name, print the table, return the exit code."""
    given = parse()
    parts: dict[str, Callable[[Path], list[Outcome]]] = {
        "kills": lambda folder: kills(given.kills, folder, given.seed),
        "restarts": lambda folder: restarts(given.restarts, folder, seed=given.seed),
        "elastic": elastic,
        "resume": resuming,
        "corruption": lambda folder: corruptions(given.corruptions, folder, given.seed),
        "endings": lambda folder: endings(folder, given.endings, given.timeout, given.slack),
        "fuzz": lambda folder: fuzz(
            given.configs, given.files, folder, given.seed, 100.0 + given.slack
        ),
        "soak": lambda folder: soak(given.soak, folder),
    }
    if given.case:
        kind, _, seed = given.case.partition(":")
        parts["fuzz"] = lambda folder: one(kind, int(seed), folder, 100.0 + given.slack)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as place:
        for name in given.only or parts:
            folder = Path(place) / name
            folder.mkdir()
            began = time.monotonic()
            try:
                outcomes += parts[name](folder)
            except Exception as error:  # the table of the others must not be lost
                took = time.monotonic() - began
                outcomes.append(
                    Outcome(
                        name, "that it can be tried", repr(error), took, False, details=[str(error)]
                    )
                )
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    show(outcomes)
    return int(any(outcome.held is False for outcome in outcomes))


def parse() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ("kills", "restarts", "elastic", "resume", "corruption", "endings", "fuzz", "soak")
    parser.add_argument("--only", nargs="+", choices=names, help="these parts (default: all)")
    for name, default, about in (
        ("kills", 100, "ranks killed"),
        ("restarts", 3, "workers killed under torchrun"),
        ("corruptions", 200, "checkpoints harmed"),
        ("configs", 1000, "random configs"),
        ("files", 200, "malformed files"),
        ("soak", 20_000, "rounds of the long run"),
        ("seed", 0, "of all that is random"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{about} ({default})"
        )
    parser.add_argument(
        "--endings", nargs="+", choices=ENDINGS, default=(), help="these endings (all)"
    )
    parser.add_argument(
        "--timeout", type=float, default=8.0, help="comm.timeout of the endings, s (8)"
    )
    parser.add_argument(
        "--slack",
        type=float,
        default=20.0,
        help="seconds that a busy machine may take beyond it (20)",
    )
    parser.add_argument(
        "--case", metavar="KIND:SEED", help="with --only fuzz: this case, with all it prints"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
