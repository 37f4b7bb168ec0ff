"""The problems of all simulators, and the files by which they receive a problem and return a result.

T rounds, n clients, batches of B examples.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LEARNING_RATE = 0.05


@dataclass(frozen=True)
class Work:
    """One problem: settings of cobo_dist, clients, and rounds, of which the first `warm` are not timed."""

    settings: tuple[str, ...]
    clients: int
    rounds: int
    warm: int
    images: bool  # whether to measure bfloat16 too


WORKS = {
    # Rounds take milliseconds, and launchers are still busy during the first ones.
    "80 digits MLPs": Work(
        ("task.name=digits", "task.clusters=10", "task.clients_per_cluster=8"), 80, 200, 80, False
    ),
    "80 small CNNs": Work(
        ("task.name=cross_device", "model.name=cnn", "data.augment=false"), 80, 9, 3, True
    ),
    "8 ResNet-9": Work(
        ("task.name=cross_silo", "model.dropout=0", "data.augment=false"), 8, 6, 2, True
    ),
}


def write_problem(work: Work, images: Path, rounds: int, path: Path) -> Path:
    """Write x^0 and every client's batch of every round, as cobo_dist draws them, ready for the model."""
    from made_up import with_images

    from cobo_dist.config import load_config
    from cobo_dist.tasks.registry import build_task

    config = load_config(None, with_images(work.settings, images))
    task = build_task(config.task, config.model, config.data, config.run.seed, torch.float32)
    source = task.training(range(work.clients), torch.device("cpu"))
    inputs, targets = zip(*(source.batch(t, "local")[:2] for t in range(rounds)), strict=True)
    stacked = torch.stack([one.movedim(2, -1) for one in inputs] if work.images else inputs)
    torch.save(
        {
            "model": task.model(),
            "inputs": stacked,
            "targets": torch.stack(targets),
            "images": work.images,
        },
        path,
    )
    return path


class Problem:
    """The input of a simulator: a model at x^0, and all batches in memory."""

    def __init__(self, path: str | Path) -> None:
        """Map the file into memory; the processes of a machine share its pages."""
        held: Mapping[str, Any] = torch.load(path, mmap=True, weights_only=False)
        self.model: nn.Module = held["model"]
        self._inputs, self._targets = held["inputs"], held["targets"]
        self._images: bool = held["images"]
        self.rounds, self.clients = self._targets.shape[:2]

    def batch(self, t: int, client: int) -> tuple[Tensor, Tensor]:
        """Return inputs [B, ...] (images [B, C, H, W], channels last in memory) and targets [B]."""
        inputs = self._inputs[t, client]
        return (inputs.movedim(-1, 1) if self._images else inputs), self._targets[t, client]


def write_result(
    folder: str | Path, ends: list[float], model: Mapping[str, Tensor], versions: dict[str, str]
) -> None:
    """Write seconds of rounds from their end times (first: the start), the last model and versions."""
    seconds = [after - before for before, after in itertools.pairwise(ends)]
    torch.save({name: one.detach().contiguous() for name, one in model.items()}, _model(folder))
    (Path(folder) / "result.json").write_text(json.dumps({"seconds": seconds} | versions))


def read_result(folder: Path) -> tuple[list[float], dict[str, Tensor], dict[str, str]]:
    """Return seconds of every round, the last model by parameter, and versions."""
    about = json.loads((folder / "result.json").read_text())
    return about.pop("seconds"), torch.load(_model(folder)), about


def _model(folder: str | Path) -> Path:
    return Path(folder) / "model.pt"


now = time.perf_counter
