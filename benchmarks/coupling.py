"""The price of the capped coupling: seconds and bytes of a round, beside the explicit step.

    python benchmarks/coupling.py [--only WORK ...] [--ranks 1 2 4] [--repeats 5]

Runs alternate between the two, with W held at ones, so that mixing is dense in every round. Prints medians
over repeats of the median seconds a round, their ratio, and the bytes that all ranks send in a round. The
capped coupling sends more for the degrees of W: a number of each client, from its rank to the others.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
from pathlib import Path

import pandas as pd
import torch
from made_up import make_images, with_images
from markdown_table import markdown
from measured_runs import train

WARM = 8  # rounds that are not timed
WORKS = {
    "80 digits MLPs": (200, ("task.name=digits", "task.clusters=10", "task.clients_per_cluster=8")),
    "8 ResNet-9, width 8": (
        24, ("task.name=cross_silo", "model.name=resnet9", "model.width=8", "model.dropout=0"),
    ),
}  # fmt: skip
COUPLINGS = ("explicit", "capped")
FIXED = (
    "algorithm.gamma=0", "algorithm.rho=0.01", "optimizer.lr=0.01", "run.threads=1", "run.eval_every=0",
    "run.log_weights_every=0", "run.checkpoint_every=0", "log.figures=false", "log.progress=none",
    "run.overwrite=true",
)  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=WORKS, metavar="WORK", default=list(WORKS))
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=5, help="alternating runs of each")
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}\n")
    with tempfile.TemporaryDirectory() as place:
        images = make_images(Path(place) / "images.npz", 2_000, 200)
        rows: list[dict[str, object]] = []
        for name in options.only:
            for ranks in options.ranks:
                rows.append(measured(name, ranks, options.repeats, images, Path(place)))
                lines = markdown(pd.DataFrame(rows)).splitlines()
                print("\n".join(lines if len(rows) == 1 else lines[-1:]), flush=True)


def measured(name: str, ranks: int, repeats: int, images: Path, place: Path) -> dict[str, object]:
    """Return a row of the table: one work on some ranks."""
    rounds, settings = WORKS[name]
    seconds: dict[str, list[float]] = {one: [] for one in COUPLINGS}
    sent: dict[str, float] = {}
    for _ in range(repeats):
        for one in COUPLINGS:
            given = [
                *with_images(settings, images),
                *FIXED,
                f"run.rounds={rounds}",
                f"algorithm.coupling={one}",
            ]
            rows = [row for row in train(given, ranks, place / "run") if row["event"] == "round"]
            seconds[one].append(statistics.median(row["seconds"] for row in rows[WARM:]))
            sent[one] = statistics.mean(row["bytes_sent"] for row in rows)
    explicit, capped = (statistics.median(seconds[one]) for one in COUPLINGS)
    return {
        "work": name,
        "ranks": ranks,
        "explicit, s": explicit,
        "capped, s": capped,
        "ratio": capped / explicit,
        "explicit, MB": sent["explicit"] / 1e6,
        "capped more, bytes": f"{sent['capped'] - sent['explicit']:.0f}",
    }


if __name__ == "__main__":
    main()
