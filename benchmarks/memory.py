"""What a rank's memory holds, counted and measured.

python benchmarks/memory.py [key=value ...]

Trains two rounds of 80 ResNet-9 of width 16 on 2 ranks with CoBo and momentum, on images made up for the
purpose (as many as CIFAR-100 has), and prints the bytes that models, momentum, gradients and data take beside
the peak of each process. What is left beyond both is a batch's activations and what allocators keep. Settings
are those of `cobo_dist.train`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from made_up import make_images

RANKS, CLIENTS = 2, 80
MIB = 1024 * 1024
# What Python, torch and the process group take before any client is there.
BARE = (
    "import resource, torch, torch.distributed, cobo_dist.train;"
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
)


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        images = make_images(folder / "images.npz")
        run = folder / "run"
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            f"--nproc_per_node={RANKS}", "-m", "cobo_dist.train", "task.name=cross_device",
            f"data.file={images}", "model.width=16", "optimizer.name=ema_momentum",
            "optimizer.momentum=0.9", "algorithm.rho=0.05", "run.rounds=2", "run.eval_every=0",
            "run.engine=one_by_one", "data.eval_examples=10", "data.eval_batch_size=100", "log.figures=false",
            f"run.dir={run}", *sys.argv[1:],
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        bare = int(subprocess.run([sys.executable, "-c", BARE], capture_output=True).stdout)
        report(run, bare)


def report(run: Path, bare: int) -> None:
    """Print the arithmetic beside the peaks."""
    from safetensors import safe_open

    with safe_open(run / "models" / "client_00000.safetensors", "np") as file:
        held = file.keys()
        names = [name for name in held if "running" not in name and "num_b" not in name]
        size = sum(int(np.prod(file.get_slice(name).get_shape())) for name in names)
    rows = CLIENTS // RANKS * size * 4
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rounds = [line for line in lines if line["event"] == "round"]
    pairs = max(line["pairs"] for line in rounds)
    # A message lies in a buffer at both its ends; a rank sends its share and receives as much.
    messages = max(line["bytes_sent"] for line in rounds) * 2 // RANKS
    # A rank has as many ends of pairs as pairs, on average; a midpoint lies in the partner's place.
    ends = min(pairs, CLIENTS) * size * 4
    counted = {
        f"models, {CLIENTS // RANKS} x {size:,} numbers": rows,
        "momentum": rows,
        "gradients": rows,
        "what mixing delivers": rows,
        f"midpoints, about {min(pairs, CLIENTS)}": ends,
        "gradients at midpoints": ends,
        "messages, sent and received": messages,
        "images, once": 60_000 * 3072,
    }
    for name, value in counted.items():
        print(f"{name:<44}{value / MIB:8.1f} MiB")
    total = sum(counted.values())
    print(f"{'counted':<44}{total / MIB:8.1f} MiB")
    print(f"{'a process with nothing to do':<44}{bare / MIB:8.1f} MiB")
    (ledger,) = [line for line in lines if line["event"] == "ledger"]
    for rank, peak in enumerate(ledger["peak_bytes"]):
        print(f"{f'peak of rank {rank}':<44}{peak / MIB:8.1f} MiB")


if __name__ == "__main__":
    main()
