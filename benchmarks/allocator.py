"""The cost of glibc's allocator: seconds a round with default thresholds and with raised ones.

python benchmarks/allocator.py [--only WORK ...] [--repeats 2] [--bf16]

By default glibc returns large blocks to the system when they are freed, so every pass causes a page fault
for each 4 KiB of its activations. Prints seconds a round of the compute floor of `floor.py` (a bare PyTorch
loop in 2 processes, FedAvg) under both settings, in alternating runs.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
from pathlib import Path

import floor
import torch
from made_up import make_images, with_images

SETTINGS = ("default", "kept")
METHOD = "fedavg"


def main() -> None:
    """Measure and print."""
    works = [name for name in floor.WORKS if name != "80 digits MLPs"]  # its blocks are small
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=works, default=works, help="some of the works")
    parser.add_argument("--repeats", type=int, default=2, help="alternating runs of each")
    parser.add_argument("--bf16", action="store_true", help="autocast, channels last")
    given = parser.parse_args()
    kept = " ".join(f"{name}={value}" for name, value in floor.KEPT.items())
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {' '.join(platform.libc_ver())}, torch "
        f"{torch.__version__}, {'bf16 autocast' if given.bf16 else 'fp32'}\nkept: {kept}\n"
    )
    print(f"{'work':18}{'default s':>11}{'kept s':>11}{'default / kept':>16}")
    with tempfile.TemporaryDirectory() as place:
        images = make_images(Path(place) / "images.npz", 8_000, 1_000)
        for name in given.only:
            seconds: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
            settings = with_images(floor.WORKS[name].settings, images)
            for _ in range(given.repeats):
                for setting in SETTINGS:
                    how = argparse.Namespace(allocator=setting, bf16=given.bf16)
                    took = floor._floor(name, METHOD, settings, "one_by_one", how)
                    seconds[setting].append(took)
            default, raised = (statistics.median(seconds[setting]) for setting in SETTINGS)
            print(f"{name:18}{default:>11.4f}{raised:>11.4f}{default / raised:>16.2f}", flush=True)


if __name__ == "__main__":
    main()
