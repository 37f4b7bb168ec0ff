"""What a rank's memory holds, counted and measured.

python benchmarks/memory.py [key=value ...]

Trains two rounds of 80 ResNet-9 of width 16 on 2 ranks with CoBo and momentum, on as many made-up images as
CIFAR-100 has. Prints what `cobo_dist.plan` counts for a rank beside the peak of each process. The rest is a
batch's activations and what allocators keep. Settings are those of `cobo_dist.train`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from made_up import make_images
from measured_runs import MIB, bare_bytes, counted, peaks, train

RANKS = 2


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as place:
        images = make_images(Path(place) / "images.npz")
        settings = [
            "task.name=cross_device", f"data.file={images}", "model.width=16",
            "optimizer.name=ema_momentum", "optimizer.momentum=0.9", "algorithm.rho=0.05", "run.rounds=2",
            "run.eval_every=0", "run.engine=one_by_one", "data.eval_examples=10", "log.figures=false",
            *sys.argv[1:],
        ]  # fmt: skip
        rows = train(settings, RANKS, Path(place) / "run")
        items = counted(settings, RANKS)
    items |= {"counted": sum(items.values()), "a process with nothing to do": bare_bytes()}
    items |= {f"peak of rank {rank}": peak for rank, peak in enumerate(peaks(rows))}
    for name, value in items.items():
        print(f"{name:<50}{value / MIB:8.1f} MiB")


if __name__ == "__main__":
    main()
