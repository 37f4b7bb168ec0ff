"""Runs on one virtual GPU, with the kernels and host synchronizations of each of their parts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from problems import train
from virtual_cuda import Counts, counted, virtual_cuda

from cobo_dist.algorithms.registry import build_algorithm
from cobo_dist.checkpoint.writer import CheckpointWriter
from cobo_dist.comm.config import CommConfig
from cobo_dist.comm.session import open_session
from cobo_dist.comm.startup.launch_env import Launch
from cobo_dist.tracking.metrics_buffer import MetricsBuffer
from cobo_dist.training import build, finish
from cobo_dist.training.model_keeper import ModelKeeper

ALONE = Launch("python", 0, 1, 0, 1, "127.0.0.1", 29500)
PARTS: dict[str, tuple[Any, str]] = {
    "checkpoint": (CheckpointWriter, "begin"),
    "evaluation": (MetricsBuffer, "evaluate"),
    "check of models": (MetricsBuffer, "check_models"),
    "models at the end": (finish, "_save_models"),
    "keeping models": (ModelKeeper, "_take"),
}


def train_alone(device: str, arguments: Sequence[str]) -> None:
    """Run a whole training on one rank of this process; it must end well."""
    with open_session(ALONE, CommConfig(), torch.device(device)) as session:
        assert train(session, list(arguments)) == 0


def counts_of_run(arguments: Sequence[str]) -> dict[str, list[Counts]]:
    """Train on the virtual device; return the counts of every `round` and of every one of `PARTS`."""
    found: dict[str, list[Counts]] = defaultdict(list)

    def counting(part: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **how: Any) -> Any:
            with counted() as counts:
                result = inner(*args, **how)
            found[part].append(counts)
            return result

        return call

    def build_counting(*parts: Any) -> Any:
        algorithm = build_algorithm(*parts)
        algorithm.round = counting("round", algorithm.round)
        return algorithm

    with ExitStack() as patches:
        patches.enter_context(virtual_cuda())
        patches.enter_context(mock.patch.object(build, "build_algorithm", build_counting))
        for part, (owner, name) in PARTS.items():
            call = counting(part, getattr(owner, name))
            patches.enter_context(mock.patch.object(owner, name, call))
        train_alone("cuda:0", arguments)
    return found
