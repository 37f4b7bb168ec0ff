"""Runs that several benchmarks start on ranks of this machine, and what a plan counts for them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from cobo_dist.config import load_config
from cobo_dist.planning.dry_run import DryRun
from cobo_dist.tasks.registry import build_task

MIB = 1024 * 1024
BARE = (
    "import torch, torch.distributed, scipy.sparse.csgraph, cobo_dist.train;"
    "from cobo_dist.training.finish import peak_memory; print(peak_memory(torch.device('cpu')))"
)


def train(settings: list[str], ranks: int, folder: Path) -> list[dict[str, Any]]:
    """Train on some ranks; return the rows of metrics.jsonl."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}",
        "-m", "cobo_dist.train", *settings, f"run.dir={folder}",
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def peaks(rows: list[dict[str, Any]]) -> list[int]:
    """Return the most bytes that each rank of a run has held."""
    (traffic,) = [row for row in rows if row["event"] == "traffic"]
    return [int(peak) for peak in traffic["peak_bytes"]]


def bare_bytes() -> int:
    """Return the bytes of a process that has only loaded the program."""
    return int(subprocess.run([sys.executable, "-c", BARE], capture_output=True).stdout)


def counted(settings: list[str], ranks: int) -> dict[str, int]:
    """Return what a plan counts for the fullest rank, by item, after all rounds of the run."""
    config = load_config(None, settings)
    dtype = getattr(torch, config.run.dtype)
    task = build_task(config.task, config.model, config.data, config.run.seed, dtype)
    dry_run = DryRun(config, task, ranks)
    for r in range(1, config.run.rounds + 1):
        dry_run.round(r)
    return {item.name: item.bytes for item in dry_run.memory()}
