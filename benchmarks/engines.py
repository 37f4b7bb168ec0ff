"""The faster engine for each model, and the one that `run.engine=auto` chooses.

python benchmarks/engines.py [--only MODEL ...] [--repeats 5] [--threads 1]

Computes gradients of a few clients on one batch with each engine in turn, in one process. Prints the median
seconds and the engine that `auto` chose by its own timing, as a run does before round 1. Images are
synthetic. Rows with bf16 use bfloat16 (autocast, channels last).
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from made_up import make_images

from cobo_dist.clients.client_batch import ClientBatch
from cobo_dist.config import load_config
from cobo_dist.tasks.registry import build_task

IMAGES = ("task.name=cross_device", "data.augment=false", "data.file={images}")
RESNET = (*IMAGES, "model.name=resnet9", "model.dropout=0")
# The number of clients and the settings of the run.
MODELS = {
    "quadratic": (40, ("task.name=quadratic", "task.file={problem}")),
    "digits MLP": (40, ("task.name=digits", "task.clusters=10", "task.clients_per_cluster=8")),
    "cnn": (8, (*IMAGES, "model.name=cnn")),
    "cnn bf16": (8, (*IMAGES, "model.name=cnn", "run.autocast=bfloat16")),
    **{
        f"resnet9 {width}{kind}": (
            4 if width < 64 else 2, (*RESNET, f"model.width={width}", f"run.autocast={autocast}")
        )
        for width in (8, 16, 64)
        for kind, autocast in (("", "none"), (" bf16", "bfloat16"))
    },
}  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=MODELS, help="some of the models")
    parser.add_argument("--repeats", type=int, default=5, help="passes of each engine")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"{arguments.threads} thread(s), batch 32\n"
    )
    print(f"{'model':16}{'clients':>8}{'one_by_one s':>14}{'vectorised s':>14}  auto")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        made = {
            "images": make_images(folder / "images.npz", 8_000, 1_000),
            "problem": _make_problem(folder / "problem.npz"),
        }
        for name in arguments.only or MODELS:
            clients = _clients(name, made)
            chosen, *_ = clients.time_engines()
            seconds = {
                engine: _seconds(clients, engine, arguments) for engine in clients.task.engines
            }
            print(
                f"{name:16}{len(clients.ids):>8}{seconds['one_by_one']:>14.4f}"
                f"{seconds['vectorised']:>14.4f}  {chosen}",
                flush=True,
            )


def _clients(name: str, made: dict[str, Path]) -> ClientBatch:
    """Return a few clients of the named model."""
    count, settings = MODELS[name]
    config = load_config(None, [one.format(**made) for one in settings])
    task = build_task(config.task, config.model, config.data, 0, torch.float32)
    autocast = None if config.run.autocast == "none" else torch.bfloat16
    device = torch.device("cpu")
    return ClientBatch(
        range(count), task, config.optimizer, dtype=torch.float32, device=device, autocast=autocast
    )


def _seconds(clients: ClientBatch, engine: str, arguments: argparse.Namespace) -> float:
    """Return the median seconds of one round's gradients."""
    clients.use_engine(engine)
    clients.gradients(0)
    times = []
    for t in range(1, arguments.repeats + 1):
        started = time.perf_counter()
        clients.gradients(t)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _make_problem(path: Path, clients: int = 40, size: int = 1000) -> Path:
    """Write quadratics with different centers."""
    rng = np.random.default_rng(0)
    np.savez(
        path,
        centers=rng.normal(size=(clients, size)),
        curvature=np.ones(clients),
        start=rng.normal(size=size),
    )
    return path


if __name__ == "__main__":
    main()
