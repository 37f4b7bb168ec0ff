"""Stress tests: runs that are killed, stopped, and given full disks, damaged checkpoints and malformed files.

python -m stress [--only PART ...] [sizes]

Parts are kills, points, restarts, elastic, resume, corruption, endings, network, fuzz and soak, each in
stress/. All run in a temporary folder, on small problems and on CPU. The table lists what was done, the
expected and the observed result. Failures are printed below it with their seeds. The exit code is 0 if all
tests passed or were skipped, and 1 otherwise. Endings with a full disk or a read-only folder mount small
file systems, which needs root; without root they are skipped. So is the network, whose hosts are network
namespaces.
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
from stress.network import FAULTS, network
from stress.outcome import Outcome, show
from stress.points import points
from stress.resuming import resuming
from stress.soak import soak


def main() -> int:
    """Run the parts that the arguments name, print the table, return the exit code."""
    given = parse()
    parts: dict[str, Callable[[Path], list[Outcome]]] = {
        "kills": lambda folder: kills(given.kills, folder, given.seed),
        "points": lambda folder: points(given.points, folder),
        "restarts": lambda folder: restarts(given.restarts, folder, seed=given.seed),
        "elastic": elastic,
        "resume": resuming,
        "corruption": lambda folder: corruptions(given.corruptions, folder, given.seed),
        "endings": lambda folder: endings(folder, given.endings, given.timeout, given.slack),
        "network": lambda folder: network(folder, given.faults, given.timeout, given.slack),
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
            except Exception as error:  # keep the results of the other parts
                took = time.monotonic() - began
                outcomes.append(
                    Outcome(name, "no exception", repr(error), took, False, details=[str(error)])
                )
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    show(outcomes)
    return int(any(outcome.passed is False for outcome in outcomes))


def parse() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m stress",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = (
        "kills", "points", "restarts", "elastic", "resume", "corruption", "endings", "network", "fuzz",
        "soak",
    )  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=names, help="these parts (default: all)")
    for name, default, about in (
        ("kills", 100, "ranks killed at random moments"),
        ("points", 100, "ranks killed at named points"),
        ("restarts", 3, "workers killed under torchrun"),
        ("corruptions", 200, "checkpoints damaged"),
        ("configs", 1000, "random configs"),
        ("files", 200, "malformed files"),
        ("soak", 20_000, "rounds of the long run"),
        ("seed", 0, "seed of all random choices"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{about} ({default})"
        )
    parser.add_argument(
        "--endings", nargs="+", choices=ENDINGS, default=(), help="these endings (all)"
    )
    parser.add_argument(
        "--faults", nargs="+", choices=FAULTS, default=(), help="these faults of the network (all)"
    )
    parser.add_argument(
        "--timeout", type=float, default=8.0, help="comm.timeout of endings and network, s (8)"
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
