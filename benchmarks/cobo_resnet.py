"""CoBo on 8 ResNet-9 in bfloat16, against the authors' code.

python benchmarks/cobo_resnet.py [--repeats 1]

The authors' code is not run. One measurement beside the float32 compute floor found 1.34 times the floor's
time for the same passes, and 6.9 GB at its peak; the floor of this machine times 1.34 is used as its time.
Prints seconds a round of the float32 floor, and of ours in float32 and with bfloat16 autocast and channels
last, on 2 ranks of one thread; the speed-up over 1.34 floors; and the peak memory of both ranks together.
The memory of a process that has only imported torch and cobo_dist is printed separately; library pages that
both ranks share count twice.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import floor
import torch
from made_up import make_images
from memory import BARE

WORK, METHOD = "8 ResNet-9", "cobo"
AUTHORS_FLOORS = 1.34  # time of a round in float32 floors
AUTHORS_PEAK_BYTES = 6.9e9
TARGET_SPEEDUP, TARGET_MEMORY_FACTOR = 3.0, 5.0
GB = 1e9


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=1, help="alternating runs of each")
    parser.add_argument("--allocator", choices=("default", "kept"), default="kept")
    given = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {floor.RANKS} ranks of 1 "
        f"thread; CoBo, {WORK} of width 64, batch 32, allocator {given.allocator}\n"
    )
    seconds: dict[str, list[float]] = {"floor": [], "fp32": [], "bf16": []}
    peaks: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory() as place:
        images = make_images(Path(place) / "images.npz", 8_000, 1_000)
        for _ in range(given.repeats):
            for kind in ("fp32", "bf16"):
                how = argparse.Namespace(
                    allocator=given.allocator, bf16=kind == "bf16", backend="gloo"
                )
                took, engine, settings = floor._ours(
                    WORK, METHOD, images, Path(place), how, "one_by_one"
                )
                seconds[kind].append(took)
                peaks[kind] = peaks_of(Path(place) / "run")
                if kind == "fp32":
                    seconds["floor"].append(floor._floor(WORK, METHOD, settings, engine, how))
    bare = int(subprocess.run([sys.executable, "-c", BARE], capture_output=True, check=True).stdout)
    show({kind: statistics.median(some) for kind, some in seconds.items()}, peaks, bare)


def peaks_of(run: Path) -> list[int]:
    """Return the peak memory of each rank in bytes."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (traffic,) = [line for line in map(json.loads, lines) if line["event"] == "traffic"]
    found: list[int] = traffic["peak_bytes"]
    return found


def show(seconds: dict[str, float], peaks: dict[str, list[int]], bare: int) -> None:
    """Print the table."""
    authors = AUTHORS_FLOORS * seconds["floor"]
    print(f"{'':34}{'s a round':>10}{'authors / this':>16}{'peak GB':>9}{'authors / this':>16}")
    print(f"{'float32 floor':34}{seconds['floor']:>10.3f}")
    title, peak = "authors: 1.34 floors, 6.9 GB", AUTHORS_PEAK_BYTES
    print(f"{title:34}{authors:>10.3f}{'1':>16}{peak / GB:>9.2f}{'1':>16}")
    for kind, words in (("fp32", "float32"), ("bf16", "bfloat16, channels last")):
        peak = float(sum(peaks[kind]))
        print(
            f"{'ours, ' + words:34}{seconds[kind]:>10.3f}{authors / seconds[kind]:>16.2f}"
            f"{peak / GB:>9.2f}{AUTHORS_PEAK_BYTES / peak:>16.2f}"
        )
    ranks = ", ".join(f"{peak / GB:.2f}" for peak in peaks["bf16"])
    print(f"\ntarget: {TARGET_SPEEDUP:g} times faster, {1 / TARGET_MEMORY_FACTOR:g} of the memory")
    print(f"bfloat16: {ranks} GB on the ranks, of which an idle process takes {bare / GB:.2f}")


if __name__ == "__main__":
    main()
