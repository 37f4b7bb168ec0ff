"""Runs on one virtual GPU, with the kernels and host synchronizations of every round and checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from problems import train
from virtual_cuda import Counts, counted, virtual_cuda

from cobo_dist.algorithms.registry import build_algorithm
from cobo_dist.checkpoint.writer import CheckpointWriter
from cobo_dist.comm.session import CommConfig, open_session
from cobo_dist.comm.startup.launch_env import Launch

ALONE = Launch("python", 0, 1, 0, 1, "127.0.0.1", 29500)


def train_alone(device: str, arguments: Sequence[str]) -> None:
    """Run a whole training on one rank of this process; it must end well."""
    with open_session(ALONE, CommConfig(), torch.device(device)) as session:
        assert train(session, list(arguments)) == 0


def counts_of_run(arguments: Sequence[str]) -> tuple[list[Counts], list[Counts]]:
    """Train on the virtual device; return the counts of each round and of each checkpoint."""
    rounds: list[Counts] = []
    checkpoints: list[Counts] = []

    def build(*parts: Any) -> Any:
        algorithm = build_algorithm(*parts)
        inner = algorithm.round

        def counted_round(t: int) -> Any:
            with counted() as counts:
                result = inner(t)
            rounds.append(counts)
            return result

        algorithm.round = counted_round
        return algorithm

    begin = CheckpointWriter.begin

    def counted_begin(self: CheckpointWriter, *args: Any) -> None:
        with counted() as counts:
            begin(self, *args)
        checkpoints.append(counts)

    with (
        virtual_cuda(),
        mock.patch("cobo_dist.training.build.build_algorithm", build),
        mock.patch.object(CheckpointWriter, "begin", counted_begin),
    ):
        train_alone("cuda:0", arguments)
    return rounds, checkpoints
