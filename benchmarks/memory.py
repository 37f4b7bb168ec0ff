"""What a rank's memory holds, counted and measured.

python benchmarks/memory.py [key=value ...]

Trains two rounds of 80 ResNet-9 of width 16 on 2 ranks with CoBo and momentum, on images made up for the
purpose (as many as CIFAR-100 has), and prints what `cobo_dist.plan` counts for a rank beside the peak of each
process. What is left beyond both is a batch's activations and what allocators keep. Settings are those of
`cobo_dist.train`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from made_up import make_images

from cobo_dist.config import load_config
from cobo_dist.planning.dry_run import DryRun
from cobo_dist.tasks.registry import build_task

RANKS = 2
MIB = 1024 * 1024
# What Python, torch and the process group take before any client is there.
BARE = (
    "import torch, torch.distributed, cobo_dist.train;"
    "from cobo_dist.training.shutdown import peak_memory; print(peak_memory(torch.device('cpu')))"
)


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        images = make_images(folder / "images.npz")
        run = folder / "run"
        settings = [
            "task.name=cross_device", f"data.file={images}", "model.width=16",
            "optimizer.name=ema_momentum", "optimizer.momentum=0.9", "algorithm.rho=0.05", "run.rounds=2",
            "run.eval_every=0", "run.engine=one_by_one", "data.eval_examples=10", "log.figures=false",
            f"run.dir={run}", *sys.argv[1:],
        ]  # fmt: skip
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*launcher, f"--nproc_per_node={RANKS}", "-m", "cobo_dist.train", *settings]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        bare = int(subprocess.run([sys.executable, "-c", BARE], capture_output=True).stdout)
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        (peaks,) = [line["peak_bytes"] for line in lines if line["event"] == "traffic"]
        parts = rehearsed(settings, RANKS).memory()
        report({part.name: part.bytes for part in parts}, peaks, bare)


def rehearsed(settings: list[str], ranks: int) -> DryRun:
    """Return the forecast of a run, with all its rounds asked for."""
    config = load_config(None, settings)
    dtype = getattr(torch, config.run.dtype)
    task = build_task(config.task, config.model, config.data, config.run.seed, dtype)
    dry_run_of = DryRun(config, task, ranks)
    for r in range(1, config.run.rounds + 1):
        dry_run_of.round(r)
    return dry_run_of


def report(parts: dict[str, int], peaks: list[int], bare: int) -> None:
    """Print the arithmetic beside the peaks."""
    parts = parts | {"counted": sum(parts.values()), "a process with nothing to do": bare}
    parts |= {f"peak of rank {rank}": peak for rank, peak in enumerate(peaks)}
    for name, value in parts.items():
        print(f"{name:<50}{value / MIB:8.1f} MiB")


if __name__ == "__main__":
    main()
